//! The configfs tree of the kernel's iSCSI target (LIO): names of its objects, and changes to it.
//!
//! This module is below both the code that plans changes (`target/lio_configfs`, `target/lio_targetcli`) and the code that makes them as
//! root (`helper_server`).

pub(crate) mod names;
pub(crate) mod tree;

pub use tree::{Hook, Op, Value};
