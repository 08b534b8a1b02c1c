//! A UDP socket that reports the local address to which a datagram was sent, and that can respond from exactly that address.
//!
//! On a host with several addresses, a socket that is bound to the wildcard address would respond from the address that the route prefers,
//! and firmware drops a response from an address that it did not contact. `quinn-udp` does the IP_PKTINFO (RFC 3542 for IPv6) handling. It
//! also enables UDP GRO, so one receive may return several datagrams of one peer; they are returned one by one.
//!
//! Invariant: every future here is cancel-safe; a dropped `recv` does not lose a datagram that was not yet read from the kernel.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

#[cfg(feature = "dhcp-proxy")]
use quinn_udp::Transmit;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket};

/// Space for the largest batch that the kernel coalesces into one receive.
pub(crate) const RECEIVE_BUFFER: usize = 65_535;

/// The receive buffer that is requested from the kernel. Many machines that power on at once, or a flood, send faster than one task reads,
/// and what does not fit is lost before GGnet can distinguish machines from other senders. The kernel grants at most twice
/// `net.core.rmem_max`: by default 416 KiB, which is twice the size of an unconfigured socket.
const QUEUE: usize = 4 << 20;

/// A UDP socket that reports the local address of every datagram.
pub(crate) struct PktinfoSocket {
    io: UdpSocket,
    state: UdpSocketState,
}

/// A socket whose last receive failed; counted until this value is dropped.
pub(crate) struct Failing<'a>(&'a AtomicUsize);

impl<'a> Failing<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The received data: one or more datagrams of `stride` bytes (the last may be shorter).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// The sender.
    pub(crate) peer: SocketAddr,
    /// The local address that it was sent to; `None` if the kernel did not report it.
    pub(crate) local: Option<IpAddr>,
    len: usize,
    stride: usize,
}

impl Received {
    /// The datagrams, in order.
    pub(crate) fn datagrams<'a>(&self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        buffer[..self.len.min(buffer.len())].chunks(self.stride.max(1))
    }
}

impl PktinfoSocket {
    /// Takes over a bound socket. Must be called inside a tokio runtime.
    pub(crate) fn new(socket: socket2::Socket) -> io::Result<Self> {
        socket.set_recv_buffer_size(QUEUE)?;
        socket.set_nonblocking(true)?;
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        Ok(Self { io, state })
    }

    /// The local address that the socket is bound to.
    #[cfg(feature = "bootfile-builtin")]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Waits for the next datagrams.
    pub(crate) async fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut meta = [RecvMeta::default()];
        self.io
            .async_io(Interest::READABLE, || {
                let mut bufs = [IoSliceMut::new(buffer)];
                self.state.recv(UdpSockRef::from(&self.io), &mut bufs, &mut meta)
            })
            .await?;
        let [meta] = meta;
        Ok(Received { peer: meta.addr, local: meta.dst_ip, len: meta.len, stride: meta.stride })
    }

    /// Sends one datagram, from the address `from` if given.
    #[cfg(feature = "dhcp-proxy")]
    pub(crate) async fn send(&self, contents: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: from };
        self.io
            .async_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), &transmit))
            .await
    }
}
