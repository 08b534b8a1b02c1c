//! Pruning: events, audit rows, ended jobs and ended sessions that are older than the retention are forgotten, unless the clock may be wrong.
//!
//! ```text
//!   trusted ── the clock jumped by more than half of the retention ──▶ doubted: nothing is pruned
//!      ▲                                                                 │
//!      └── it is back where it should be, or has gone on for a day ──────┘
//! ```
//! The time of day decides what is old. A dead battery can make it 2036 at the server's start, and a pruning by that clock would forget
//! everything. So what the clock said when it was last trusted is kept in the store, and the time since is measured by the process's own
//! clock. Invariant: a jump of the clock costs at most the older half of what is kept, unless it lasts for [`DOUBTED_FOR`] of running.
//! A jump back is doubted too: it prunes nothing, but must not become what later times are compared with (a clock that starts in 1970).

use std::{sync::atomic::Ordering, time::Duration};

use jiff::SignedDuration;
use tokio::time::Instant;

use super::Reconciler;
use crate::{
    error::Result,
    nouns::{AuditAction, Timestamp},
    ports::{Batch, PageRequest, Write},
};

/// How often old rows are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// How long the server runs with a clock that jumped before it believes it.
const DOUBTED_FOR: Duration = Duration::from_secs(24 * 3600);
/// The setting that holds what the clock said when it was last trusted, and for how many seconds it has been doubted since.
const SETTING: &str = "clock";

/// The pruner's memory.
#[derive(Default)]
pub(super) struct Pruning {
    clock: Option<ClockWatch>,
    pruned: Option<Instant>,
}

/// Whether the clock goes on as it should.
#[derive(Clone, Debug)]
struct ClockWatch {
    /// What the clock said when it was last trusted, and when that was.
    trusted: (Timestamp, Instant),
    /// For how long it had been doubted, and when that was; none: it is trusted.
    doubted: Option<(Duration, Instant)>,
}

impl ClockWatch {
    /// Whether a clock that says `now` is trusted. `jump` is what it may be off.
    fn look(&mut self, now: Timestamp, at: Instant, jump: Duration) -> bool {
        let passed = at.duration_since(self.trusted.1);
        let expected = self.trusted.0.saturating_add(passed).unwrap_or(Timestamp::MAX);
        let off = now.duration_since(expected).unsigned_abs();
        let (lasted, since) = *self.doubted.get_or_insert((Duration::ZERO, at));
        let lasted = lasted + at.duration_since(since);
        if off <= jump || lasted >= DOUBTED_FOR {
            *self = Self { trusted: (now, at), doubted: None };
            return true;
        }
        self.doubted = Some((lasted, at));
        false
    }

    /// The setting's value.
    fn text(&self) -> String {
        let doubted = self.doubted.map_or(0, |(lasted, _)| lasted.as_secs());
        format!("{} {doubted}", self.trusted.0)
    }

    fn parse(text: &str, at: Instant) -> Option<Self> {
        let (trusted, doubted) = text.split_once(' ')?;
        let lasted = Duration::from_secs(doubted.parse().ok()?);
        Some(Self {
            trusted: (trusted.parse().ok()?, at),
            doubted: (!lasted.is_zero()).then_some((lasted, at)),
        })
    }
}

impl Reconciler {
    /// What is wrong with the clock, while it is doubted.
    pub(in crate::orchestrator) fn clock_doubt(&self) -> Option<String> {
        self.clock_doubted.load(Ordering::Acquire).then(|| {
            format!(
                "The clock says {}, which does not fit what it said before, so nothing old is forgotten. Set it (timedatectl); if it is \
                 right, nothing needs to be done: it is believed after {} hours",
                self.shared.now(),
                DOUBTED_FOR.as_secs() / 3600
            )
        })
    }

    /// Looks at the clock and, once an hour, keeps the record from growing for ever.
    pub(super) async fn forget_the_old(&self, pruning: &mut Pruning) {
        if let Err(e) = self.try_forget_the_old(pruning).await {
            tracing::warn!(error = %e.report(), "could not forget old rows");
        }
    }

    async fn try_forget_the_old(&self, pruning: &mut Pruning) -> Result<()> {
        if pruning.clock.is_none() {
            pruning.clock = Some(self.last_trusted().await?);
        }
        let Some(clock) = &mut pruning.clock else { return Ok(()) };
        let (now, retention) = (self.shared.now(), self.shared.config.retention);
        let trusted = clock.look(now, Instant::now(), (retention / 2).max(PRUNE_EVERY));
        if self.clock_doubted.swap(!trusted, Ordering::AcqRel) == trusted {
            tracing::warn!(%now, last = %clock.trusted.0, trusted, "the clock jumped, or is trusted again");
        }
        if pruning.pruned.is_some_and(|at| at.elapsed() < PRUNE_EVERY) {
            return Ok(());
        }
        pruning.pruned = Some(Instant::now());
        let setting = Write::Setting { key: SETTING.to_owned(), value: clock.text() };
        let noted = self.shared.record(Batch::new().write(setting)).await.map(|_| ());
        let before = SignedDuration::try_from(retention).ok().and_then(|age| now.checked_sub(age).ok());
        if let Some(before) = before.filter(|_| trusted) {
            let rows = self.shared.store().prune(before).await?;
            if rows > 0 {
                tracing::info!(rows, "forgot old events, audit rows and sessions");
            }
        }
        noted
    }

    /// What an earlier process knew of the clock. Without it the newest audit row tells.
    async fn last_trusted(&self) -> Result<ClockWatch> {
        let (store, at) = (self.shared.store(), Instant::now());
        let known = store.setting(SETTING).await?.and_then(|text| ClockWatch::parse(&text, at));
        if let Some(known) = known {
            return Ok(known);
        }
        // This start may have written that one, by the clock that is to be looked at.
        let by_this_start = AuditAction::InstanceRemember;
        let rows = store.audit(PageRequest { page: 1, per_page: 2 }).await?.items;
        let newest = rows.into_iter().find(|row| row.action != by_this_start);
        Ok(ClockWatch { trusted: (newest.map_or(self.shared.now(), |row| row.at), at), doubted: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUMP: Duration = Duration::from_secs(45 * 24 * 3600);
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn what_an_earlier_process_doubted_counts() {
        let (then, at) = (Timestamp::constant(1_790_000_000, 0), Instant::now());
        let later = then.saturating_add(20 * 365 * 24 * HOUR).unwrap();
        let mut clock = ClockWatch { trusted: (then, at), doubted: None };
        assert!(clock.look(then.saturating_add(JUMP).unwrap(), at, JUMP), "switched off over the holidays");
        clock.trusted.0 = then;
        for process in 0..3 {
            let mut read = ClockWatch::parse(&clock.text(), at).unwrap();
            assert_eq!(read.trusted.0, then);
            for hour in 0..=8 {
                let trusted = read.look(later, at + hour * HOUR, JUMP);
                assert_eq!(trusted, process == 2 && hour == 8, "process {process}, hour {hour}");
            }
            clock = read;
        }
        assert_eq!(clock.trusted.0, later);
    }

    #[tokio::test]
    async fn a_clock_that_begins_in_the_past_is_no_measure_for_the_right_time() {
        let (then, at) = (Timestamp::constant(1_790_000_000, 0), Instant::now());
        let mut clock = ClockWatch { trusted: (then, at), doubted: None };
        assert!(!clock.look(Timestamp::constant(0, 0), at, JUMP));
        assert!(clock.look(then.saturating_add(HOUR).unwrap(), at + HOUR, JUMP), "a time server has set it");
    }
}
