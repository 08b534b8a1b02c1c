//! The running server: start, serve, stop.
//!
//! Order of the start: lock the data folder → bind HTTP → check for colliding sockets → store, and compare its instance id → backends
//! (iSCSI binds) → orchestrator → token → serve. A failed start leaves nothing behind. Order of the stop: reject new HTTP requests → wait
//! for requests in flight → tasks of the orchestrator → backends.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ggnet_backends::{
    addresses::Addresses,
    host::{self, Level, Transport, holders},
};
use ggnet_core::{
    Error, Result,
    metrics::Registry as Metrics,
    nouns::{Principal, Secret, SystemPart},
    orchestrator::Orchestrator,
    ports::{Clock, Store},
    registry::Registry,
    supervisor::Supervisor,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    check::WANTED_FILES,
    config::Config,
    data_dir::DataDir,
    http::{Advertise, App, Connections, METRICS_PREFIX, count_commits, router},
    image_files::ImageFiles,
    instance::Instance,
    log,
    say::say,
    signals::Stop,
    sockets,
    token::TokenHash,
    wiring,
};

/// A running server; for embedding and tests.
pub struct Server {
    /// The address of HTTP.
    pub http: SocketAddr,
    /// The orchestrator it serves.
    pub orchestrator: Orchestrator,
    /// The administrator token, if this start created it. It is valid at once; later servers accept it only if
    /// [`keep_token`](Self::keep_token) has stored its hash.
    pub new_token: Option<Secret>,
    token: TokenHash,
    clock: Arc<dyn Clock>,
    store: Arc<dyn Store>,
    stopping: CancellationToken,
    connections: Arc<Connections>,
    long_lived: Arc<Supervisor>,
    // The last field, so that the lock is released last.
    _data: DataDir,
}

impl Server {
    /// Starts everything. When it returns, HTTP is served; logins are served after the first reconciliation.
    pub async fn start(config: &Config, registry: &Registry) -> Result<Self> {
        let data = DataDir::lock(&config.data_dir)?;
        let listener = bind(config.http.listen).await?;
        let address = listener.local_addr().map_err(|e| Error::io("reading the HTTP server's address", e))?;
        let instance = Instance::read(data.path()).await?;
        let wiring = wiring::wiring(config, registry, data.path(), instance.id().clone(), address.port())?;
        let sockets = sockets::all(config, registry, &wiring)?;
        if let Some(e) = sockets::collisions(config, &sockets).into_iter().next() {
            return Err(e);
        }
        if let Some(why) = sockets::iscsi_out_of_reach(config, &sockets) {
            tracing::warn!("{why}");
        }
        let store = wiring::store(config, registry, &wiring).await?;
        if let Err(e) = instance.settle(store.as_ref(), wiring.clock.now()).await {
            store.shutdown().await;
            return Err(e);
        }
        let mut metrics = Metrics::with_prefix(METRICS_PREFIX);
        let (orchestrator, store) =
            wiring::orchestrator(config, registry, &wiring, store, &mut metrics).await?;
        count_commits(Arc::clone(&store), &mut metrics);
        let (new_token, token) = match token(store.as_ref()).await {
            Ok(token) => token,
            Err(e) => {
                orchestrator.shutdown().await;
                return Err(e);
            }
        };
        let stopping = CancellationToken::new();
        let long_lived = Arc::new(Supervisor::new(stopping.clone()));
        let addresses = Addresses::watch("HTTP", &[address], &long_lived);
        let app = App {
            long_lived: Arc::clone(&long_lived),
            addresses,
            interfaces: sockets::unwatched(config, &sockets),
            image_files: ImageFiles::watch(&orchestrator, &long_lived),
            orchestrator: orchestrator.clone(),
            token: token.clone(),
            advertise: Advertise { address: config.network.advertise, http_port: address.port() },
            import_dirs: config.import_dirs(),
            metrics,
            stopping: stopping.clone(),
        };
        let connections = Arc::new(Connections::new(router(app), stopping.clone()));
        let (accepting, listener) = (Arc::clone(&connections), Arc::new(listener));
        long_lived.keep(format!("the HTTP accept loop of {address}"), move || {
            let (accepting, listener) = (Arc::clone(&accepting), Arc::clone(&listener));
            async move { accepting.accept(&listener).await }
        });
        let clock = wiring.clock.clone();
        Ok(Self {
            http: address,
            orchestrator,
            new_token,
            token,
            clock,
            store,
            stopping,
            connections,
            long_lived,
            _data: data,
        })
    }

    /// Stores the hash of the new administrator token; call it after the token was shown. Does nothing if this start created none.
    pub async fn keep_token(&self) -> Result<()> {
        if self.new_token.is_none() {
            return Ok(());
        }
        let by = Principal::system(SystemPart::Upkeep);
        self.token.store(self.store.as_ref(), &by, self.clock.now()).await
    }

    /// Stops: completes requests and orchestrations in flight, flushes disks, closes backends. Even if a backend hangs, it ends within 85 s
    /// with the default limits: 3 s for HTTP, 15 s for orchestrations (`session.shutdown_deadline`), and 67 s in total for the ports to
    /// close.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.long_lived.stop().await;
        // A client that keeps its request open must not delay the stop further.
        if tokio::time::timeout(Duration::from_secs(3), self.connections.finished()).await.is_err() {
            tracing::info!("some HTTP requests did not complete before the stop");
        }
        self.orchestrator.shutdown().await;
    }
}

/// Loads the hash of the administrator token, or creates a token that is not stored yet.
async fn token(store: &dyn Store) -> Result<(Option<Secret>, TokenHash)> {
    if let Some(hash) = TokenHash::load(store).await? {
        return Ok((None, hash));
    }
    let (token, hash) = TokenHash::generate()?;
    Ok((Some(token), hash))
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let holder = holder_of(address);
        Error::io(format!("binding HTTP to {address}{holder}"), e)
            .with_hint("Stop that program, or set another address with --http-listen; for a port below 1024 run `sudo setcap cap_net_bind_service=+ep $(command -v ggnet-server)`")
    })
}

/// `ggnet-server serve`.
pub async fn serve(config: Config, registry: &Registry) -> Result<()> {
    let _logging = log::start(&config.log)?;
    let mut stop = Stop::catch()?;
    host::raise_open_files();
    let server = tokio::select! {
        started = Server::start(&config, registry) => started?,
        // A start that hangs is aborted as by a crash; the next start takes over what it made.
        () = stop.wait() => {
            tracing::info!("stopped before the start was complete");
            return Ok(());
        }
    };
    tracing::info!(http = %server.http, data = %config.data_dir.display(), "serving");
    if let Some(token) = &server.new_token {
        // Printed on the terminal, not in the log, and before it is stored: if nobody could read it, the next start creates a new one.
        let shown = say(&format!(
            "The administrator token, printed only once:\n\n    {}\n\nUse it with: ggnet login --server http://{}",
            token.expose(),
            server.http
        ));
        let kept = match shown {
            Ok(()) => server.keep_token().await,
            Err(e) => Err(e.with_hint(
                "The first start prints the administrator token on standard output: make sure that it can be written",
            )),
        };
        if let Err(e) = kept {
            server.stop().await;
            return Err(e);
        }
    }
    log_limits(&config);
    // Not started by systemd: no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    stop.wait().await;
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// Logs what this configuration does not serve, and a too low limit of open files.
fn log_limits(config: &Config) {
    let files = host::open_files(WANTED_FILES);
    if files.level != Level::Ok {
        tracing::warn!(mend = files.mend, "the limit of open files is too low for a room: {}", files.why);
    }
    if config.network.interfaces.is_empty() {
        tracing::info!(
            "DHCP and TFTP are not served; enable them with `--interface IF` (or `network.interfaces`)"
        );
    }
    if config.http.listen.ip().is_loopback() {
        tracing::info!(
            "HTTP can be reached only from this machine; open it, and iSCSI with it, with `--http-listen 0.0.0.0:8080`"
        );
    }
}

/// `ggnet-server token reset`.
pub async fn reset_token(config: &Config, registry: &Registry) -> Result<()> {
    let data = DataDir::lock(&config.data_dir)?;
    let instance = Instance::read(data.path()).await?;
    let http_port = config.http.listen.port();
    let wiring = wiring::wiring(config, registry, data.path(), instance.id().clone(), http_port)?;
    let store = wiring::store(config, registry, &wiring).await?;
    let (token, hash) = TokenHash::generate()?;
    // Printed before it is stored: if it cannot be printed, the old token stays valid.
    let done = match say(token.expose()) {
        Ok(()) => hash.store(store.as_ref(), &Principal::host(), wiring.clock.now()).await,
        Err(e) => Err(e),
    };
    store.shutdown().await;
    done
}

/// " (held by nginx, process 123)", or nothing if the holder is unknown.
fn holder_of(address: SocketAddr) -> String {
    let holders = holders(Transport::Tcp, address.ip(), address.port()).unwrap_or_default();
    let one = holders.iter().find_map(|h| Some((h.command.as_deref()?, h.pid?)));
    one.map_or_else(String::new, |(command, pid)| format!(" (held by {command}, process {pid})"))
}
