//! `GET /metrics`: what the server counts, as OpenMetrics text for Prometheus.
//!
//! Sessions and disks are kept nowhere for it: each scrape asks the store's counters and the target backend's connections. A machine's
//! counters begin anew with each of its logins, as a counter of Prometheus may. What core counts (calls of ports) stands in the
//! [`Registry`] of [`App`](super::App).
//!
//! Invariant: the answer comes within [`PATIENCE`]. What a backend that hangs would tell is left out of it; its calls that hang are in it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use ggnet_core::{
    Error, Result,
    nouns::{MachineId, ResourceId},
    orchestrator::Reads,
    ports::{Connection, IoCounters, SessionCounts, Store},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{Shared, error::Answer};
use crate::log;

/// What every name begins with.
pub(crate) const PREFIX: &str = "ggnet";

/// How long the backends may take for one answer; Prometheus gives up after 10 s unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counts what the store has made durable, in `registry`.
pub(crate) fn count_commits(store: Arc<dyn Store>, registry: &mut Registry) {
    registry.register_collector(Box::new(Commits(store)));
}

/// A store that is asked for its count at each scrape.
struct Commits(Arc<dyn Store>);

impl fmt::Debug for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Commits").field(&self.0.name()).finish()
    }
}

impl Collector for Commits {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(synced) = self.0.synced_commits() else { return Ok(()) };
        let help = "Transactions that the store has made durable, each with one sync";
        let counter = out.encode_descriptor("store_synced_commits", help, None, MetricType::Counter)?;
        ConstCounter::new(synced).encode(counter)
    }
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Shared>) -> Answer<Response> {
    let text = render(&app.metrics, scrape(&app).await)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

async fn scrape(app: &Shared) -> Scrape {
    let read = app.orchestrator.read();
    let (sessions, disks) = tokio::join!(told(read.session_counts()), told(disks(read)));
    Scrape {
        sessions,
        online: app.orchestrator.presence().online_count(),
        serving: app.orchestrator.is_serving(),
        log_lines_lost: log::lost(),
        disks: disks.unwrap_or_default(),
    }
}

/// What a backend says, if it says it in time.
async fn told<T>(what: impl Future<Output = Result<T>>) -> Option<T> {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(Ok(told)) => Some(told),
        Ok(Err(e)) => {
            tracing::warn!(error = %e.report(), "left out of the metrics");
            None
        }
        Err(_) => {
            tracing::warn!("left out of the metrics: no answer within {PATIENCE:?}");
            None
        }
    }
}

async fn disks(read: Reads<'_>) -> Result<BTreeMap<Labels, Totals>> {
    let found = read.connections().await?;
    let names = Names {
        manual: found.manual.into_iter().map(|(id, name)| (id, name.to_string())).collect(),
        machines: found.machines.into_iter().map(|(id, name)| (id, name.to_string())).collect(),
    };
    Ok(by_disk(&found.connections, &names))
}

/// What people call the owners of targets.
struct Names {
    manual: BTreeMap<ResourceId, String>,
    machines: BTreeMap<MachineId, String>,
}

/// The labels of a disk's counters: machine, manual target (one of them is empty), initiator. The last is empty for a manual target:
/// whoever logs in there names himself as he likes, and each name would be a series of its own.
type Labels = [(&'static str, String); 3];

#[derive(Debug, Default)]
struct Totals {
    connections: u64,
    bytes_read: u64,
    bytes_written: u64,
    io: IoCounters,
}

/// Adds up connections that would have the same labels: a series may be there once only.
fn by_disk(connections: &[Connection], names: &Names) -> BTreeMap<Labels, Totals> {
    let mut all: BTreeMap<Labels, Totals> = BTreeMap::new();
    for c in connections {
        let machine = c.target.owner().and_then(|(m, _)| names.machines.get(&m).cloned());
        let initiator = if c.target.owner().is_some() { c.initiator.clone() } else { String::new() };
        let labels = [
            ("machine", machine.unwrap_or_default()),
            ("target", names.manual.get(&c.target).cloned().unwrap_or_default()),
            ("initiator", initiator),
        ];
        let to = all.entry(labels).or_default();
        to.connections += 1;
        to.bytes_read += c.bytes_read;
        to.bytes_written += c.bytes_written;
        if let Some(io) = &c.io {
            to.io.reads += io.reads;
            to.io.writes += io.writes;
            to.io.others += io.others;
            to.io.not_good += io.not_good;
            to.io.device_errors += io.device_errors;
            to.io.queue_depth += io.queue_depth;
            to.io.latency_us_total += io.latency_us_total;
            to.io.latency_us.resize(to.io.latency_us.len().max(io.latency_us.len()), 0);
            for (sum, n) in to.io.latency_us.iter_mut().zip(&io.latency_us) {
                *sum += n;
            }
        }
    }
    all
}

/// Everything that one answer tells.
#[derive(Debug)]
struct Scrape {
    sessions: Option<SessionCounts>,
    online: u64,
    serving: bool,
    log_lines_lost: u64,
    disks: BTreeMap<Labels, Totals>,
}

fn render(kept: &Registry, scrape: Scrape) -> Result<String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    let written = text::encode_registry(&mut out, kept)
        .and_then(|()| text::encode_registry(&mut out, &registry))
        .and_then(|()| text::encode_eof(&mut out));
    written.map_err(|e| Error::internal("Writing the metrics").with_source(e))?;
    Ok(out)
}

impl Collector for Scrape {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(s) = &self.sessions {
            let help = "Sessions that are remembered";
            let mut sessions = out.encode_descriptor("sessions", help, None, MetricType::Gauge)?;
            let states = [
                ("starting", s.starting),
                ("active", s.active),
                ("stopping", s.stopping),
                ("stopped", s.stopped),
                ("failed", s.failed),
            ];
            for (state, n) in states {
                gauge(sessions.encode_family(&[("state", state)])?, n)?;
            }
        }
        gauge(
            out.encode_descriptor(
                "online_sessions",
                "Sessions with an initiator logged in",
                None,
                MetricType::Gauge,
            )?,
            self.online,
        )?;
        let help = "Whether logins and boot scripts are served: the first reconcile has ended";
        gauge(out.encode_descriptor("serving", help, None, MetricType::Gauge)?, self.serving.into())?;

        let help =
            "Log lines that could not be written, or found no place in the queue before a reader that hangs";
        let lost = out.encode_descriptor("log_lines_lost", help, None, MetricType::Counter)?;
        ConstCounter::new(self.log_lines_lost).encode(lost)?;

        type Get = fn(&Totals) -> u64;
        let gauges: [(&str, &str, Get); 2] = [
            ("disk_connections", "iSCSI sessions that are logged in", |t| t.connections),
            ("disk_queue_depth", "Commands open now", |t| t.io.queue_depth.into()),
        ];
        for (name, help, get) in gauges {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, totals) in &self.disks {
                gauge(family.encode_family(labels)?, get(totals))?;
            }
        }
        let counters: [(&str, &str, Get); 7] = [
            ("disk_read_bytes", "Bytes that initiators have read", |t| t.bytes_read),
            ("disk_written_bytes", "Bytes that initiators have written", |t| t.bytes_written),
            ("disk_reads", "Commands that read the medium", |t| t.io.reads),
            ("disk_writes", "Commands that wrote the medium", |t| t.io.writes),
            ("disk_other_commands", "All other SCSI commands", |t| t.io.others),
            ("disk_not_good", "Commands answered with any status but GOOD", |t| t.io.not_good),
            ("disk_device_errors", "Commands whose disk had failed or was full", |t| t.io.device_errors),
        ];
        for (name, help, get) in counters {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, totals) in &self.disks {
                ConstCounter::new(get(totals)).encode(family.encode_family(labels)?)?;
            }
        }
        let help = "Time from a command's arrival to its status";
        let unit = Some(&prometheus_client::registry::Unit::Seconds);
        let mut family = out.encode_descriptor("disk_command", help, unit, MetricType::Histogram)?;
        for (labels, totals) in &self.disks {
            histogram(family.encode_family(labels)?, &totals.io)?;
        }
        Ok(())
    }
}

fn gauge(encoder: MetricEncoder<'_>, value: u64) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
}

fn histogram(mut encoder: MetricEncoder<'_>, io: &IoCounters) -> fmt::Result {
    let last = io.latency_us.len().saturating_sub(1);
    let buckets: Vec<(f64, u64)> = (io.latency_us.iter().enumerate())
        .map(|(n, count)| {
            let below = if n == last {
                f64::INFINITY
            } else {
                f64::from(u32::try_from(n).unwrap_or(u32::MAX)).exp2() / 1e6
            };
            (below, *count)
        })
        .collect();
    let sum = io.latency_us_total as f64 / 1e6;
    encoder.encode_histogram::<Labels>(sum, io.latency_us.iter().sum(), &buckets, None)
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::TargetId;

    use super::*;

    fn connection(target: &ResourceId, initiator: &str, read: u64) -> Connection {
        Connection {
            target: target.clone(),
            initiator: initiator.to_owned(),
            peer: None,
            since: None,
            bytes_read: read,
            bytes_written: 1,
            commands: 3,
            io: Some(IoCounters {
                reads: 2,
                latency_us: vec![1, 0, 2],
                latency_us_total: 1500,
                ..IoCounters::default()
            }),
        }
    }

    #[test]
    fn a_series_comes_once_and_names_are_escaped() {
        let manual = ResourceId::manual(TargetId::generate());
        let names = Names {
            manual: BTreeMap::from([(manual.clone(), "a\"b".to_owned())]),
            machines: BTreeMap::new(),
        };
        let disks = by_disk(&[connection(&manual, "iqn.x:a", 10), connection(&manual, "iqn.x:b", 5)], &names);
        let text = render(
            &Registry::default(),
            Scrape {
                sessions: Some(SessionCounts::default()),
                online: 1,
                serving: true,
                log_lines_lost: 7,
                disks,
            },
        )
        .unwrap();
        let labels = r#"machine="",target="a\"b",initiator="""#;
        for line in [
            format!("ggnet_disk_read_bytes_total{{{labels}}} 15"),
            format!("ggnet_disk_reads_total{{{labels}}} 4"),
            format!("ggnet_disk_connections{{{labels}}} 2"),
            format!("ggnet_disk_command_seconds_bucket{{le=\"0.000001\",{labels}}} 2"),
            format!("ggnet_disk_command_seconds_bucket{{le=\"+Inf\",{labels}}} 6"),
            format!("ggnet_disk_command_seconds_sum{{{labels}}} 0.003"),
            "ggnet_sessions{state=\"active\"} 0".to_owned(),
            "ggnet_online_sessions 1".to_owned(),
            "ggnet_log_lines_lost_total 7".to_owned(),
        ] {
            assert_eq!(text.lines().filter(|l| **l == line).count(), 1, "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
