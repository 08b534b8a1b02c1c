//! `BootFileStore` backends.

#[cfg(feature = "bootfile-builtin")]
pub mod builtin;
