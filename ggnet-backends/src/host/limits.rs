//! The limit of open files: each session needs a few (connections, data file, maps).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Finding, Level};

/// Whether this process can have `wanted` files open (the soft limit of `RLIMIT_NOFILE`).
#[must_use]
pub fn open_files(wanted: u64) -> Finding {
    let limit = getrlimit(Resource::Nofile);
    judge(limit.current, limit.maximum, wanted)
}

/// Raises this process's limit of open files to the maximum that it may set, because shells and services start it with a much lower limit.
/// If raising fails, the limit stays, and [`open_files`] reports it.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

fn judge(soft: Option<u64>, hard: Option<u64>, wanted: u64) -> Finding {
    let what = "open files";
    let Some(soft) = soft else {
        return Finding::ok(what, "Not limited");
    };
    let why = format!("The limit is {soft}, but {wanted} are recommended");
    if soft >= wanted {
        return Finding::ok(what, why);
    }
    let mend = if hard.is_none_or(|h| h >= wanted) {
        format!("ulimit -n {wanted}   (under systemd: LimitNOFILE={wanted})")
    } else {
        format!("LimitNOFILE={wanted} in the systemd unit, or nofile in /etc/security/limits.conf")
    };
    Finding::bad(Level::Warn, what, why, mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_may_open_some() {
        assert_eq!(open_files(1).level, Level::Ok);
    }

    #[test]
    fn the_rule() {
        assert_eq!(judge(None, None, 1 << 40).level, Level::Ok);
        assert_eq!(judge(Some(1024), Some(4096), 1024).level, Level::Ok);
        let f = judge(Some(1024), Some(4096), 2048);
        assert!(f.level == Level::Warn && f.mend.unwrap().starts_with("ulimit -n 2048"));
        let f = judge(Some(1024), Some(4096), 10_000);
        assert!(f.mend.unwrap().starts_with("LimitNOFILE=10000"));
    }
}
