//! `BootFileStore` backends.

#[cfg(feature = "bootfile-builtin")]
pub mod builtin;
pub mod loaders;
#[cfg(feature = "bootfile-tftpd-hpa")]
pub mod tftpd_hpa;
