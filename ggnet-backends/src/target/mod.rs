//! `TargetBackend` backends.

#[cfg(feature = "target-builtin")]
pub mod builtin;
#[cfg(feature = "target-lio-configfs")]
pub mod lio_configfs;
#[cfg(feature = "target-lio-targetcli")]
pub mod lio_targetcli;
