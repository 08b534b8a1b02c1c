//! One behaviour suite per port. A backend is right when its suite passes; ours and a stranger's run the same one.
//!
//! # For the author of a backend
//!
//! 1. Write a *fixture*: a type that makes your backend, empty ([`Fixture::fresh`]) or again over what the last one left behind
//!    ([`Fixture::reopen`]), and that implements the port's own fixture trait ([`TargetFixture`], [`WritebackFixture`],
//!    [`ImageStoreFixture`], [`DhcpFixture`], [`BootFileFixture`], [`ConverterFixture`]). Each method says what the suite expects of it; those with a
//!    default body may be left out, and the cases that need them are then *not run*, which is reported.
//! 2. Call the port's macro once in a test file. It makes a module with one `#[test]` per case, so that each shows by its name:
//!
//! ```text
//! // tests/behaviour.rs
//! ggnet_core::target_behaviour!(my_targets, MyFixture::new());
//! ggnet_core::writeback_behaviour!(my_writebacks, MyStoreFixture::in_a_new_folder().await);
//! ```
//!
//! The fixture's expression is evaluated once per case, inside the case's own multi-threaded tokio runtime, so it may `.await`.
//! Cases run at the same time, as tests do: fixtures must not share what cannot be shared (ports, names, folders).
//!
//! # Cases that a backend cannot run
//!
//! Which cases apply follows from `capabilities()` and from what the fixture can do. A case that does not apply is never passed in
//! silence: the last test of the module, `undeclared_capabilities`, writes each with its reason to standard error. Give the list
//! that you expect, and that test fails when it is another:
//!
//! ```text
//! ggnet_core::target_behaviour!(lio, LioFixture::new(), not_run: [a_wrong_secret_is_refused]);
//! ```
//!
//! # What the cases hold a backend to
//!
//! The contract in [`crate::ports`] and in each port's own documentation; nothing else. Cases that hold for every declarative port
//! are in `common`, and each port adds its own.

mod attached;
mod common;
mod cut;
mod files;
mod run;

pub mod boot_file;
pub mod converter;
pub mod dhcp;
pub mod image_store;
pub mod store;
pub mod target;
pub mod writeback;

use std::sync::Arc;

use async_trait::async_trait;

pub use boot_file::BootFileFixture;
pub use converter::ConverterFixture;
pub use cut::{Cut, cut_after};
pub use dhcp::{DhcpAnswer, DhcpFixture};
pub use image_store::ImageStoreFixture;
#[doc(hidden)]
pub use run::{report, run};
pub use target::{TargetClient, TargetFixture, Wanted};
pub use writeback::WritebackFixture;

/// Makes a backend for one case.
///
/// `P` is the port's trait object: `Fixture<dyn TargetBackend>`. The backend is handed out unattached: the suite calls `attach`
/// itself, with a gate and an observer of its own.
#[async_trait]
pub trait Fixture<P: ?Sized>: Send + Sync {
    /// A backend in an empty world of its own.
    async fn fresh(&self) -> Arc<P>;

    /// A new backend over the world of the last `fresh`, as after a crash of our process.
    ///
    /// The suite has dropped its handle to the earlier one and did *not* call `shutdown`. A fixture whose backend has tasks of its
    /// own must end them here as a crash would: without letting them finish or clean up.
    async fn reopen(&self) -> Arc<P>;

    /// Puts into the backend's world an object that is not ours (another instance's, an operator's own), after `fresh`, and says
    /// how to tell whether it is still as it was. `None`: the backend's world cannot hold one.
    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        None
    }

    /// Whether [`foreign`](Fixture::foreign) gives one.
    fn has_foreign(&self) -> bool {
        false
    }

    /// How often a case does the same again.
    fn effort(&self) -> Effort {
        Effort::Full
    }
}

/// How often a case does the same again: fifty callers at once, and a call dropped at every place; or less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// What a case's name promises.
    #[default]
    Full,
    /// Five callers, and a call dropped at a few places: for a backend whose every call takes seconds because another program does it.
    Less,
}

/// An object in the backend's world that is not ours.
#[async_trait]
pub trait Foreign: Send + Sync {
    /// Fails, saying what happened to it, unless it is exactly as it was.
    async fn check(&self) -> Result<(), String>;
}

/// The instance id that names are made with in the suites. A backend that recognises its own objects by their names is made with
/// this one by its fixture.
#[must_use]
pub fn instance() -> crate::nouns::InstanceId {
    "0ddba11e".parse().expect("eight hexadecimal digits")
}

/// The prefix of target names in the suites; see [`instance`].
#[must_use]
pub fn iqn_prefix() -> crate::nouns::Iqn {
    "iqn.2026-11.local.ggnet".parse().expect("a valid IQN")
}
