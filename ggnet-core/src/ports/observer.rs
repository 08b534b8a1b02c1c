//! [`Observer`]: what backends see on the wire and cannot name a session for. Boot stages are observed, not guessed.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::nouns::{Firmware, Iqn, MacAddr, ResourceId};

/// Something a backend saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Observation {
    /// A PXE or HTTP boot request was answered with a boot file.
    AddressOffered {
        /// Who asked.
        mac: MacAddr,
        /// The firmware it announced (option 93).
        firmware: Firmware,
        /// The boot file or URL that it was given.
        boot_file: String,
        /// Whether it was iPXE that asked, not the firmware.
        ipxe: bool,
    },
    /// A PXE request of a machine that nobody registered; it got no answer unless `unknown = "answer"`.
    UnknownAsked {
        /// Who asked.
        mac: MacAddr,
        /// The firmware it announced.
        firmware: Firmware,
    },
    /// A request that could not be answered, and why (no loader for this architecture).
    NotAnswered {
        /// Who asked.
        mac: MacAddr,
        /// In plain words.
        reason: String,
    },
    /// A boot file was sent whole.
    BootFileSent {
        /// The machine, when the path names it.
        mac: Option<MacAddr>,
        /// Which.
        path: String,
        /// To where.
        peer: SocketAddr,
    },
    /// An authenticated initiator reached full feature phase.
    LoggedIn {
        /// The target.
        target: ResourceId,
        /// The initiator.
        initiator: Iqn,
        /// From where.
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
        /// Why, in plain words.
        reason: String,
    },
    /// An initiator that may use a target connected, and had proved nothing when the login's time limit passed.
    LoginStalled {
        /// The target: named by the initiator, or the one that this address had and no longer is logged in to.
        target: ResourceId,
        /// From where.
        peer: SocketAddr,
    },
    /// An initiator asked for a target that was removed: the disk of an earlier boot, or of a session that was stopped.
    LoginTooLate {
        /// The target that was.
        target: ResourceId,
        /// From where.
        peer: SocketAddr,
    },
    /// A disk had an error that an operator must act on (the host's disk is full, a flush failed).
    DiskTrouble {
        /// The target.
        target: ResourceId,
        /// In plain words.
        message: String,
    },
}

/// Who is told. Called from data paths: it must return at once and never block.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait Observer: Send + Sync + 'static {
    /// Something was seen.
    fn observe(&self, observation: Observation);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullObserver;

impl Observer for NullObserver {
    fn observe(&self, _: Observation) {}
}
