//! Layers: a private disk as a sparse file of what was written over an image version, and a map that says which blocks those are.
//!
//! The library under the writeback store `layers`, whose layers are written, and the image store `files`, which reads those whose writing
//! has ended. It knows neither where layers lie nor when one begins or ends.
//!
//! Floors: `device` → `flush` → `layer`, `chain`, `raw` → `map`, `locks`, `format`, `busy`, `inline` → `files`.
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

/// The family of a writeback in layers that is frozen: its locator is the absolute path of the layer's folder.
pub(crate) const FAMILY: &str = "ggnet-layer";

/// A length or an index that is in memory, or is of a file mapped by something in memory.
pub(crate) const fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64, "disks are larger than this machine's addresses") };
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, as asserted")]
    let n = n as usize;
    n
}
