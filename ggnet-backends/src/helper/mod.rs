//! The client side of the helper, the only process of GGnet that runs as root. It does what a server without root cannot do itself.
//!
//! ```text
//!   server (user ggnet)                      helper (root)
//!   target/lio_configfs ─┐
//!                        ├─ client ═socket═ helper_server
//!   service ─────────────┘      protocol
//! ```
//! A connection carries one request and one response, one line of JSON each. `helper_server` executes the request.
//!
//! Invariants: secrets are sent to the helper, never back, and are in no log line and no error; the size of every message is limited.

mod client;
mod protocol;

pub use client::Helper;
pub(crate) use protocol::too_long;
pub use protocol::{Action, Answer, MAX_REQUEST, Request, SOCKET, decode, encode};
