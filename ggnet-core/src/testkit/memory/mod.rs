//! The ports in memory: complete, fast, and with the same states as a real backend after interrupted calls.
//!
//! Each backend keeps its objects in a [`World`] that outlives it. `new()` starts in an empty world; `over(&world)` opens a world as after
//! a crash of our process: the calls, disks and connections of the earlier object fail from then on, and everything that a real backend of
//! that kind would lose is lost.
//!
//! ```
//! use ggnet_core::testkit::memory::MemoryTargets;
//!
//! let first = MemoryTargets::new();
//! let world = first.world();
//! // … ensure some targets, then our process dies:
//! let second = MemoryTargets::over(&world);
//! # let _ = second;
//! ```
//!
//! Every `ensure` and `remove` passes through places where its future can be dropped, and leaves a
//! [`Partial`](crate::ports::Completeness::Partial) object when it is: code that uses the ports meets this state in tests, not first in
//! production. Where a port has clients (an initiator, a booting PC), the backend has methods that act as one.

pub mod block;
mod blocks;
pub mod boot_file;
pub mod clock;
pub mod converter;
pub mod dhcp;
pub mod image_store;
mod initiator;
pub mod store;
pub mod target;
mod world;
pub mod writeback;

pub use block::RamDisk;
pub use boot_file::{BootFileWorld, MemoryBootFiles};
pub use clock::ManualClock;
pub use converter::MemoryConverter;
pub use dhcp::{DhcpWorld, MemoryDhcp};
pub use image_store::{ImageWorld, MemoryImages};
pub use store::{MemoryStore, StoreWorld};
pub use target::{LoginError, MemoryInitiator, MemoryTargets, TargetWorld};
pub use world::World;
pub use writeback::{MemoryWritebacks, WritebackWorld};
