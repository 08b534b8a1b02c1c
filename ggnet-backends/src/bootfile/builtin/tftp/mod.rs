//! A read-only TFTP server (RFC 1350, 2347, 2348, 2349, 7440) over the files of [`super::BuiltinBootFiles`].
//!
//! `packet` is the codec, `options` the negotiation, `content` the data of a transfer, `transfer` its state machine, `server` the sockets
//! and tasks. Every request is logged under the target `tftp` with peer, path, options and outcome.

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

/// The addresses and limits of TFTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TftpConfig {
    /// The addresses to listen on. An IPv6 address accepts only IPv6, so both families can use the same port.
    pub listen: Vec<SocketAddr>,
    /// Maximum number of concurrent transfers to clients that have acknowledged a block; a transfer over the limit is ended.
    pub max_transfers: usize,
    /// Maximum number of concurrent transfers to clients that have not acknowledged a block yet, because anyone can send a request with a
    /// forged address. Over the limit, the oldest of them is aborted.
    pub max_unanswered: usize,
    /// Maximum number of concurrent transfers to one client address.
    pub max_transfers_per_client: usize,
    /// Time before the first retransmission, in milliseconds; it doubles with each retransmission, up to 8 s. A client's `timeout` option
    /// replaces it.
    pub retransmit_ms: u64,
    /// Retransmissions without a response before a transfer is aborted.
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
