//! Serving: from a configuration to a running server, until it is told to stop.
//!
//! Order of the start: lock the data folder → bind HTTP → store → backends (iSCSI binds) → orchestrator → token → serve. Whatever fails
//! says what and leaves nothing behind. Order of the stop: no new HTTP requests → those under way are answered → orchestrator's tasks →
//! backends.

use std::{io::IsTerminal as _, net::SocketAddr, time::Duration};

use ggnet_backends::host::{Transport, holders};
use ggnet_core::{
    Error, Result,
    nouns::{Secret, Timestamp},
    orchestrator::Orchestrator,
    ports::Store,
    registry::Registry,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, Log, LogFormat},
    data_dir::DataDir,
    http::{Advertise, App, Endpoints, router},
    token::TokenHash,
    wiring,
};

/// A running server; for embedding and tests.
pub struct Server {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// The orchestrator it serves.
    pub orchestrator: Orchestrator,
    /// The administrator token, when this start made it.
    pub new_token: Option<Secret>,
    stopping: CancellationToken,
    http_task: JoinHandle<std::io::Result<()>>,
    // Last, so that the lock outlives everything.
    _data: DataDir,
}

impl Server {
    /// Starts everything. When it returns, HTTP is served; logins follow after the first reconcile.
    pub async fn start(config: &Config, registry: &Registry) -> Result<Self> {
        let data = DataDir::lock(&config.data_dir)?;
        let listener = bind(config.http.listen).await?;
        let http = listener.local_addr().map_err(|e| Error::io("asking for the HTTP server's address", e))?;
        let wiring = wiring::wiring(config, &data, http.port()).await?;
        let store = wiring::store(config, registry, &wiring).await?;
        let orchestrator = wiring::orchestrator(config, registry, &wiring, store.clone()).await?;
        // After all that can fail: a token that is made in a start that fails would never be shown.
        let (new_token, token) = match token(store.as_ref(), wiring.clock.now()).await {
            Ok(token) => token,
            Err(e) => {
                orchestrator.shutdown().await;
                return Err(e);
            }
        };
        let stopping = CancellationToken::new();
        let app = App {
            orchestrator: orchestrator.clone(),
            token,
            advertise: Advertise { address: config.network.advertise, http_port: http.port() },
            import_dirs: config.import_dirs(),
            stopping: stopping.clone(),
        };
        let service = router(app).into_make_service_with_connect_info::<Endpoints>();
        let stop = stopping.clone();
        let http_task = tokio::spawn(async move {
            axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
        });
        Ok(Self { http, orchestrator, new_token, stopping, http_task, _data: data })
    }

    /// Stops: answers what is under way, finishes orchestrations, flushes disks, closes.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        // A client that keeps its request open must not keep the server up.
        if tokio::time::timeout(Duration::from_secs(3), &mut self.http_task).await.is_err() {
            self.http_task.abort();
        }
        self.orchestrator.shutdown().await;
    }
}

/// The administrator token, made now if there is none.
async fn token(store: &dyn Store, now: Timestamp) -> Result<(Option<Secret>, TokenHash)> {
    if let Some(hash) = TokenHash::load(store).await? {
        return Ok((None, hash));
    }
    let (token, hash) = TokenHash::reset(store, now).await?;
    Ok((Some(token), hash))
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let holder = holder_of(address);
        Error::io(format!("binding HTTP to {address}{holder}"), e)
            .with_hint("Stop that program, or set another address with --http-listen; below 1024 run `sudo setcap cap_net_bind_service=+ep $(command -v ggnet-server)`")
    })
}

/// `ggnet-server serve`.
pub async fn serve(config: Config, registry: &Registry) -> Result<()> {
    log(&config.log)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Error::io("catching SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Error::io("catching SIGINT", e))?;
    let server = Server::start(&config, registry).await?;
    tracing::info!(http = %server.http, data = %config.data_dir.display(), "serving");
    if let Some(token) = &server.new_token {
        // To the terminal, not to the log: shown once, stored nowhere.
        println!(
            "The administrator token, shown only now:\n\n    {}\n\nUse it with: ggnet login --server http://{}",
            token.expose(),
            server.http
        );
    }
    say_what_is_off(&config);
    // No socket of systemd's is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.stop().await;
    tracing::info!("stopped");
    Ok(())
}

fn say_what_is_off(config: &Config) {
    if config.network.interfaces.is_empty() {
        tracing::info!(
            "DHCP and TFTP answer on no network; `--interface IF` (or `network.interfaces`) switches them on"
        );
    }
    if config.http.listen.ip().is_loopback() {
        tracing::info!("HTTP is reached from this machine only; `--http-listen 0.0.0.0:8080` opens it");
    }
}

/// Log lines to standard error, as configured.
pub(crate) fn log(log: &Log) -> Result<()> {
    let level = log.level.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(level)
        .map_err(|e| Error::invalid("log.level", format!("{level:?} is not a log filter: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match log.format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|e| Error::internal(format!("The log could not be set up: {e}")))
}

/// `ggnet-server token reset`.
pub async fn reset_token(config: &Config, registry: &Registry) -> Result<()> {
    let data = DataDir::lock(&config.data_dir)?;
    let wiring = wiring::wiring(config, &data, config.http.listen.port()).await?;
    let store = wiring::store(config, registry, &wiring).await?;
    let (token, _) = TokenHash::reset(store.as_ref(), wiring.clock.now()).await?;
    store.shutdown().await;
    println!("{}", token.expose());
    Ok(())
}

/// " (held by nginx, process 123)", when that can be found out.
fn holder_of(address: SocketAddr) -> String {
    let holders = holders(Transport::Tcp, address.ip(), address.port()).unwrap_or_default();
    let one = holders.iter().find_map(|h| Some((h.command.as_deref()?, h.pid?)));
    one.map_or_else(String::new, |(command, pid)| format!(" (held by {command}, process {pid})"))
}
