//! Checks whether the clock can be right: a Raspberry Pi or a machine with an empty battery starts in the past, which breaks leases,
//! certificates and the order of events.

use std::path::Path;

use ggnet_core::nouns::Timestamp;

use super::{Finding, Level};

/// 2025-01-01: no version of GGnet is older.
const EARLIEST: i64 = 1_735_689_600;
/// 2100-01-01.
const LATEST: i64 = 4_102_444_800;

/// Whether `now` (from the `Clock` port) is plausible and, if systemd-timesyncd runs, whether it has set the clock.
#[must_use]
pub fn clock(now: Timestamp) -> Finding {
    judge(now, Path::new("/run/systemd/timesync"))
}

fn judge(now: Timestamp, timesync: &Path) -> Finding {
    let what = "clock";
    if !(EARLIEST..LATEST).contains(&now.as_second()) {
        let why = format!("It shows {now}, which cannot be right");
        return Finding::bad(Level::Fail, what, why, "sudo timedatectl set-ntp true");
    }
    if !timesync.is_dir() {
        return Finding::ok(what, format!("It shows {now}; systemd-timesyncd does not run here"));
    }
    if timesync.join("synchronized").exists() {
        return Finding::ok(what, format!("It shows {now}, set by systemd-timesyncd"));
    }
    Finding::bad(
        Level::Warn,
        what,
        format!("It shows {now}, but systemd-timesyncd has not reached a time server since boot"),
        "timedatectl timesync-status   (then configure a reachable NTP= in /etc/systemd/timesyncd.conf)",
    )
}

#[cfg(test)]
mod tests {
    use ggnet_core::ports::{Clock as _, SystemClock};

    use super::*;

    #[test]
    fn this_hosts_clock_is_sane() {
        assert_ne!(clock(SystemClock.now()).level, Level::Fail);
    }

    #[test]
    fn the_rule() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(judge(at(0), &none).level, Level::Fail);
        assert_eq!(judge(at(EARLIEST - 1), &none).level, Level::Fail);
        assert_eq!(judge(at(LATEST), &none).level, Level::Fail);
        assert_eq!(judge(at(EARLIEST), &none).level, Level::Ok);
        assert_eq!(judge(at(EARLIEST), dir.path()).level, Level::Warn);
        std::fs::File::create(dir.path().join("synchronized")).unwrap();
        assert_eq!(judge(at(EARLIEST), dir.path()).level, Level::Ok);
    }
}
