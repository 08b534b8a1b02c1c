//! Serving: from a configuration to a running server, until it is told to stop.
//!
//! Order of the start: lock the data folder → bind HTTP → compare what listens where → store, whose instance is compared → backends (iSCSI
//! binds) → orchestrator → token → serve. Whatever fails says what and leaves nothing behind. Order of the stop: no new HTTP requests →
//! those under way are answered → orchestrator's tasks → backends.

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
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// The orchestrator it serves.
    pub orchestrator: Orchestrator,
    /// The administrator token, when this start made it. It is valid at once, and after this server only once
    /// [`keep_token`](Self::keep_token) has stored its hash.
    pub new_token: Option<Secret>,
    token: TokenHash,
    clock: Arc<dyn Clock>,
    store: Arc<dyn Store>,
    stopping: CancellationToken,
    connections: Arc<Connections>,
    long_lived: Arc<Supervisor>,
    // Last, so that the lock outlives everything.
    _data: DataDir,
}

impl Server {
    /// Starts everything. When it returns, HTTP is served; logins follow after the first reconcile.
    pub async fn start(config: &Config, registry: &Registry) -> Result<Self> {
        let data = DataDir::lock(&config.data_dir)?;
        let listener = bind(config.http.listen).await?;
        let address =
            listener.local_addr().map_err(|e| Error::io("asking for the HTTP server's address", e))?;
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

    /// Stores the hash of the administrator token that this start made: it was shown to somebody. Nothing to do if there was one.
    pub async fn keep_token(&self) -> Result<()> {
        if self.new_token.is_none() {
            return Ok(());
        }
        let by = Principal::system(SystemPart::Upkeep);
        self.token.store(self.store.as_ref(), &by, self.clock.now()).await
    }

    /// Stops: answers what is under way, finishes orchestrations, flushes disks, closes. Whatever hangs, it ends within 80 s with the
    /// default limits: 3 s for HTTP, 15 s for orchestrations (`session.shutdown_deadline`), and the limits of the ports to close, 62 s in
    /// all.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.long_lived.stop().await;
        // A client that keeps its request open must not keep the server up.
        if tokio::time::timeout(Duration::from_secs(3), self.connections.finished()).await.is_err() {
            tracing::info!("HTTP requests are left unanswered");
        }
        self.orchestrator.shutdown().await;
    }
}

/// The administrator token, made now if there is none, and not stored yet.
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
            .with_hint("Stop that program, or set another address with --http-listen; below 1024 run `sudo setcap cap_net_bind_service=+ep $(command -v ggnet-server)`")
    })
}

/// `ggnet-server serve`.
pub async fn serve(config: Config, registry: &Registry) -> Result<()> {
    let _logging = log::start(&config.log)?;
    let mut stop = Stop::catch()?;
    host::raise_open_files();
    let server = tokio::select! {
        started = Server::start(&config, registry) => started?,
        // A start that hangs is given up as a crash would end it: the next one takes over what it made.
        () = stop.wait() => {
            tracing::info!("stopped before the start had ended");
            return Ok(());
        }
    };
    tracing::info!(http = %server.http, data = %config.data_dir.display(), "serving");
    if let Some(token) = &server.new_token {
        // To the terminal, not to the log. Shown before it counts: what nobody could read is made anew by the next start.
        let shown = say(&format!(
            "The administrator token, shown only now:\n\n    {}\n\nUse it with: ggnet login --server http://{}",
            token.expose(),
            server.http
        ));
        let kept = match shown {
            Ok(()) => server.keep_token().await,
            Err(e) => Err(e.with_hint(
                "The administrator token is shown on standard output at the first start: let it be read",
            )),
        };
        if let Err(e) = kept {
            server.stop().await;
            return Err(e);
        }
    }
    say_what_is_off(&config);
    // No socket of systemd's is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    stop.wait().await;
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.stop().await;
    tracing::info!("stopped");
    Ok(())
}

fn say_what_is_off(config: &Config) {
    let files = host::open_files(WANTED_FILES);
    if files.level != Level::Ok {
        tracing::warn!(mend = files.mend, "too few files may be open for a room: {}", files.why);
    }
    if config.network.interfaces.is_empty() {
        tracing::info!(
            "DHCP and TFTP answer on no network; `--interface IF` (or `network.interfaces`) switches them on"
        );
    }
    if config.http.listen.ip().is_loopback() {
        tracing::info!(
            "HTTP is reached from this machine only; `--http-listen 0.0.0.0:8080` opens it, and iSCSI with it"
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
    // Shown before it counts: when nobody can read it the old one stays.
    let done = match say(token.expose()) {
        Ok(()) => hash.store(store.as_ref(), &Principal::host(), wiring.clock.now()).await,
        Err(e) => Err(e),
    };
    store.shutdown().await;
    done
}

/// " (held by nginx, process 123)", when that can be found out.
fn holder_of(address: SocketAddr) -> String {
    let holders = holders(Transport::Tcp, address.ip(), address.port()).unwrap_or_default();
    let one = holders.iter().find_map(|h| Some((h.command.as_deref()?, h.pid?)));
    one.map_or_else(String::new, |(command, pid)| format!(" (held by {command}, process {pid})"))
}
