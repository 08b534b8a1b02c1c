//! [`PortLimits`]: how long each call of each port may take, and how many may run at once.
//!
//! | port | `read` | `change` | `stall` |
//! |---|---|---|---|
//! | store | every look-up and list | `commit`, `prune` | |
//! | target | `list`, `get`, `endpoint`, `connections` | `ensure`, `remove` (which flushes the disk first) | |
//! | writeback | `list`, `get` | `ensure`, `freeze`, `remove` | |
//! | images | `open`, `list`, `get` | `draft`, `seal`, `adopt`, `remove` | |
//! | dhcp | `list`, `get` | `apply` (which may restart a daemon, once for a set) | |
//! | boot files | `list`, `get`, `read` | `ensure`, `remove` | |
//! | converter | `probe` | | `convert`: the time without progress; it has no limit in all |
//!
//! `health` and `shutdown` of each port have limits of their own. `name`, `capabilities` and `attach` do not call the outside world.
//!
//! A full copy of an image (writeback `reflink` with `copy = "full"`) takes as long as the image is large. Its caller gets `Timeout` at the
//! limit, the copy continues, and the next `ensure` finds it whole; `ggnet-server` sets `change` of the writeback store to
//! `session.start_deadline` if that is longer.

use std::time::Duration;

use crate::error::{Error, Result};

/// The limits of one port. The defaults are those of [`PortLimits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a call that changes nothing may take.
    pub read: Duration,
    /// How long a call that changes something may take.
    pub change: Duration,
    /// How long `convert` may run without progress, and wait for its turn. Other ports have no such call.
    pub stall: Duration,
    /// How long `health` may take; it is short because monitoring gives up soon.
    pub health: Duration,
    /// How long the port may take to close.
    pub shutdown: Duration,
    /// How many calls run at once, overdue ones included; further ones wait. Each may hold a blocking thread, so keep the sum over all
    /// ports below the runtime's limit. tokio's default limit is 512 and the sum of the defaults here is 784: an embedder that keeps these
    /// defaults sets `max_blocking_threads` of its runtime (`ggnet-server`: 1024).
    pub in_flight: usize,
    /// How often a call that fails with `Unavailable` is tried, including the first time. Retries stay within the time limit; `commit`,
    /// `convert`, `health` and `shutdown` are not retried.
    pub tries: u32,
}

/// The limits of every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLimits {
    /// Of the store: 10 s to read, 30 s to change, 8 s to close; 256 calls in flight, because commits in flight can share a sync.
    pub store: Limits,
    /// Of the targets: 30 s to read, 120 s to change, 20 s to close (disks are flushed).
    pub target: Limits,
    /// Of the writeback store: 30 s to read, 120 s to change, 12 s to close.
    pub writeback: Limits,
    /// Of the image store: 30 s to read, 120 s to change, 5 s to close (nothing is written back).
    pub images: Limits,
    /// Of DHCP: 30 s to read, 120 s to change, 11 s to close (an external program has 10 s); 256 calls in flight, because a daemon that is
    /// restarted for a change is restarted once for all calls that wait.
    pub dhcp: Limits,
    /// Of the boot files: 10 s to read, 60 s to change, 11 s to close.
    pub boot_files: Limits,
    /// Of the converter: 120 s to read, 1 hour without progress; 16 calls in flight.
    pub converter: Limits,
}

const fn limits(read: u64, change: u64, shutdown: u64, in_flight: usize) -> Limits {
    Limits {
        read: Duration::from_secs(read),
        change: Duration::from_secs(change),
        stall: Duration::from_secs(3600),
        health: Duration::from_secs(5),
        shutdown: Duration::from_secs(shutdown),
        in_flight,
        tries: 3,
    }
}

impl Default for PortLimits {
    fn default() -> Self {
        Self {
            store: limits(10, 30, 8, 256),
            target: limits(30, 120, 20, 64),
            writeback: limits(30, 120, 12, 64),
            images: limits(30, 120, 5, 64),
            dhcp: limits(30, 120, 11, 256),
            boot_files: limits(10, 60, 11, 64),
            converter: limits(120, 120, 5, 16),
        }
    }
}

impl PortLimits {
    /// The ports' names and limits, as in the configuration.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, &Limits); 7] {
        [
            ("store", &self.store),
            ("target", &self.target),
            ("writeback", &self.writeback),
            ("images", &self.images),
            ("dhcp", &self.dhcp),
            ("boot_files", &self.boot_files),
            ("converter", &self.converter),
        ]
    }

    /// Rejects limits under which nothing could work.
    ///
    /// # Errors
    /// `Invalid`, naming port and value.
    pub fn check(&self) -> Result<()> {
        let least = Duration::from_millis(10);
        for (port, of) in self.each() {
            let times = [
                ("read", of.read),
                ("change", of.change),
                ("stall", of.stall),
                ("health", of.health),
                ("shutdown", of.shutdown),
            ];
            if let Some((name, value)) = times.into_iter().find(|(_, value)| *value < least) {
                let message = format!("limits.{port}.{name} is {value:?}; the minimum is {least:?}");
                return Err(Error::invalid("limits", message));
            }
            if of.in_flight == 0 || of.in_flight > MOST {
                let message = format!("limits.{port}.in_flight is {}; it must be 1 to {MOST}", of.in_flight);
                return Err(Error::invalid("limits", message));
            }
            if of.tries == 0 || of.tries > 10 {
                let message = format!("limits.{port}.tries is {}; it must be 1 to 10", of.tries);
                return Err(Error::invalid("limits", message));
            }
        }
        Ok(())
    }
}

/// The maximum of calls in flight of a port: each may hold a thread.
const MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_stop_everything_are_refused_by_name() {
        PortLimits::default().check().unwrap();
        let changed = |change: fn(&mut PortLimits)| {
            let mut limits = PortLimits::default();
            change(&mut limits);
            limits.check().unwrap_err().to_string()
        };
        assert!(changed(|l| l.dhcp.read = Duration::ZERO).contains("limits.dhcp.read"));
        assert!(changed(|l| l.boot_files.in_flight = 0).contains("limits.boot_files.in_flight"));
        assert!(changed(|l| l.store.in_flight = 5000).contains("limits.store.in_flight"));
        assert!(changed(|l| l.store.tries = 0).contains("limits.store.tries"));
    }

    #[test]
    fn all_ports_together_leave_blocking_threads_to_others() {
        let sum: usize = PortLimits::default().each().iter().map(|(_, of)| of.in_flight).sum();
        assert!(sum < 1024, "{sum} calls may hang, and ggnet-server has 1024 blocking threads");
    }
}
