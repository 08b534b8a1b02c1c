//! The orchestrator over backends in memory: its promises to users, step by step, and its state after a step that fails, loses its
//! response, or is the last one of our process.
//!
//! [`site`] has the state that outlives a process (a store, a kernel's targets, files) and the process itself; every module is a subject.

#![allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod authorization;
mod boot;
mod clock;
mod crash;
mod decide;
mod disks;
mod faults;
mod fitting;
mod full_disk;
mod generations;
mod hung;
mod images;
mod jobs;
mod machines;
mod observed;
mod publish;
mod reads;
mod reconcile;
mod sessions;
mod shutdown;
mod site;
mod trace;
mod wrong_store;
