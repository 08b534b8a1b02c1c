//! Retries: a call that may succeed soon is tried again, a few times.
//!
//! ```text
//!   try ──ok, or any error but `Unavailable`──▶ done
//!    ▲ └──`Unavailable`──▶ wait: 100 ms, ×2, ×2 … up to 2 s, less up to half ──┐
//!    └─────────────────────────────────────────────────────────────────────────┘  at most `tries` times, and not once the caller was let go
//! ```
//! Not retried: `Busy`, because the caller decides what to do about it; `Timeout`, because the caller has waited long enough; and calls
//! that are not [`Op::repeatable`].

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{Call, Class, Op};
use crate::error::{ErrorKind, Result};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Makes the call, at most `tries` times, and no more once `let_go` is set.
pub(super) async fn tried<T>(
    op: &Op,
    tries: u32,
    let_go: &AtomicBool,
    call: &(impl Fn() -> Call<T> + Sync),
) -> Result<T> {
    let repeatable = op.repeatable && !matches!(op.class, Class::Health | Class::Shutdown);
    let mut tried = 1;
    loop {
        match call().await {
            Err(e)
                if repeatable
                    && tried < tries
                    && e.kind() == ErrorKind::Unavailable
                    && e.is_retryable()
                    && !let_go.load(Ordering::Acquire) =>
            {
                let wait = wait(tried);
                tracing::debug!(port = op.port, backend = op.backend, operation = op.name, tried, ?wait, error = %e,
                    "a call failed and is tried again");
                tokio::time::sleep(wait).await;
                tried += 1;
            }
            result => return result,
        }
    }
}

/// The wait after try number `tried` (from 1): between half and the whole of the doubled time, so that many callers that failed at the same
/// time do not retry at the same time.
fn wait(tried: u32) -> Duration {
    let factor = 2_u32.saturating_pow(tried.saturating_sub(1));
    let full = FIRST.saturating_mul(factor).min(LONGEST);
    // Without random bytes every caller waits the full time: correct, only less spread.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut full = FIRST;
        for tried in 1..40 {
            let wait = wait(tried);
            assert!(wait >= full / 2 && wait <= full, "try {tried}: {wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
    }
}
