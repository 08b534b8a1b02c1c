//! Layers: a private disk as a sparse file with the writes over an image version, and a map of the written blocks.
//!
//! This is the library for the writeback store `layers`, whose layers are written, and for the image store `files`, which reads frozen
//! layers. It does not know where layers are stored or when they are created and removed.
//!
//! Levels: `device` → `flush` → `layer`, `chain`, `raw` → `map`, `locks`, `format`, `busy`, `inline` → `files`.
#![cfg_attr(
    not(all(feature = "writeback-layers", feature = "images-files")),
    allow(dead_code, reason = "each store alone uses only a part of it")
)]

pub(crate) mod busy;
pub(crate) mod chain;
pub(crate) mod device;
pub(crate) mod flush;
pub(crate) mod format;
pub(crate) mod inline;
pub(crate) mod layer;
pub(crate) mod locks;
pub(crate) mod map;
pub(crate) mod raw;

pub use self::raw::open_raw;

/// The family of a frozen writeback in layers: its locator is the absolute path of the layer's folder.
pub(crate) const FAMILY: &str = "ggnet-layer";

/// Converts a length or an index in memory, or in a file that is mapped by something in memory.
pub(crate) const fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64, "disks are larger than this machine's addresses") };
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, as asserted")]
    let n = n as usize;
    n
}
