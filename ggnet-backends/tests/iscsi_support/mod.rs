//! What the tests of the crate `ggnet-iscsi` share, for tests that need more than the target alone, and what stands on GGnet's
//! ports beside it.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../iscsi/tests/iscsi_support/mod.rs"]
mod of_the_crate;

pub mod client;

pub use of_the_crate::*;
