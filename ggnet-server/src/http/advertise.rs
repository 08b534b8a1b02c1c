//! The address at which a machine reaches us: the configured one; else, on a loopback connection only, the Host header's IP literal (QEMU's
//! user-mode network reaches 127.0.0.1 as 10.0.2.2, which only the guest knows); else the local address of the connection.
//!
//! The Host header is trusted on loopback only: elsewhere an attacker could use it to send a machine to another server.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header::HOST};
use ggnet_core::{
    Result,
    boot_text::{BootUrl, Host},
    orchestrator::Advertised,
};

use super::Endpoints;

/// The configuration.
#[derive(Clone, Copy, Debug)]
pub struct Advertise {
    /// The address to hand out.
    pub address: Option<IpAddr>,
    /// The HTTP server's port.
    pub http_port: u16,
}

impl Advertise {
    /// The addresses to send to the machine at the other end of this connection.
    pub fn to(&self, ends: &Endpoints, headers: &HeaderMap) -> Result<Advertised> {
        let at = match self.address {
            Some(address) => SocketAddr::new(address, self.http_port),
            None if ends.local.ip().is_loopback() => host_literal(headers).unwrap_or(ends.local),
            None => ends.local,
        };
        let http_url: BootUrl = format!("http://{at}").parse()?;
        Ok(Advertised { portal: Host::Ip(at.ip()), http_url })
    }
}

fn host_literal(headers: &HeaderMap) -> Option<SocketAddr> {
    let host = headers.get(HOST)?.to_str().ok()?;
    host.parse().ok().or_else(|| {
        let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        Some(SocketAddr::new(ip, 80))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertised(advertise: Option<&str>, local: &str, host: &str) -> String {
        let a = Advertise { address: advertise.map(|a| a.parse().unwrap()), http_port: 8080 };
        let ends = Endpoints { local: local.parse().unwrap(), peer: "192.0.2.9:1".parse().unwrap() };
        let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        a.to(&ends, &headers).unwrap().http_url.to_string()
    }

    #[test]
    fn the_rule_of_the_advertised_address() {
        assert_eq!(advertised(Some("192.0.2.1"), "127.0.0.1:8080", "10.0.2.2:8080"), "http://192.0.2.1:8080");
        assert_eq!(advertised(None, "127.0.0.1:8080", "10.0.2.2:8080"), "http://10.0.2.2:8080");
        assert_eq!(advertised(None, "127.0.0.1:8080", "localhost:8080"), "http://127.0.0.1:8080");
        assert_eq!(advertised(None, "192.0.2.1:8080", "198.51.100.66:8080"), "http://192.0.2.1:8080");
        assert_eq!(advertised(None, "[::1]:8080", "[fec0::2]:8080"), "http://[fec0::2]:8080");
    }
}
