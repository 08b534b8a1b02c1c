//! HTTP connections: accepted, counted by source, and ended when nothing comes of them.
//!
//! ```text
//!  accept ──▶ a place ──▶ a whole request header in time ──▶ route ──▶ answer ─┐
//!                 ▲                                                           │ keep-alive
//!                 └──────────────── idle ◀────────────────────────────────────┘
//! ```
//!
//! Invariants: no connection lives on without a request for longer than [`FIRST_HEADER`] and [`HEADER`]; a peer that vanished is noticed by TCP, also where it
//! owes us the reading of an answer. When all places are taken a newcomer gets that of an idle connection: of the source that has most among
//! those with an idle one, and there of the one that has been idle longest. It is turned away only where none is idle. So HTTP never has more
//! than [`CONNECTIONS`] descriptors, and one source cannot keep the others out.

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

/// Connections at once, and from one source.
const CONNECTIONS: usize = 1024;
const FROM_ONE_SOURCE: usize = 256;
/// From the connection to its first whole request header.
const FIRST_HEADER: Duration = Duration::from_secs(10);
/// From an answer to the next whole request header. Clients keep connections for a while.
const HEADER: Duration = Duration::from_secs(60);
/// Most bytes of a request that are held before its handler takes them, its whole header among them. Hyper's own limit, some 400 KiB, lets a
/// thousand unfinished headers hold 400 MiB.
const REQUEST_BUFFER: usize = 32 << 10;
/// How long TCP waits for a peer to take what was sent, and between signs of life.
const UNHEARD: Duration = Duration::from_secs(60);
/// Pause after an `accept` that failed for lack of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who serves the connections, and which there are.
pub(crate) struct Connections {
    router: Router,
    places: Arc<Places>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// Lines of the log about connections that could not be accepted.
    failures: LogBudget,
}

impl Connections {
    /// Of a server that stops when `stopping` is cancelled.
    pub(crate) fn new(router: Router, stopping: CancellationToken) -> Self {
        let failures = LogBudget::new(1);
        Self { router, places: Arc::default(), tasks: TaskTracker::new(), stopping, failures }
    }

    /// Accepts connections until the stop. Dropped or panicked half-way: those that there are go on, and the listener stays open.
    pub(crate) async fn accept(&self, listener: &TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = self.places.take(peer.ip().to_canonical()) else {
                        // Closed by being dropped: every connection there is has a request under way.
                        tracing::debug!(%peer, "HTTP connection refused: too many");
                        continue;
                    };
                    let connection =
                        connection(stream, peer, self.router.clone(), place, self.stopping.clone());
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

    /// Waits until the requests under way are answered; nothing must be accepted any more.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    place: Arc<Place>,
    stopping: CancellationToken,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, %error, "socket options");
    }
    // A connection that died already has no local address; its answer goes nowhere.
    let local = stream.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
    let endpoints = Endpoints::new(local, peer);
    let (go, state) = (place.go.clone(), Arc::clone(&place.state));
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, busy) = (router.clone(), Busy::new(&place));
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
    let keepalive = TcpKeepalive::new().with_time(UNHEARD).with_interval(UNHEARD / 6).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    // A peer that stops reading: its window stays shut, and no answer may wait for ever.
    socket.set_tcp_user_timeout(Some(UNHEARD))
}

/// All connections, by source and in the order of their coming.
#[derive(Debug, Default)]
struct Places {
    next: AtomicU64,
    open: Mutex<HashMap<IpAddr, Vec<Arc<State>>>>,
}

/// What is known of a connection.
#[derive(Debug)]
struct State {
    /// Asks it to make room.
    go: CancellationToken,
    /// Whether a request has come.
    asked: AtomicBool,
    /// When it last became idle, as a number that only grows; none while it has a request.
    idle_since: Mutex<Option<u64>>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    source: IpAddr,
    state: Arc<State>,
    go: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step under these locks leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    fn now(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, source: IpAddr) -> Option<Arc<Place>> {
        let mut open = lock(&self.open);
        let (own, all) = (open.get(&source).map_or(0, Vec::len), open.values().map(Vec::len).sum::<usize>());
        if own >= FROM_ONE_SOURCE || all >= CONNECTIONS {
            // Of all that are idle and not only of the source that has most: that one's may all be busy.
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
        Some(Arc::new(Place { places: Arc::clone(self), source, state, go }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.places.open);
        if let Some(own) = open.get_mut(&self.source) {
            own.retain(|state| !Arc::ptr_eq(state, &self.state));
            if own.is_empty() {
                open.remove(&self.source);
            }
        }
    }
}

/// A request under way: its connection keeps its place.
struct Busy(Arc<Place>);

impl Busy {
    fn new(place: &Arc<Place>) -> Self {
        place.state.asked.store(true, Ordering::Relaxed);
        *lock(&place.state.idle_since) = None;
        Self(Arc::clone(place))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.0.state.idle_since) = Some(self.0.places.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn a_source_with_many_makes_room_by_what_was_idle_longest() {
        let places = Arc::new(Places::default());
        let first = places.take(from(1)).unwrap();
        let second = places.take(from(1)).unwrap();
        let request = Busy::new(&first);
        let mut others: Vec<_> = (2..FROM_ONE_SOURCE).map(|_| places.take(from(1)).unwrap()).collect();
        assert!(!second.go.is_cancelled());
        others.push(places.take(from(1)).unwrap());
        assert!(second.go.is_cancelled() && !first.go.is_cancelled(), "the one with a request stays");
        drop(request);
        // Idle again, but not for long.
        others.push(places.take(from(1)).unwrap());
        assert!(!first.go.is_cancelled() && others[0].go.is_cancelled());
        assert!(places.take(from(2)).is_some_and(|p| !p.go.is_cancelled()), "others are not concerned");
    }

    #[test]
    fn a_newcomer_gets_an_idle_place_while_the_source_with_most_has_none() {
        let places = Arc::new(Places::default());
        let take = |source, count| (0..count).map(|_| places.take(from(source)).unwrap()).collect::<Vec<_>>();
        let most = take(0, FROM_ONE_SOURCE);
        let _busy: Vec<_> = most.iter().map(Busy::new).collect();
        let others: Vec<_> =
            (1..=4).flat_map(|source| take(source, (CONNECTIONS - FROM_ONE_SOURCE) / 4)).collect();
        let newcomer = places.take(from(9)).unwrap();
        assert!(others[0].go.is_cancelled() && !newcomer.go.is_cancelled(), "it was idle longest");
        assert!(places.take(from(0)).is_none(), "who has all that one source may makes room of its own");
    }

    #[test]
    fn all_together_have_so_many_and_who_has_a_request_is_never_cut_off() {
        let places = Arc::new(Places::default());
        let mut all = Vec::new();
        for source in 0..4 {
            for _ in 0..FROM_ONE_SOURCE {
                all.push(places.take(from(source)).unwrap());
            }
        }
        let one = places.take(from(9)).unwrap();
        assert_eq!(all.iter().filter(|p| p.go.is_cancelled()).count(), 1);
        let busy: Vec<_> = all.iter().chain([&one]).map(Busy::new).collect();
        assert!(places.take(from(8)).is_none());
        drop((busy, all, one));
        assert!(lock(&places.open).is_empty());
    }
}
