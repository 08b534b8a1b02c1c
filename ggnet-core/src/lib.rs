//! GGnet's core: one disk image, many machines without a disk.
//!
//! The domain's [nouns], the [ports] that backends implement, the [limits](wrap) around them, the [orchestrator] that starts, stops and
//! reconciles sessions over them, and the [boot text](boot_text) that machines read. No sockets, no processes, no SQL and no HTTP here:
//! those belong to backends and frontends.
//!
//! Where to start:
//!
//! * To embed GGnet: [`orchestrator`]; the example `embed` is a complete program. Its backends are in `testkit::memory` (feature `testkit`).
//! * To write a backend: [`ports`] is the contract, `testkit::suite` (feature `testkit`) tests it, and [`registry`] makes it available by
//!   name.
//! * To write a disk: [`block`].

#[cfg(feature = "api")]
pub mod api;
pub mod authorization;
pub mod block;
pub mod boot_text;
pub mod checksum;
pub mod error;
pub mod keyed_locks;
pub mod metrics;
pub mod nouns;
pub mod orchestrator;
pub mod ports;
pub mod registry;
pub mod supervisor;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod wrap;

pub use error::{Error, ErrorKind, Result};
