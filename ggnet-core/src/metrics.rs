//! [`Metrics`]: the metrics of core, in the registry that its embedder passes in. There is no global recorder.
//!
//! With the prefix `ggnet`, as `ggnet-server` shows them:
//!
//! * `ggnet_port_calls_total{port, backend, operation, outcome}`: calls. The outcome is `ok`, an error's kind, `timeout` for a call that
//!   exceeded its time limit, or `refused` for one that was not started.
//! * `ggnet_port_call_seconds{port, backend, operation}`: the time that callers waited.
//! * `ggnet_port_calls_in_flight{port, backend}`: calls in flight.
//! * `ggnet_port_calls_overdue{port, backend}`: those of them that have exceeded their time limit: their callers got `Timeout`, and the
//!   calls still run.
//! * `ggnet_observations_dropped_total`: observations from backends that were dropped because the queue was full.

pub use prometheus_client::registry::Registry;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};
use tokio::time::Duration;

/// Names of labels with their values.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Seconds.
const BUCKETS: [f64; 11] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0, 120.0, 600.0, 3600.0];

/// The metrics of core. Cheap to clone; all clones share the same counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<Labels<4>, Counter>,
    seconds: Family<Labels<3>, Histogram, fn() -> Histogram>,
    in_flight: Family<Labels<2>, Gauge>,
    overdue: Family<Labels<2>, Gauge>,
    observations_dropped: Counter,
}

/// The gauges of one port.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) running: Gauge,
    pub(crate) overdue: Gauge,
}

impl Metrics {
    /// Registers everything; once for each registry.
    pub fn new(registry: &mut Registry) -> Self {
        let new = Self {
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            in_flight: Family::default(),
            overdue: Family::default(),
            observations_dropped: Counter::default(),
        };
        registry.register("port_calls", "Port calls by outcome", new.calls.clone());
        let help = "Time that callers waited for port calls";
        registry.register_with_unit("port_call", help, Unit::Seconds, new.seconds.clone());
        let help = "Port calls in flight";
        registry.register("port_calls_in_flight", help, new.in_flight.clone());
        let help = "Port calls in flight that have exceeded their time limit";
        registry.register("port_calls_overdue", help, new.overdue.clone());
        let help = "Observations from backends that were dropped because the queue was full";
        registry.register("observations_dropped", help, new.observations_dropped.clone());
        new
    }

    pub(crate) fn port(&self, port: &'static str, backend: &'static str) -> InFlight {
        let labels = [("port", port), ("backend", backend)];
        InFlight {
            running: self.in_flight.get_or_create_owned(&labels),
            overdue: self.overdue.get_or_create_owned(&labels),
        }
    }

    /// Counts a call; `of` is its port, backend and operation.
    pub(crate) fn call(&self, of: Labels<3>, outcome: &'static str, took: Duration) {
        let [port, backend, operation] = of;
        self.calls.get_or_create(&[port, backend, operation, ("outcome", outcome)]).inc();
        self.seconds.get_or_create(&of).observe(took.as_secs_f64());
    }

    pub(crate) fn observation_dropped(&self) {
        self.observations_dropped.inc();
    }
}
