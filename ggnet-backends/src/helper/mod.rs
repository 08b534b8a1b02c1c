//! Asking the helper, the one process of GGnet that is root, for what a server that is not root cannot do itself.
//!
//! ```text
//!   server (user ggnet)                      helper (root)
//!   target/lio_configfs ─┐
//!                        ├─ client ═socket═ helper_server
//!   service ─────────────┘      protocol
//! ```
//! A connection is one question and one answer, a line of JSON each. What the helper does with a question is `helper_server`'s.
//!
//! Invariants: secrets travel to the helper, never back, and are in no log line and no error; every message is bounded in size.

mod client;
mod protocol;

pub use client::Helper;
pub(crate) use protocol::too_long;
pub use protocol::{Action, Answer, MAX_REQUEST, Request, SOCKET, decode, encode};
