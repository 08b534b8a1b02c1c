//! Both ends of a request's connection, as routes see them.

use std::net::SocketAddr;

/// Both ends.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Ours.
    pub local: SocketAddr,
    /// Theirs.
    pub peer: SocketAddr,
}

impl Endpoints {
    /// Of a connection with these addresses.
    #[must_use]
    pub fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self { local: canonical(local), peer: canonical(peer) }
    }
}

/// `::ffff:192.0.2.1` is 192.0.2.1: on a socket that takes both families, and in what we tell machines.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
