//! A request for a boot script, and its possible answers.

use std::time::Duration;

use crate::{
    boot_text::{BootUrl, Host},
    nouns::{Firmware, MacAddr, RequestId},
};

/// The addresses at which this machine reaches us: the configured ones, otherwise those of its connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Advertised {
    /// The portal's address.
    pub portal: Host,
    /// The base URL of scripts and reports, without a trailing slash: `http://192.0.2.1:8080`.
    pub http_url: BootUrl,
}

/// A request for a boot script.
#[derive(Clone, Debug)]
pub struct BootRequest {
    /// The machine's MAC address, as the request claims.
    pub mac: MacAddr,
    /// Its firmware, if the request contains it.
    pub firmware: Firmware,
    /// Its address, for the record.
    pub peer: Option<String>,
    /// The id of its request, for the record.
    pub request_id: Option<RequestId>,
    /// How it reaches us.
    pub advertised: Advertised,
    /// False (HEAD): returns what the answer would be and prepares nothing.
    pub prepare: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootAnswer {
    /// This script.
    Script(String),
    /// Retry after this time: a start or stop is in progress. iPXE honours 503 with Retry-After.
    Retry(Duration),
}
