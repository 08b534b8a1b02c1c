//! A limit for log lines that any client on the network can cause.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Limits log lines per second that clients on the network cause: the target's own lines, and those of a
/// [`LoginPolicy`](crate::LoginPolicy) or [`SessionObserver`](crate::SessionObserver). Use one value for each kind of line.
///
/// ```
/// let refusals = ggnet_iscsi::LogBudget::new(10);
/// if let Some(left_out) = refusals.line() {
///     println!("login refused ({left_out} lines left out before)");
/// }
/// ```
#[derive(Debug)]
pub struct LogBudget {
    a_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl LogBudget {
    /// A limit of this number of lines per second.
    #[must_use]
    pub fn new(a_second: u32) -> Self {
        Self { a_second, state: Mutex::new(State { since: Instant::now(), written: 0, left_out: 0 }) }
    }

    /// `Some` if a line may be written now, with the number of lines that were left out since the last one.
    pub fn line(&self) -> Option<u64> {
        // Every step under it leaves valid data.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.elapsed() >= Duration::from_secs(1) {
            (state.since, state.written) = (Instant::now(), 0);
        }
        if state.written >= self.a_second {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_some_lines_and_a_number() {
        let budget = LogBudget::new(3);
        let lines: Vec<_> = (0..1000).filter_map(|_| budget.line()).collect();
        // A second may have passed meanwhile, on a busy host.
        assert!(lines.len() >= 3 && lines.len() % 3 == 0, "{lines:?}");
        assert!(lines.len() < 1000);
        let left_out = lines.iter().sum::<u64>() + budget.state.lock().unwrap().left_out;
        assert_eq!(lines.len() as u64 + left_out, 1000, "every line is written or counted");
    }
}
