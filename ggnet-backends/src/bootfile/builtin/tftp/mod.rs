//! A read-only TFTP server (RFC 1350, 2347, 2348, 2349, 7440) over the files of [`super::BuiltinBootFiles`].
//!
//! `packet` is the codec, `options` the negotiation, `content` what a transfer sends, `transfer` its state machine, `server` the
//! sockets and tasks around it. Every request is logged under the target `tftp` with peer, path, options and outcome.

mod content;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod options;
mod packet;
mod quoted;
mod server;
mod transfer;

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub(super) use server::Server;

/// Where and how TFTP is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TftpConfig {
    /// The addresses to listen on. An IPv6 address takes IPv6 only, so both families may use one port.
    pub listen: Vec<SocketAddr>,
    /// Transfers at once to clients that have acknowledged something, in all; one more is ended.
    pub max_transfers: usize,
    /// Transfers at once to clients that have acknowledged nothing yet: anybody can ask in anybody's name. For one more the oldest of
    /// them is given up.
    pub max_unanswered: usize,
    /// Transfers at once to one client address.
    pub max_transfers_per_client: usize,
    /// Pause before the first retransmission, in milliseconds; it doubles with each one up to 8 s. A client's `timeout` option
    /// takes its place.
    pub retransmit_ms: u64,
    /// Retransmissions without an answer before a transfer is given up.
    pub retries: u32,
}

impl Default for TftpConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 69))],
            max_transfers: 512,
            max_unanswered: 256,
            max_transfers_per_client: 16,
            retransmit_ms: 1000,
            retries: 5,
        }
    }
}
