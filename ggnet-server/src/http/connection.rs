//! Both ends of a request's connection, as routes see them.

use std::net::{Ipv4Addr, SocketAddr};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::net::TcpListener;

/// Both ends.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Ours.
    pub local: SocketAddr,
    /// Theirs.
    pub peer: SocketAddr,
}

impl Connected<IncomingStream<'_, TcpListener>> for Endpoints {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        // A connection that died already has no local address; its answer goes nowhere.
        let local = stream.io().local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
        Self { local: canonical(local), peer: canonical(*stream.remote_addr()) }
    }
}

/// `::ffff:192.0.2.1` is 192.0.2.1: on a socket that takes both families, and in what we tell machines.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
