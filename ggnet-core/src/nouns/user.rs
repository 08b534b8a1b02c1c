//! [`Actor`]: who did something, for the audit rows.

use serde::{Deserialize, Serialize};

use super::MacAddr;

/// Who caused a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Actor {
    /// The holder of the administrator token.
    Admin {
        /// Where the request came from.
        address: Option<String>,
    },
    /// A booting machine.
    Machine {
        /// Its MAC address, as it claims.
        mac: MacAddr,
        /// Where the request came from.
        address: Option<String>,
    },
    /// GGnet itself: the reconciler, a timer, a restart.
    System,
    /// A program that embeds the library.
    Embedder,
}
