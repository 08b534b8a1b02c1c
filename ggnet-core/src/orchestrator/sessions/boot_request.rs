//! What a request for a boot script says, and what the answer can be.

use std::time::Duration;

use crate::{
    boot_text::{BootUrl, Host},
    nouns::{Firmware, MacAddr, RequestId},
};

/// Under which addresses this machine reaches us: the configured ones, else what its connection tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Advertised {
    /// The portal's address.
    pub portal: Host,
    /// Where scripts and reports are, without a trailing slash: `http://192.0.2.1:8080`.
    pub http_url: BootUrl,
}

/// A request for a boot script.
#[derive(Clone, Debug)]
pub struct BootRequest {
    /// Who asks, as it says.
    pub mac: MacAddr,
    /// Its firmware, where the request tells.
    pub firmware: Firmware,
    /// From where, for the record.
    pub peer: Option<String>,
    /// The id of its request, for the record.
    pub request_id: Option<RequestId>,
    /// How it reaches us.
    pub advertised: Advertised,
    /// False (HEAD): says what would be answered and prepares nothing.
    pub prepare: bool,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootAnswer {
    /// This script.
    Script(String),
    /// Come again after this time: a start or stop is under way. iPXE honours 503 with Retry-After.
    Retry(Duration),
}
