//! At most two virtual machines at once on this host, whatever number of test processes runs: emulated machines that share
//! two cores with more of their kind only become slower together.
//!
//! A slot is a lock on one of two files, so that a killed process gives it back. Who needs two machines at once takes both
//! slots in one call: [`reserve`] serves one caller at a time, which rules out two tests that hold one slot each and wait
//! for the other's.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// How many machines may run at once.
pub const MACHINES: usize = 2;

/// The right to run one machine; given back when dropped.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "held for its lock")] File);

/// Waits until `n` machines may run and returns the right to run them.
///
/// Do not call it while holding a slot: with another caller doing the same, both would wait for ever.
///
/// # Errors
/// More than [`MACHINES`] are asked for, the lock files cannot be opened, or nothing became free in 50 minutes.
pub fn reserve(n: usize) -> Result<Vec<Slot>> {
    ensure!(n <= MACHINES, "{n} machines at once: the harness allows {MACHINES}");
    let dir = std::env::temp_dir();
    let gate = lock_file(&dir.join("ggnet-vm-gate.lock"))?;
    gate.lock()?;
    let mut files = Vec::new();
    for i in 0..MACHINES {
        files.push(lock_file(&dir.join(format!("ggnet-vm-slot-{i}.lock")))?);
    }
    let mut slots = Vec::new();
    wait::until("a free place for a virtual machine", Duration::from_secs(3000), || {
        let mut rest = Vec::new();
        for file in files.drain(..) {
            if slots.len() < n && file.try_lock().is_ok() { slots.push(Slot(file)) } else { rest.push(file) }
        }
        files = rest;
        Ok((slots.len() == n).then_some(()))
    })?;
    Ok(slots)
}

/// Waits until the host's one place for a server machine is free. It does not count as one of [`MACHINES`]: the machines that it
/// serves wait for it most of the time, and take their own.
///
/// # Errors
/// As [`reserve`].
pub fn reserve_server() -> Result<Slot> {
    let file = lock_file(&std::env::temp_dir().join("ggnet-vm-server.lock"))?;
    wait::until("the place for a server machine", Duration::from_secs(3000), || {
        Ok(file.try_lock().is_ok().then_some(()))
    })?;
    Ok(Slot(file))
}

/// Waits until the host's one place for a machine that mostly waits is free. It does not count as one of [`MACHINES`]: after its boot it
/// takes hardly any of the processor, and a test that needs both of those would wait for it for minutes.
///
/// # Errors
/// As [`reserve`].
pub fn reserve_waiting() -> Result<Slot> {
    let file = lock_file(&std::env::temp_dir().join("ggnet-vm-waiting.lock"))?;
    wait::until("the place for a machine that waits", Duration::from_secs(3000), || {
        Ok(file.try_lock().is_ok().then_some(()))
    })?;
    Ok(Slot(file))
}

/// Another user's file in a sticky folder can be read but not opened with O_CREAT, hence the two steps.
fn lock_file(path: &Path) -> Result<File> {
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => File::create(path),
        other => other,
    }
    .with_context(|| format!("lock file {}", path.display()))
}
