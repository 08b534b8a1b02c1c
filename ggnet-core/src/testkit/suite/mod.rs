//! One behaviour suite per port. A backend is correct when its suite passes; built-in and external backends run the same suite.
//!
//! # For the author of a backend
//!
//! 1. Write a *fixture*: a type that creates your backend, empty ([`Fixture::fresh`]) or over the state that the last one left behind
//!    ([`Fixture::reopen`]), and that implements the port's own fixture trait ([`TargetFixture`], [`WritebackFixture`],
//!    [`ImageStoreFixture`], [`DhcpFixture`], [`BootFileFixture`], [`ConverterFixture`]). The documentation of each method says what the
//!    suite expects. Methods with a default body may be left out; the cases that need them are then *not run*, which is reported.
//! 2. Call the port's macro once in a test file. It creates a module with one `#[test]` per case, so that each is reported by its name:
//!
//! ```text
//! // tests/behaviour.rs
//! ggnet_core::target_behaviour!(my_targets, MyFixture::new());
//! ggnet_core::writeback_behaviour!(my_writebacks, MyStoreFixture::in_a_new_folder().await);
//! ```
//!
//! The fixture's expression is evaluated once per case, inside the case's own multi-threaded tokio runtime, so it may `.await`. Cases run
//! concurrently, as tests do: fixtures must not share exclusive resources (ports, names, folders).
//!
//! The suite of [`Store`](crate::ports::Store) is simpler: [`store_behaviour`](crate::store_behaviour) needs a [`Fixture`] alone, and all of
//! its cases apply to every store, so it has neither `not_run` nor a report.
//!
//! # Cases that a backend cannot run
//!
//! Which cases apply follows from `capabilities()` and from what the fixture can do. A case that does not apply never passes silently: the
//! last test of the module, `undeclared_capabilities`, writes each with its reason to standard error. If you give the list that you expect,
//! that test fails when the actual list differs:
//!
//! ```text
//! ggnet_core::target_behaviour!(lio, LioFixture::new(), not_run: [a_wrong_secret_is_refused]);
//! ```
//!
//! # What the cases test
//!
//! They test the contract in [`crate::ports`] and in each port's own documentation, and nothing else. The cases for every declarative port
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

/// Creates a backend for one case.
///
/// `P` is the port's trait object: `Fixture<dyn TargetBackend>`. The backend must not be attached: the suite calls `attach` itself, with
/// its own gate and observer.
#[async_trait]
pub trait Fixture<P: ?Sized>: Send + Sync {
    /// A backend with empty state of its own.
    async fn fresh(&self) -> Arc<P>;

    /// A new backend over the state of the last `fresh`, as after a crash of our process.
    ///
    /// The suite has dropped its handle to the earlier one and has *not* called `shutdown`. A fixture whose backend has its own tasks must
    /// end them here as a crash would: without letting them finish or clean up.
    async fn reopen(&self) -> Arc<P>;

    /// Adds an object that is not ours (of another instance, or of the operator) to the backend's state, after `fresh`, and returns a check
    /// that it is unchanged. `None`: the backend's state cannot contain one.
    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        None
    }

    /// Whether [`foreign`](Fixture::foreign) gives one.
    fn has_foreign(&self) -> bool {
        false
    }

    /// How often a case repeats its operations.
    fn effort(&self) -> Effort {
        Effort::Full
    }
}

/// How often a case repeats its operations: fifty concurrent callers, and a call dropped at every place; or less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// The number that the case's name states.
    #[default]
    Full,
    /// Five callers, and a call dropped at a few places: for a backend whose every call takes seconds because another program does it.
    Less,
}

/// An object in the backend's state that is not ours.
#[async_trait]
pub trait Foreign: Send + Sync {
    /// Fails with a description of the change unless the object is exactly as it was.
    async fn check(&self) -> Result<(), String>;
}

/// The instance id in the suites' names. A fixture creates a backend that recognises its objects by name with this id.
#[must_use]
pub fn instance() -> crate::nouns::InstanceId {
    "0ddba11e".parse().expect("eight hexadecimal digits")
}

/// The prefix of target names in the suites; see [`instance`].
#[must_use]
pub fn iqn_prefix() -> crate::nouns::Iqn {
    "iqn.2026-11.local.ggnet".parse().expect("a valid IQN")
}
