//! [`Retry`]: what may succeed later is tried again, a few times.
//!
//! ```text
//!   try ──ok, or an error that a retry does not help──▶ done
//!    ▲ └──retryable──▶ wait: first, ×2, ×2 … up to longest, ± half ──┐
//!    └───────────────────────────────────────────────────────────────┘  at most `tries` times
//! ```

use std::{sync::Arc, time::Duration};

use super::{Call, Layer, Op, Wrapped};
use crate::error::{Error, ErrorKind, Result};

/// A port whose failed calls are made again when [`Error::is_retryable`] says that this may help.
///
/// Not made again: `Busy`, unless [`RetryPolicy::busy`] says so, because it is an answer (somebody uses the thing) and the caller has
/// a rule for it; and calls that are not [`Op::repeatable`].
pub type Retry<P> = Wrapped<P, RetryLayer>;

/// How often and when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many tries there are in all, the first one included.
    pub tries: u32,
    /// The wait after the first try; it doubles after each.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Whether `Busy` is tried again too.
    pub busy: bool,
}

impl Default for RetryPolicy {
    /// Four tries within about a second.
    fn default() -> Self {
        Self { tries: 4, first: Duration::from_millis(100), longest: Duration::from_secs(2), busy: false }
    }
}

impl RetryPolicy {
    /// The wait after try number `tried` (from 1): between half and the whole of the doubled time, so that many callers that failed
    /// together do not come back together.
    fn wait(&self, tried: u32) -> Duration {
        let factor = 2_u32.saturating_pow(tried.saturating_sub(1));
        let full = self.first.saturating_mul(factor).min(self.longest);
        // Without random bytes every caller waits the full time: correct, only less spread.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    fn helps(&self, op: &Op, error: &Error) -> bool {
        op.repeatable && error.is_retryable() && (self.busy || error.kind() != ErrorKind::Busy)
    }
}

/// The layer of [`Retry`].
#[derive(Clone, Copy, Debug)]
pub struct RetryLayer {
    policy: RetryPolicy,
}

impl<P: ?Sized> Retry<P> {
    /// Tries again as `policy` says.
    #[must_use]
    pub fn new(inner: Arc<P>, policy: RetryPolicy) -> Self {
        Self::with_layer(inner, RetryLayer { policy })
    }
}

impl Layer for RetryLayer {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        op: Op,
        call: impl Fn() -> Call<'a, T> + Send + Sync + 'a,
    ) -> Result<T> {
        let mut tried = 1;
        loop {
            match call().await {
                Err(e) if tried < self.policy.tries && self.policy.helps(&op, &e) => {
                    let wait = self.policy.wait(tried);
                    tracing::debug!(port = op.port, backend = op.backend, operation = op.name, tried, ?wait, error = %e,
                        "a call failed and is tried again");
                    tokio::time::sleep(wait).await;
                    tried += 1;
                }
                result => return result,
            }
        }
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use super::*;
    use crate::{
        ports::{DhcpBackend as _, ImageConverter as _},
        testkit::{
            flaky::{Fault, FaultPlan, Flaky},
            memory::{MemoryConverter, MemoryDhcp},
        },
    };

    fn retried(policy: RetryPolicy) -> (FaultPlan, Retry<Flaky<MemoryDhcp>>) {
        let plan = FaultPlan::new();
        let flaky = Flaky::new(Arc::new(MemoryDhcp::new()), &plan);
        (plan, Retry::new(Arc::new(flaky), policy))
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_failure_is_outlived() {
        let (plan, dhcp) = retried(RetryPolicy::default());
        plan.add(Fault::on("list").first(3).fails(ErrorKind::Unavailable));
        assert!(dhcp.list().await.unwrap().is_empty());
        assert_eq!(plan.calls("list"), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_with_the_last_error() {
        let (plan, dhcp) = retried(RetryPolicy { tries: 3, ..RetryPolicy::default() });
        plan.add(Fault::on("list").fails(ErrorKind::Timeout));
        assert_eq!(dhcp.list().await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(plan.calls("list"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_retry_does_not_help_is_told_at_once() {
        let (plan, dhcp) = retried(RetryPolicy::default());
        let hopeless = [
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Busy,
            ErrorKind::Invalid,
            ErrorKind::Permission,
            ErrorKind::Full,
            ErrorKind::Corrupt,
            ErrorKind::Unsupported,
            ErrorKind::Internal,
        ];
        for (n, kind) in (1..).zip(hopeless) {
            plan.clear().add(Fault::on("list").fails(kind));
            assert_eq!(dhcp.list().await.unwrap_err().kind(), kind);
            assert_eq!(plan.calls("list"), n, "{kind}");
        }
        let (plan, dhcp) = retried(RetryPolicy { busy: true, ..RetryPolicy::default() });
        plan.add(Fault::on("list").first(1).fails(ErrorKind::Busy));
        assert!(dhcp.list().await.is_ok(), "Busy is tried again when the policy says so");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_must_not_be_repeated_is_not() {
        let plan = FaultPlan::new();
        let flaky = Flaky::new(Arc::new(MemoryConverter::new()), &plan);
        let converter = Retry::new(Arc::new(flaky), RetryPolicy::default());
        plan.add(Fault::any().fails(ErrorKind::Unavailable));
        let spec = crate::ports::ConvertSpec {
            source: "/a".into(),
            format: crate::nouns::ImageFormat::Raw,
            destination: "/b".into(),
        };
        let cancel = tokio_util::sync::CancellationToken::new();
        converter.convert(&spec, Arc::new(|_| ()), cancel).await.unwrap_err();
        assert_eq!(plan.calls("convert"), 1);
        converter.probe("/a".as_ref()).await.unwrap_err();
        assert_eq!(plan.calls("probe"), 4);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy { tries: 99, ..RetryPolicy::default() };
        let mut full = policy.first;
        for tried in 1..40 {
            let wait = policy.wait(tried);
            assert!(wait >= full / 2 && wait <= full, "try {tried}: {wait:?} of {full:?}");
            full = (full * 2).min(policy.longest);
        }
    }
}
