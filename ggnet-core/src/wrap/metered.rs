//! [`Metered`]: how often each call is made, how it ends and how long it takes.
//!
//! * `ggnet_port_calls_total{port, backend, operation, outcome}`: a counter. The outcome is `ok`, an error's kind, or `dropped` when the
//!   caller did not wait for it.
//! * `ggnet_port_call_seconds{port, backend, operation}`: a histogram, of all outcomes.

use std::{sync::Arc, time::Instant};

use super::{Call, Layer, Op, Wrapped};
use crate::error::Result;

/// A port whose calls are counted and timed, by the `metrics` crate's recorder.
pub type Metered<P> = Wrapped<P, MeteredLayer>;

/// The layer of [`Metered`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MeteredLayer;

impl<P: ?Sized> Metered<P> {
    /// Counts and times every call.
    #[must_use]
    pub const fn new(inner: Arc<P>) -> Self {
        Self::with_layer(inner, MeteredLayer)
    }
}

/// Records when it is dropped, so that a call that nobody waited for is counted too.
struct Meter {
    op: Op,
    begin: Instant,
    outcome: &'static str,
}

impl Drop for Meter {
    fn drop(&mut self) {
        let Op { port, backend, name, .. } = self.op;
        let outcome = self.outcome;
        metrics::counter!("ggnet_port_calls_total", "port" => port, "backend" => backend, "operation" => name,
            "outcome" => outcome)
        .increment(1);
        metrics::histogram!("ggnet_port_call_seconds", "port" => port, "backend" => backend, "operation" => name)
            .record(self.begin.elapsed());
    }
}

impl Layer for MeteredLayer {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        op: Op,
        call: impl Fn() -> Call<'a, T> + Send + Sync + 'a,
    ) -> Result<T> {
        let mut meter = Meter { op, begin: Instant::now(), outcome: "dropped" };
        let result = call().await;
        meter.outcome = match &result {
            Ok(_) => "ok",
            Err(e) => e.kind().as_str(),
        };
        result
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use metrics::{
        Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString,
        Unit,
    };

    use super::*;
    use crate::{
        ErrorKind,
        ports::DhcpBackend as _,
        testkit::{
            flaky::{Fault, FaultPlan, Flaky},
            memory::MemoryDhcp,
        },
    };

    type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

    struct Count(String, Counts);

    impl Count {
        fn add(&self, n: u64) {
            *self.1.lock().unwrap_or_else(PoisonError::into_inner).entry(self.0.clone()).or_default() += n;
        }
    }

    impl CounterFn for Count {
        fn increment(&self, n: u64) {
            self.add(n);
        }
        fn absolute(&self, _: u64) {
            unreachable!("the meter only counts up");
        }
    }

    impl HistogramFn for Count {
        fn record(&self, _: f64) {
            self.add(1);
        }
    }

    struct Book(Counts);

    impl Book {
        fn count(&self, key: &Key) -> Arc<Count> {
            let labels: Vec<&str> = key.labels().map(metrics::Label::value).collect();
            Arc::new(Count(format!("{} {}", key.name(), labels.join(" ")), Arc::clone(&self.0)))
        }
    }

    impl Recorder for Book {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.count(key))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.count(key))
        }
    }

    #[test]
    fn every_outcome_is_counted() {
        let counts = Counts::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        metrics::with_local_recorder(&Book(Arc::clone(&counts)), || {
            runtime.block_on(async {
                let plan = FaultPlan::new();
                let dhcp = Metered::new(Arc::new(Flaky::new(Arc::new(MemoryDhcp::new()), &plan)));
                dhcp.list().await.unwrap();
                dhcp.list().await.unwrap();
                plan.add(Fault::on("list").nth(1).fails(ErrorKind::Unavailable));
                dhcp.list().await.unwrap_err();
                plan.add(Fault::on("list").hangs());
                tokio::time::timeout(Duration::from_millis(1), dhcp.list()).await.unwrap_err();
                dhcp.health().await;
            });
        });
        let expected = [
            ("ggnet_port_call_seconds dhcp memory health", 1),
            ("ggnet_port_call_seconds dhcp memory list", 4),
            ("ggnet_port_calls_total dhcp memory health ok", 1),
            ("ggnet_port_calls_total dhcp memory list dropped", 1),
            ("ggnet_port_calls_total dhcp memory list ok", 2),
            ("ggnet_port_calls_total dhcp memory list unavailable", 1),
        ];
        let expected: BTreeMap<String, u64> = expected.into_iter().map(|(k, n)| (k.to_owned(), n)).collect();
        assert_eq!(*counts.lock().unwrap(), expected);
    }
}
