//! `WritebackStore` backends: a private writable disk on top of an image version.

mod folder;

#[cfg(feature = "writeback-layers")]
pub mod layers;
#[cfg(feature = "writeback-reflink")]
pub mod reflink;
