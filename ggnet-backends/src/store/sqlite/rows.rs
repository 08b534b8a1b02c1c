//! Rows and nouns: the text forms that stand in columns, and the JSON document that holds the whole record.
//!
//! Invariant: a document that does not decode is `Corrupt` and names its record; it is never skipped.

use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{Cursor, Firmware, Machine, SeenMachine, Session, Timestamp},
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{FromRow, sqlite::SqliteRow};

use super::{errors::Failure, seal::Sealer};

/// A record as its document.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<String> {
    serde_json::to_string(record).map_err(|e| Error::internal("A record has no JSON form").with_source(e))
}

/// A document as its record; `what` names its kind.
pub(super) fn decode<T: DeserializeOwned>(what: &str, doc: &str) -> Result<T> {
    serde_json::from_str(doc).map_err(|e| {
        Error::new(ErrorKind::Corrupt, format!("A stored {what} does not read as one")).with_source(e)
    })
}

/// The one word of an enumeration that serde writes as a string ("importing").
pub(super) fn word<T: Serialize>(value: &T) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(s)) => Ok(s),
        _ => Err(Error::internal("A state has no one-word form")),
    }
}

/// A time as it stands in a column.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// A revision as it stands in a column; one that cannot stand there is none that was ever read.
pub(super) fn revision(revision: u64) -> Result<i64> {
    i64::try_from(revision).map_err(|_| {
        Error::new(ErrorKind::Conflict, format!("Revision {revision} was never given to a record"))
    })
}

/// The place after the event of this row.
pub(super) fn cursor(seq: i64) -> Cursor {
    // SQLite counts from 1.
    Cursor::numbered(u64::try_from(seq).unwrap_or_default())
}

/// What a search looks through, in lower case; MAC addresses in every usual spelling. U+001F keeps fields apart.
pub(super) fn search_text(machine: &Machine) -> String {
    let mut text = format!("{}\u{1f}{}", machine.name, machine.description);
    for mac in &machine.macs {
        text.push_str(&format!("\u{1f}{mac}\u{1f}{}\u{1f}{}", mac.hyphenated(), mac.compact()));
    }
    text.to_lowercase()
}

/// The LIKE pattern (escape character `\`) that finds `needle` anywhere.
pub(super) fn like_pattern(needle: &str) -> String {
    let mut pattern = String::with_capacity(needle.len() + 2);
    pattern.push('%');
    for c in needle.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// An unknown machine that was seen once more: the counts add up, the first sight and what is better known stay.
pub(super) fn seen_again(old: SeenMachine, new: SeenMachine) -> SeenMachine {
    SeenMachine {
        mac: old.mac,
        firmware: if new.firmware == Firmware::Unknown { old.firmware } else { new.firmware },
        address: new.address.or(old.address),
        first_seen: old.first_seen.min(new.first_seen),
        last_seen: old.last_seen.max(new.last_seen),
        count: old.count.saturating_add(new.count.max(1)),
    }
}

/// A session as it is stored.
#[derive(FromRow)]
pub(super) struct SessionRow {
    doc: String,
    current_sealed: Option<Vec<u8>>,
    next_sealed: Option<Vec<u8>>,
}

impl SessionRow {
    /// The session without its credentials.
    pub(super) fn bare(&self) -> Result<Session> {
        decode("session", &self.doc)
    }

    /// The session with its credentials. An ended session's credentials open nothing any more, so it is read without them when
    /// the key does not fit: a lost key must not keep a machine from its next session. A live one is `Corrupt` then.
    pub(super) fn open(&self, sealer: &Sealer) -> Result<Session> {
        let mut session = self.bare()?;
        let (id, live) = (session.id, session.state.is_live());
        let chap =
            |number: u32, sealed: Option<&Vec<u8>>| match sealed.map(|s| sealer.open_sealed(id, number, s)) {
                None => Ok(None),
                Some(Ok(pair)) => Ok(Some(pair)),
                Some(Err(_)) if !live => Ok(None),
                Some(Err(e)) => Err(e),
            };
        session.current.chap = chap(session.current.number, self.current_sealed.as_ref())?;
        if let Some(next) = session.next.as_mut() {
            next.chap = chap(next.number, self.next_sealed.as_ref())?;
        }
        Ok(session)
    }

    /// Whether any of its credentials opens: then this is the key that sealed them.
    pub(super) fn fits(&self, sealer: &Sealer) -> bool {
        let Ok(session) = self.bare() else { return false };
        let opens = |number: u32, sealed: Option<&Vec<u8>>| {
            sealed.is_some_and(|s| sealer.open_sealed(session.id, number, s).is_ok())
        };
        opens(session.current.number, self.current_sealed.as_ref())
            || session.next.as_ref().is_some_and(|next| opens(next.number, self.next_sealed.as_ref()))
    }
}

/// One record of a query that may find none.
pub(super) fn one<T: DeserializeOwned>(what: &str, doc: Option<String>) -> Result<Option<T>, Failure> {
    Ok(doc.map(|d| decode(what, &d)).transpose()?)
}

/// Every record of a query.
pub(super) fn all<T: DeserializeOwned>(what: &str, docs: &[String]) -> Result<Vec<T>, Failure> {
    Ok(docs.iter().map(|d| decode(what, d)).collect::<Result<_>>()?)
}

/// Every session of a query.
pub(super) fn sessions(rows: &[SqliteRow], sealer: &Sealer) -> Result<Vec<Session>, Failure> {
    rows.iter().map(|row| Ok(SessionRow::from_row(row)?.open(sealer)?)).collect()
}
