//! What strangers on the network, and a guest, do to a server: one function for each kind, in rounds, from many made-up addresses.
//!
//! They run in the namespace of a [`Crowd`](crate::Crowd), each kind in a process of its own. A round sends its whole number and says
//! so in one line; what it has opened stays open for the kind's pause. Refusals are no error: being refused is what should happen.

mod datagrams;
mod http;
mod iscsi;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// The addresses that the crowd makes up (RFC 5737).
pub const SOURCES: &str = "198.51.100.0/24";
/// The crowd's own address, by which its sources are reached.
pub const PORTAL: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 200);
/// The server: [`lan::SERVER`](crate::lan::SERVER).
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// Ends a connection attempt that would never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom it is aimed at.
#[derive(Debug, Clone)]
pub struct Aims {
    /// The MAC address of a registered machine in whose name strangers ask.
    pub flooded: String,
    /// The MAC address of a registered machine whose user is hostile.
    pub guest: String,
    /// A target that asks for no credential.
    pub open_target: String,
}

/// One way to be hostile.
#[derive(Debug)]
pub struct Kind {
    /// Its name, for command lines and reports.
    pub name: &'static str,
    /// How long a round keeps what it has opened before the next one begins.
    pause: Duration,
    round: for<'a> fn(&'a Aims, u8) -> Pending<'a>,
}

type Pending<'a> = Pin<Box<dyn Future<Output = Result<Round>> + Send + 'a>>;

/// A round that has been sent.
struct Round {
    /// What was sent, and what of it is open now.
    sent: String,
    /// What is open; dropped, it closes.
    _open: Vec<Box<dyn Send>>,
}

impl Round {
    fn new<T: Send + 'static>(sent: String, open: Vec<T>) -> Self {
        Self { sent, _open: open.into_iter().map(|o| Box::new(o) as Box<dyn Send>).collect() }
    }
}

const fn kind(name: &'static str, seconds: u64, round: for<'a> fn(&'a Aims, u8) -> Pending<'a>) -> Kind {
    Kind { name, pause: Duration::from_secs(seconds), round }
}

/// Every kind.
pub static KINDS: [Kind; 9] = [
    kind("tftp-unanswered", 5, |_, _| Box::pin(datagrams::reads_never_acknowledged())),
    kind("tftp-refused", 2, |_, _| Box::pin(datagrams::reads_to_refuse())),
    kind("dhcp-architectures", 2, |aims, _| Box::pin(datagrams::discovers(&aims.flooded))),
    kind("discovery", 15, |_, _| Box::pin(iscsi::discovery_sessions())),
    kind("half-logins", 10, |_, _| Box::pin(iscsi::half_logins())),
    kind("copies", 30, |aims, _| Box::pin(iscsi::copies(&aims.guest))),
    kind("verifies", 30, |aims, _| Box::pin(iscsi::verifies(&aims.open_target))),
    kind("pipelined-scripts", 5, |aims, n| Box::pin(http::pipelined_scripts(&aims.flooded, n))),
    kind("half-requests", 10, |_, n| Box::pin(http::half_requests(n))),
];

impl Kind {
    /// Round after round, for ever; a line on standard output for each.
    ///
    /// # Errors
    /// A round could not be sent, which is this host's fault and not the server's.
    pub async fn run(&self, aims: &Aims) -> Result<()> {
        for n in (0..=u8::MAX).cycle() {
            let round = (self.round)(aims, n).await?;
            println!("round {n}: {}", round.sent);
            tokio::time::sleep(self.pause).await;
        }
        Ok(())
    }
}

/// A made-up address.
fn source(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, n)
}

/// A connection from a made-up address.
async fn connect(source: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    let stream = tokio::time::timeout(PATIENCE, socket.connect((SERVER, port).into())).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// How many connections that are not waited for are made at the same time. A handful: when the queue of those that wait to be accepted is
/// full, the kernel drops what comes, and with hundreds that try again nobody else would ever find it with room. That is the kernel's limit
/// and not the server's.
const UNHEARD: usize = 4;
/// And of those that wait for the server's answer.
const HEARD: usize = 64;

/// Does them all, so many at the same time; what could not be had is left out.
async fn all<T: Send + 'static>(
    at_once: usize,
    tasks: impl Iterator<Item = impl Future<Output = Option<T>> + Send + 'static>,
) -> Vec<T> {
    let (mut running, mut had) = (JoinSet::new(), Vec::new());
    for task in tasks {
        if running.len() == at_once {
            had.extend(running.join_next().await.and_then(Result::ok).flatten());
        }
        running.spawn(task);
    }
    had.extend(running.join_all().await.into_iter().flatten());
    had
}
