//! Wiring: makes the backends and the orchestrator from a configuration and a registry.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ggnet_core::{
    Error, Result,
    boot_text::templates::BootTemplates,
    metrics::Registry as Metrics,
    nouns::InstanceId,
    orchestrator::{Backends, Orchestrator, OrchestratorConfig, Ports},
    ports::Store,
    registry::{About, PortName, Registry, Wiring},
};

use crate::config::Config;

/// The settings that are the same for all backends.
pub fn wiring(
    config: &Config,
    registry: &Registry,
    data_dir: &Path,
    instance: InstanceId,
    http_port: u16,
) -> Result<Wiring> {
    let mut wiring = Wiring::new(instance, config.iqn_prefix()?, data_dir.to_owned());
    wiring.advertise = config.network.advertise;
    wiring.http_port = http_port;
    wiring.listen = reached_at(config);
    wiring.interfaces.clone_from(&config.network.interfaces);
    wiring.backends =
        PortName::ALL.into_iter().map(|port| (port, config.section(port).backend.clone())).collect();
    // A backend that does not exist is refused elsewhere.
    let boot_files = registry.about(PortName::BootFiles, &config.boot_files.backend);
    wiring.mac_paths = boot_files.map_or(true, About::serves_mac_paths);
    Ok(wiring)
}

/// The address to listen on for machines: all addresses if a network is named, else that of HTTP, because a machine looks for its disk
/// where it got its script.
fn reached_at(config: &Config) -> IpAddr {
    let http = config.http.listen.ip();
    if !config.network.interfaces.is_empty() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else if http.is_loopback() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        http
    }
}

/// Makes the store alone; also used by `token reset`.
pub async fn store(config: &Config, registry: &Registry, wiring: &Wiring) -> Result<Arc<dyn Store>> {
    registry.stores.make(&config.store.backend, wiring.clone(), config.store.settings.clone()).await
}

/// The backends made so far, and how to shut them down.
#[derive(Default)]
struct Made(Vec<(&'static str, End)>);

/// Shuts a backend down.
type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How long a backend may take to close after a start that failed.
const CLOSE: Duration = Duration::from_secs(10);

impl Made {
    fn note(&mut self, port: &'static str, end: impl Future<Output = ()> + Send + 'static) {
        self.0.push((port, Box::pin(end)));
    }

    /// Shuts all down, the last one first.
    async fn shutdown(self) {
        for (port, end) in self.0.into_iter().rev() {
            if tokio::time::timeout(CLOSE, end).await.is_err() {
                tracing::warn!(port, "a backend did not close within {CLOSE:?}");
            }
        }
    }
}

macro_rules! made {
    ($made:ident, $port:literal, $backend:expr) => {{
        let (backend, ending) = (Arc::clone(&$backend), $backend);
        $made.note($port, async move { ending.shutdown().await });
        backend
    }};
}

/// Makes all backends, refuses a store that does not belong to the data folder, and makes the orchestrator. Registers metrics in `metrics`.
/// Also returns the store, wrapped with the limits of its port, for the server's own settings. On an error all backends made so far are
/// shut down, including `store`.
pub async fn orchestrator(
    config: &Config,
    registry: &Registry,
    wiring: &Wiring,
    store: Arc<dyn Store>,
    metrics: &mut Metrics,
) -> Result<(Orchestrator, Arc<dyn Store>)> {
    let mut made = Made::default();
    let done = build(config, registry, wiring, store, metrics, &mut made).await;
    if done.is_err() {
        made.shutdown().await;
    }
    done
}

async fn build(
    config: &Config,
    registry: &Registry,
    wiring: &Wiring,
    store: Arc<dyn Store>,
    metrics: &mut Metrics,
    made: &mut Made,
) -> Result<(Orchestrator, Arc<dyn Store>)> {
    let store = made!(made, "store", store);
    // Any user may put files to import there.
    for dir in &config.import_dirs() {
        let made = tokio::fs::DirBuilder::new().recursive(true).mode(0o777).create(dir).await;
        made.map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
    }
    let limits = config.port_limits()?;
    let (c, w) = (config, || wiring.clone());
    let target = registry.targets.make(&c.target.backend, w(), c.target.settings.clone()).await?;
    let target = made!(made, "target", target);
    let images = registry.images.make(&c.images.store.backend, w(), c.images.store.settings.clone()).await?;
    let images = made!(made, "images", images);
    let writeback = registry.writebacks.make(&c.writeback.backend, w(), c.writeback.settings.clone()).await?;
    let writeback = made!(made, "writeback", writeback);
    let dhcp = registry.dhcp.make(&c.dhcp.backend, w(), c.dhcp.settings.clone()).await?;
    let dhcp = made!(made, "dhcp", dhcp);
    let boot_files =
        registry.boot_files.make(&c.boot_files.backend, w(), c.boot_files.settings.clone()).await?;
    let boot_files = made!(made, "boot_files", boot_files);
    let converter = registry.converters.make(&c.converter.backend, w(), c.converter.settings.clone()).await?;
    let clock = wiring.clock.clone();
    let backends = Backends { store, target, writeback, images, dhcp, boot_files, converter, clock };
    let ports = Ports::new(backends, &limits, metrics)?;
    ports.check_store().await?;
    let guarded = Arc::clone(ports.store());
    let mut settings = OrchestratorConfig::new(wiring.instance.clone())?;
    settings.iqn_prefix = wiring.iqn_prefix.clone();
    settings.chap = c.session.chap;
    settings.idle_timeout = c.session.idle_timeout;
    settings.generation_ttl = c.session.generation_ttl;
    settings.start_deadline = c.session.start_deadline;
    settings.shutdown_deadline = c.session.shutdown_deadline;
    settings.reconcile_interval = c.session.reconcile_interval;
    settings.retention = c.session.retention;
    settings.jobs_at_once = c.jobs.at_once;
    settings.script_deadline = c.session.script_deadline;
    settings.chain_url = match wiring.advertise {
        Some(address) => {
            Some(format!("http://{}", std::net::SocketAddr::new(address, wiring.http_port)).parse()?)
        }
        None => None,
    };
    let templates = BootTemplates::load(c.templates_dir.as_deref())?;
    Ok((Orchestrator::new(ports, settings, templates)?, guarded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_listen_where_http_was_opened_unless_a_network_is_named() {
        let reached = |text: &str| reached_at(&Config::parse(text, "x").unwrap()).to_string();
        assert_eq!(reached(""), "127.0.0.1");
        assert_eq!(reached("[http]\nlisten = \"[::1]:81\""), "127.0.0.1");
        assert_eq!(reached("[http]\nlisten = \"10.77.0.1:81\""), "10.77.0.1");
        assert_eq!(reached("[http]\nlisten = \"[::]:81\""), "::");
        assert_eq!(reached("[network]\ninterfaces = [\"eth7\"]"), "0.0.0.0");
    }

    #[test]
    fn a_boot_file_store_declares_whether_it_serves_paths_of_machines() {
        let mut registry = Registry::new();
        ggnet_backends::register(&mut registry);
        let mac_paths = |text: &str| {
            let config = Config::parse(text, "x").unwrap();
            wiring(&config, &registry, Path::new("/"), InstanceId::generate(), 80).unwrap().mac_paths
        };
        assert!(mac_paths(""));
        assert!(!mac_paths("[boot_files]\nbackend = \"tftpd-hpa\""));
    }
}
