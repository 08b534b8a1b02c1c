//! `ImageStore` backends: the bytes of image versions.

#[cfg(feature = "images-files")]
pub mod files;
