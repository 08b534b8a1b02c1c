//! HTTP connections: accepted, limited by source, and closed when idle.
//!
//! ```text
//!  accept ──▶ slot ──▶ complete request header in time ──▶ route ──▶ response ─┐
//!               ▲                                                              │ keep-alive
//!               └──────────────── idle ◀───────────────────────────────────────┘
//! ```
//!
//! Invariants: no connection stays open without a request for longer than [`FIRST_HEADER`] or [`HEADER`]; TCP detects a lost peer, also one
//! that does not read its response. If all slots are in use, a new connection replaces an idle one: among the sources with an idle
//! connection that with the most connections, and there the one that has been idle longest. It is refused only if none is idle. So HTTP
//! never uses more than [`CONNECTIONS`] descriptors, and one source cannot lock out the others.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
};
use ggnet_iscsi::LogBudget;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::connection::Endpoints;

/// The most connections at once: in total, and from one source.
const CONNECTIONS: usize = 1024;
const FROM_ONE_SOURCE: usize = 256;
/// The time from the connection to its first complete request header.
const FIRST_HEADER: Duration = Duration::from_secs(10);
/// The time from a response to the next complete request header. Clients keep connections open for a while.
const HEADER: Duration = Duration::from_secs(60);
/// The most bytes of a request that are buffered before its handler reads them, including the header. With hyper's default, about 400 KiB, a
/// thousand incomplete headers could hold 400 MiB.
const REQUEST_BUFFER: usize = 32 << 10;
/// How long TCP waits for a peer to acknowledge data, and the idle time before keepalive probes.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after an `accept` that failed for lack of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All HTTP connections, and the router that serves them.
pub(crate) struct Connections {
    router: Router,
    slots: Arc<Slots>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// Limits the log lines about failed `accept` calls.
    failures: LogBudget,
}

impl Connections {
    /// Connections of a server that stops when `stopping` is cancelled.
    pub(crate) fn new(router: Router, stopping: CancellationToken) -> Self {
        let failures = LogBudget::new(1);
        Self { router, slots: Arc::default(), tasks: TaskTracker::new(), stopping, failures }
    }

    /// Accepts connections until the stop. If it is dropped or panics, existing connections continue and the listener stays open.
    pub(crate) async fn accept(&self, listener: &TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(slot) = self.slots.take(peer.ip().to_canonical()) else {
                        // Dropping the stream closes it: all other connections have a request in flight.
                        tracing::debug!(%peer, "HTTP connection refused: too many");
                        continue;
                    };
                    let connection =
                        connection(stream, peer, self.router.clone(), slot, self.stopping.clone());
                    #[expect(clippy::disallowed_methods, reason = "one connection, tracked")]
                    self.tasks.spawn(connection);
                }
                Err(error) => {
                    if let Some(left_out) = self.failures.line() {
                        tracing::warn!(%error, left_out, "accepting an HTTP connection failed");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits for the requests in flight; no more connections may be accepted.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    slot: Arc<Slot>,
    stopping: CancellationToken,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, %error, "socket options");
    }
    // A connection that is already closed has no local address; its response is lost anyway.
    let local = stream.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
    let endpoints = Endpoints::new(local, peer);
    let (go, state) = (slot.go.clone(), Arc::clone(&slot.state));
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, busy) = (router.clone(), Busy::new(&slot));
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(endpoints));
            let answer = router.oneshot(request).await;
            drop(busy);
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(REQUEST_BUFFER);
    let mut served = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let silent = async {
        tokio::time::sleep(FIRST_HEADER).await;
        if state.asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = silent => return tracing::debug!(%peer, "HTTP connection without a request"),
        () = go.cancelled() => return,
        () = stopping.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "HTTP connection");
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(PEER_TIMEOUT).with_interval(PEER_TIMEOUT / 6).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    // If the peer stops reading, its window stays closed; the response must not wait for ever.
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))
}

/// All connections, by source and in order of arrival.
#[derive(Debug, Default)]
struct Slots {
    next: AtomicU64,
    open: Mutex<HashMap<IpAddr, Vec<Arc<State>>>>,
}

/// The state of a connection.
#[derive(Debug)]
struct State {
    /// Cancelled to close the connection and free its slot.
    go: CancellationToken,
    /// Whether a request has arrived.
    asked: AtomicBool,
    /// When it became idle, as an increasing number; none while it has a request.
    idle_since: Mutex<Option<u64>>,
}

/// A connection's slot; freed when dropped.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    source: IpAddr,
    state: Arc<State>,
    go: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step under these locks leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    fn now(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, source: IpAddr) -> Option<Arc<Slot>> {
        let mut open = lock(&self.open);
        let (own, all) = (open.get(&source).map_or(0, Vec::len), open.values().map(Vec::len).sum::<usize>());
        if own >= FROM_ONE_SOURCE || all >= CONNECTIONS {
            // Consider the idle connections of all sources: those of the source with the most may all be busy.
            let (.., whose, at) = open
                .iter()
                .filter(|(whose, _)| own < FROM_ONE_SOURCE || **whose == source)
                .flat_map(|(whose, states)| {
                    states.iter().enumerate().filter_map(move |(at, state)| {
                        Some((states.len(), Reverse((*lock(&state.idle_since))?), *whose, at))
                    })
                })
                .max()?;
            open.get_mut(&whose)?.swap_remove(at).go.cancel();
        }
        let go = CancellationToken::new();
        let (asked, idle_since) = (AtomicBool::new(false), Mutex::new(Some(self.now())));
        let state = Arc::new(State { go: go.clone(), asked, idle_since });
        open.entry(source).or_default().push(Arc::clone(&state));
        drop(open);
        Some(Arc::new(Slot { slots: Arc::clone(self), source, state, go }))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = lock(&self.slots.open);
        if let Some(own) = open.get_mut(&self.source) {
            own.retain(|state| !Arc::ptr_eq(state, &self.state));
            if own.is_empty() {
                open.remove(&self.source);
            }
        }
    }
}

/// A request in flight: its connection keeps its slot.
struct Busy(Arc<Slot>);

impl Busy {
    fn new(slot: &Arc<Slot>) -> Self {
        slot.state.asked.store(true, Ordering::Relaxed);
        *lock(&slot.state.idle_since) = None;
        Self(Arc::clone(slot))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.0.state.idle_since) = Some(self.0.slots.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn a_source_with_many_connections_loses_the_one_idle_longest() {
        let slots = Arc::new(Slots::default());
        let first = slots.take(from(1)).unwrap();
        let second = slots.take(from(1)).unwrap();
        let request = Busy::new(&first);
        let mut others: Vec<_> = (2..FROM_ONE_SOURCE).map(|_| slots.take(from(1)).unwrap()).collect();
        assert!(!second.go.is_cancelled());
        others.push(slots.take(from(1)).unwrap());
        assert!(second.go.is_cancelled() && !first.go.is_cancelled(), "a connection with a request stays");
        drop(request);
        // Idle again, but only since now.
        others.push(slots.take(from(1)).unwrap());
        assert!(!first.go.is_cancelled() && others[0].go.is_cancelled());
        assert!(slots.take(from(2)).is_some_and(|p| !p.go.is_cancelled()), "other sources are not affected");
    }

    #[test]
    fn a_new_connection_gets_an_idle_slot_while_the_source_with_most_has_none() {
        let slots = Arc::new(Slots::default());
        let take = |source, count| (0..count).map(|_| slots.take(from(source)).unwrap()).collect::<Vec<_>>();
        let most = take(0, FROM_ONE_SOURCE);
        let _busy: Vec<_> = most.iter().map(Busy::new).collect();
        let others: Vec<_> =
            (1..=4).flat_map(|source| take(source, (CONNECTIONS - FROM_ONE_SOURCE) / 4)).collect();
        let new = slots.take(from(9)).unwrap();
        assert!(others[0].go.is_cancelled() && !new.go.is_cancelled(), "it was idle longest");
        assert!(
            slots.take(from(0)).is_none(),
            "a source at its own limit can replace only its own connections"
        );
    }

    #[test]
    fn all_sources_together_are_limited_and_a_connection_with_a_request_is_never_closed() {
        let slots = Arc::new(Slots::default());
        let mut all = Vec::new();
        for source in 0..4 {
            for _ in 0..FROM_ONE_SOURCE {
                all.push(slots.take(from(source)).unwrap());
            }
        }
        let one = slots.take(from(9)).unwrap();
        assert_eq!(all.iter().filter(|p| p.go.is_cancelled()).count(), 1);
        let busy: Vec<_> = all.iter().chain([&one]).map(Busy::new).collect();
        assert!(slots.take(from(8)).is_none());
        drop((busy, all, one));
        assert!(lock(&slots.open).is_empty());
    }
}
