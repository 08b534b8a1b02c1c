//! Tools to test code that uses GGnet's ports, and to test an implementation of a port.
//!
//! * [`memory`]: every port in memory, fast and complete, for tests of code that uses the ports. Each keeps its objects in a *world* that
//!   outlives it, so that a test can kill "our process" and open the world again.
//! * [`suite`]: one behaviour suite per port. A backend is correct when its suite passes: start at [`suite`] when you write a backend.
//! * [`flaky`]: wraps any port so that calls fail, lose their response, hang or are interrupted, as a test plans.
//! * [`tier`]: the number of repetitions of a test in the quick tier and in the long tier.
//! * [`disk`]: opens any [`Disk`](crate::block::Disk) as a [`BlockDevice`](crate::block::BlockDevice).
//!
//! Behind the feature `testkit`. A crate that implements a port depends on `ggnet-core` with that feature in its
//! `[dev-dependencies]`, and on nothing else of GGnet.

pub mod disk;
pub mod flaky;
pub mod memory;
#[expect(clippy::panic, reason = "a suite fails by panicking, as a test does")]
#[expect(clippy::disallowed_methods, reason = "tasks of a case, which it waits for")]
pub mod suite;
#[expect(clippy::panic, reason = "a misspelt tier ends the test")]
pub mod tier;
