//! The ports: what the orchestrator needs from the outside world, one trait per file.
//!
//! Every call of [`TargetBackend`], [`DhcpBackend`], [`BootFileStore`], [`ImageStore`] and [`WritebackStore`] is idempotent and declarative:
//!
//! * `ensure(spec)` twice equals once; with a changed spec it changes the object to match, or returns `Busy` and changes nothing. It returns
//!   what a client needs. Two concurrent calls for the same id behave as if one ran after the other; calls for different ids do not wait for
//!   each other.
//! * An image store has [`draft`](ImageStore::draft), [`seal`](ImageStore::seal) and [`adopt`](ImageStore::adopt) in place of `ensure`,
//!   because a version never changes.
//! * `remove` of an absent object succeeds. An object that is in use is `Busy` under [`Removal::IfIdle`], and nothing changes.
//! * DHCP takes a set of changes at once ([`DhcpBackend::apply`]): each of them is an `ensure` or a `remove`.
//! * `get` is `list` for one name: it shows the same, at less cost.
//! * `list` returns only objects that this instance of GGnet owns, recognised by name, never by a private database. A list that fails means
//!   *unknown*, never *empty*.
//! * A future dropped half-way leaves the object absent, whole, or listed as [`Completeness::Partial`]; a second `ensure` completes it and
//!   a `remove` removes it. It leaves nothing else behind. The same holds if the process is killed within a call.
//!
//! The contracts of [`Store`] and [`ImageConverter`] are in their own documentation. [`Clock`], [`Observer`] and [`LoginGate`] are not
//! backends.
//!
//! No call blocks its thread: work that may wait for a disk or a peer runs on a blocking thread or waits in its future.
//!
//! This contract makes rollback, crash recovery and reconciliation the same code. Time limits, retries, metrics and fault injection are
//! wrappers around a trait ([`crate::wrap`]), never inside a backend: callers use the ports of [`Ports`](crate::orchestrator::Ports), which
//! have limits.

pub mod boot_file;
pub mod clock;
pub mod dhcp;
pub mod image_converter;
pub mod image_store;
pub mod observer;
pub mod store;
pub mod target;
pub mod writeback;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use boot_file::{BootBundle, BootFileStore, BootPath};
pub use clock::{Clock, SystemClock};
pub use dhcp::{
    DhcpBackend, DhcpBackendExt, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, apply_each,
};
pub use image_converter::{ConvertSpec, Converted, ImageConverter, ImageProbe, Progress};
pub use image_store::{
    Frozen, Hold, ImageCapabilities, ImageListed, ImageSpec, ImageStore, Native, OpenImage, Sink, SinkForm,
};
pub use observer::{NullObserver, Observation, Observer};
pub use store::{
    Batch, Fence, JobFilter, MAX_SEEN, MachineFilter, Names, Page, PageRequest, SessionCounts, SessionFilter,
    Store, Write,
};
pub use target::{
    Access, Connection, IoCounters, Login, LoginGate, LoginVerdict, LoginVisibility, LunDisks, LunSpec,
    TargetBackend, TargetCapabilities, TargetEndpoint, TargetSpec,
};
pub use writeback::{WritebackCapabilities, WritebackListed, WritebackSpec, WritebackStore};

use crate::{error::Error, nouns::ResourceId};

/// How hard to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// Only if it is not in use; otherwise `Busy`, and nothing changes.
    IfIdle,
    /// Even if it is in use: requests in flight are finished, the disk is flushed, connections are closed.
    Force,
}

/// Whether a listed object is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// As its last `ensure` described it.
    Whole,
    /// An `ensure` or a `remove` was interrupted.
    Partial,
}

/// SHA-256 of a spec's canonical form: shows whether the existing object is the wanted one, without comparing secrets in plain text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpecDigest([u8; 32]);

impl SpecDigest {
    /// Hashes fields. Each is preceded by its length, so that two different lists of fields never give the same bytes.
    #[must_use]
    pub fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for field in fields {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        Self(hash.finalize().into())
    }

    /// The first 16 hexadecimal digits: what a backend may store with an object's name.
    #[must_use]
    pub fn short(&self) -> String {
        self.0[..8].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The whole digest, as 64 hexadecimal digits: for a backend that stores it or passes it on.
impl fmt::Display for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for SpecDigest {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let bad =
            || Error::invalid("digest", format!("{s:?} is not a digest: 64 lower-case hexadecimal digits"));
        let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if s.len() != 64 || !s.as_bytes().iter().all(lower) {
            return Err(bad());
        }
        let mut digest = [0; 32];
        for (n, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&s[2 * n..2 * n + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(digest))
    }
}

crate::nouns::id::string_serde!(SpecDigest);

impl fmt::Debug for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// One of our objects in a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub id: ResourceId,
    /// The digest of the spec that it was made from; `None` when the backend cannot tell (`ensure` then decides).
    pub digest: Option<SpecDigest>,
    /// Whether it is complete.
    pub completeness: Completeness,
}

/// The health of a backend. Machines boot while it is up or degraded: [`Health::boots`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "reason")]
pub enum Health {
    /// It works.
    Up,
    /// It works, also for new machines, but something needs an operator's attention.
    Degraded(String),
    /// It works for the machines that it serves now, but accepts no new ones: a machine that boots now would get nothing. The reason says
    /// what to do.
    Blocked(String),
    /// It does not work; the reason names the unit, path or port and what to do.
    Down(String),
}

impl Health {
    /// Whether a machine that boots now is served.
    #[must_use]
    pub const fn boots(&self) -> bool {
        matches!(self, Self::Up | Self::Degraded(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = SpecDigest::of([b"a spec".as_slice()]);
        let text = digest.to_string();
        assert!(text.len() == 64 && text.starts_with(&digest.short()), "{text}");
        assert_eq!(text.parse::<SpecDigest>().unwrap(), digest);
        let long = format!("{text}0");
        for bad in [
            "",
            &text[1..],
            &long,
            &text.to_uppercase(),
            &text.replacen(&text[..1], "é", 1),
            &"+1".repeat(32),
        ] {
            assert_eq!(bad.parse::<SpecDigest>().unwrap_err().field(), Some("digest"), "{bad:?}");
        }
    }
}
