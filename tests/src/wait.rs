//! Waiting for something outside this process, with a limit and a message that says what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long the harness waits for a daemon to answer or a process to end.
pub const SHORT: Duration = Duration::from_secs(30);
/// How long the harness waits for a machine to boot. An emulated boot on an idle host takes 25 to 60 s; the rest is room
/// for a host that is busy. No test asserts a time: this only ends a test that would never end.
pub const BOOT: Duration = Duration::from_secs(420);

/// Asks `probe` every 50 ms until it gives a value, and returns it.
///
/// # Errors
/// What `probe` returns as an error, at once; or, after `limit`, an error that names `what`.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("gave up after {} s waiting for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
