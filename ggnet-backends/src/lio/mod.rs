//! The tree in configfs of the kernel's iSCSI target (LIO): names of its objects, and changes of it.
//!
//! Below both who decides on changes (`target/lio_configfs`, `target/lio_targetcli`) and who makes them as root (`helper_server`).

pub(crate) mod names;
pub(crate) mod tree;

pub use tree::{Hook, Op, Value};
