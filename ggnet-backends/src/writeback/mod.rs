//! `WritebackStore` backends: a private writable disk on top of an image version.

#[cfg(feature = "writeback-layers")]
pub mod layers;
