//! Times as text: time ago, and time between events. Absolute times are RFC 3339 in UTC, independent of the local time zone.

use ggnet_core::{
    nouns::Timestamp,
    ports::{Clock as _, SystemClock},
};

/// How long ago, in one unit.
pub fn ago(then: Timestamp) -> String {
    between(then, SystemClock.now())
}

fn between(then: Timestamp, now: Timestamp) -> String {
    let seconds = (now.as_millisecond() - then.as_millisecond()) / 1000;
    match seconds {
        // The server's clock may be a little ahead of ours.
        ..5 => "just now".to_owned(),
        5..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn exact(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// A time between two events, in milliseconds, as `+12 ms` or `+3.4 s`.
pub fn step(milliseconds: i64) -> String {
    match milliseconds {
        ..1000 => format!("+{milliseconds} ms"),
        1000..120_000 => format!("+{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        _ => format!("+{} min {} s", milliseconds / 60_000, milliseconds / 1000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_each() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let ago = |s: i64| between(at(0), at(s));
        assert_eq!(ago(-3), "just now");
        assert_eq!(ago(4), "just now");
        assert_eq!(ago(119), "119 s ago");
        assert_eq!(ago(180), "3 min ago");
        assert_eq!(ago(7200), "2 h ago");
        assert_eq!(ago(864_000), "10 days ago");
    }

    #[test]
    fn steps_and_exact_times() {
        assert_eq!(step(12), "+12 ms");
        assert_eq!(step(3456), "+3.4 s");
        assert_eq!(step(125_000), "+2 min 5 s");
        assert_eq!(exact(Timestamp::from_millisecond(1_500).unwrap()), "1970-01-01T00:00:01.500Z");
    }
}
