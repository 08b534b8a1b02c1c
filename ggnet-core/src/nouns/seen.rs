//! [`SeenMachine`]: an unregistered MAC address that sent a request.

use serde::{Deserialize, Serialize};

use super::{Firmware, MacAddr, Timestamp};

/// An unknown machine, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenMachine {
    /// Its MAC address.
    pub mac: MacAddr,
    /// The firmware it announced.
    pub firmware: Firmware,
    /// Where its last request came from.
    pub address: Option<String>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// How often.
    pub count: u64,
}
