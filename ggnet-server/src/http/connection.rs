//! The local and the remote address of a request's connection.

use std::net::SocketAddr;

/// The two addresses of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Our address.
    pub local: SocketAddr,
    /// The address of the client.
    pub peer: SocketAddr,
}

impl Endpoints {
    /// The endpoints of a connection.
    #[must_use]
    pub fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self { local: canonical(local), peer: canonical(peer) }
    }
}

/// Converts `::ffff:192.0.2.1`, the form on a socket for both address families, to 192.0.2.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
