//! [`Socket`]: where a backend listens, as its section of the configuration says, before anything is bound.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// The kind of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP; only listening sockets count.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Who binds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundBy {
    /// This process, exclusively: another program that uses the port keeps the server from starting.
    Us,
    /// This process, but another program of this host may use the port too.
    UsShared,
    /// A daemon of this host or the kernel, for the backend: it may already use the port.
    Other,
}

/// A socket that serves machines. The address `[::]` stands for IPv6 alone; a listener that takes both families has a second socket with
/// `0.0.0.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address; port 0: the system chooses one.
    pub at: SocketAddr,
    /// The interface that it is bound to, if it is bound to one. A backend that sets it reports in its health whether that interface
    /// carries packets.
    pub interface: Option<String>,
    /// Who binds it.
    pub bound_by: BoundBy,
    /// What it is for: `iSCSI`.
    pub why: &'static str,
}

impl Socket {
    /// A TCP socket that this process binds.
    #[must_use]
    pub const fn tcp(at: SocketAddr, why: &'static str) -> Self {
        Self { transport: Transport::Tcp, at, interface: None, bound_by: BoundBy::Us, why }
    }

    /// A UDP socket that this process binds.
    #[must_use]
    pub const fn udp(at: SocketAddr, why: &'static str) -> Self {
        Self { transport: Transport::Udp, at, interface: None, bound_by: BoundBy::Us, why }
    }

    /// The same, bound by another party or in another way.
    #[must_use]
    pub fn bound_by(mut self, bound_by: BoundBy) -> Self {
        self.bound_by = bound_by;
        self
    }

    /// The same, on one interface only.
    #[must_use]
    pub fn on(mut self, interface: impl Into<String>) -> Self {
        self.interface = Some(interface.into());
        self
    }

    /// Whether the two collide: they cannot be bound at the same time.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        let shared = [self, other].iter().any(|socket| socket.bound_by == BoundBy::UsShared);
        let apart =
            self.interface.is_some() && other.interface.is_some() && self.interface != other.interface;
        let same_port = self.at.port() != 0 && self.at.port() == other.at.port();
        let (a, b) = (self.at.ip().to_canonical(), other.at.ip().to_canonical());
        let same_address = a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified());
        self.transport == other.transport && same_port && same_address && !shared && !apart
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {} on {}", self.transport, self.at.port(), self.at.ip())?;
        match &self.interface {
            Some(interface) => write!(f, " of {interface}"),
            None => Ok(()),
        }
    }
}

/// The addresses of a listener that accepts both families on `[::]`: the address itself, and `0.0.0.0` in addition to `[::]`.
pub fn both_families(at: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let v4 = (at.is_ipv6() && at.ip().is_unspecified())
        .then(|| SocketAddr::new(IpAddr::from([0, 0, 0, 0]), at.port()));
    std::iter::once(at).chain(v4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(at: &str) -> Socket {
        Socket::tcp(at.parse().unwrap(), "a test")
    }

    #[test]
    fn sockets_collide_on_one_port_where_their_addresses_meet() {
        for (a, b, collide) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("[::]:80", "0.0.0.0:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(tcp(a).collides(&tcp(b)), collide, "{a} {b}");
            assert_eq!(tcp(b).collides(&tcp(a)), collide, "{b} {a}");
        }
        let udp = Socket::udp("127.0.0.1:80".parse().unwrap(), "a test");
        assert!(!udp.collides(&tcp("127.0.0.1:80")));
        let shared = udp.clone().bound_by(BoundBy::UsShared);
        assert!(!shared.collides(&udp));
        let (a, b) = (udp.clone().on("eth0"), udp.clone().on("eth1"));
        assert!(!a.collides(&b) && a.collides(&a) && a.collides(&udp));
        assert_eq!(a.to_string(), "UDP port 80 on 127.0.0.1 of eth0");
    }

    #[test]
    fn an_unspecified_ipv6_address_is_both_families_where_that_is_so() {
        let families =
            |at: &str| both_families(at.parse().unwrap()).map(|at| at.to_string()).collect::<Vec<_>>();
        assert_eq!(families("[::]:80"), ["[::]:80", "0.0.0.0:80"]);
        assert_eq!(families("[::1]:80"), ["[::1]:80"]);
        assert_eq!(families("0.0.0.0:80"), ["0.0.0.0:80"]);
    }
}
