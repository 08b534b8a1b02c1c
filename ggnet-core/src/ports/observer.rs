//! [`Observer`]: what backends see on the network but cannot assign to a session. Boot stages are observed, not guessed.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::nouns::{Firmware, Iqn, MacAddr, ResourceId};

/// Something that a backend saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Observation {
    /// A PXE or HTTP boot request was answered with a boot file.
    AddressOffered {
        /// The sender of the request.
        mac: MacAddr,
        /// The firmware it announced (option 93).
        firmware: Firmware,
        /// The boot file or URL that it was given.
        boot_file: String,
        /// Whether the request came from iPXE, not from the firmware.
        ipxe: bool,
    },
    /// A PXE request from a machine that is not registered; it got no answer unless `unknown = "answer"`.
    UnknownAsked {
        /// The sender of the request.
        mac: MacAddr,
        /// The firmware it announced.
        firmware: Firmware,
    },
    /// A request that could not be answered, and why (no loader for this architecture).
    NotAnswered {
        /// The sender of the request.
        mac: MacAddr,
        /// The reason, as text for people.
        reason: String,
    },
    /// A boot file was sent whole.
    BootFileSent {
        /// The machine, when the path names it.
        mac: Option<MacAddr>,
        /// Its path.
        path: String,
        /// The receiver.
        peer: SocketAddr,
    },
    /// An authenticated initiator reached full feature phase.
    LoggedIn {
        /// The target.
        target: ResourceId,
        /// The initiator.
        initiator: Iqn,
        /// The initiator's address.
        peer: SocketAddr,
    },
    /// The first read of a connection.
    FirstRead {
        /// The target.
        target: ResourceId,
    },
    /// The first write of a connection.
    FirstWrite {
        /// The target.
        target: ResourceId,
    },
    /// The last connection of an initiator to a target closed.
    Disconnected {
        /// The target.
        target: ResourceId,
        /// Why, as text for people.
        reason: String,
    },
    /// An initiator that may use a target connected, but had not authenticated when the time limit of the login passed.
    LoginStalled {
        /// The target: named by the initiator, or the one that this address used before and is no longer logged in to.
        target: ResourceId,
        /// The initiator's address.
        peer: SocketAddr,
    },
    /// An initiator asked for a target that was removed: the disk of an earlier boot, or of a session that was stopped.
    LoginTooLate {
        /// The removed target.
        target: ResourceId,
        /// The initiator's address.
        peer: SocketAddr,
    },
    /// A disk had an error that an operator must act on (the host's disk is full, a flush failed).
    DiskTrouble {
        /// The target.
        target: ResourceId,
        /// The message, as text for people.
        message: String,
    },
}

/// Receives observations. Called from data paths: it must return at once and never block.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait Observer: Send + Sync + 'static {
    /// Receives one observation.
    fn observe(&self, observation: Observation);
}

/// Ignores all observations.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullObserver;

impl Observer for NullObserver {
    fn observe(&self, _: Observation) {}
}
