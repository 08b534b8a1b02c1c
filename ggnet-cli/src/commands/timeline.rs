//! Events as the commands read them from the API. Kinds and fields of a newer server are shown too; machines are shown by name.

use std::collections::HashMap;

use ggnet_core::nouns::{ImageId, MachineId, SessionId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    client::{Client, Query},
    failure::Result,
    output::printable,
};

/// An event. Its kind is plain text, so that events of a newer server are shown and cause no error.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// The cursor after it, for `--after`.
    pub cursor: String,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: String,
    /// The machine it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// The session it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The image it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// The other fields of this kind.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Part of the events.
#[derive(Debug, Deserialize)]
pub struct Part {
    /// The events, oldest first.
    pub items: Vec<Entry>,
    /// The `after` of the next request; none if there are no events at all.
    pub cursor: Option<String>,
}

impl Entry {
    /// The boot stage, if the event is one.
    pub fn stage(&self) -> Option<&str> {
        if self.kind == "boot_stage" { self.details.get("stage")?.as_str() } else { None }
    }

    /// Its name for people: the boot stage, else the kind.
    pub fn name(&self) -> String {
        printable(&self.stage().unwrap_or(&self.kind).replace('_', "-"))
    }

    /// Its details for people.
    pub fn words(&self) -> String {
        let of_stage = self.stage().is_some();
        let one = |(key, value): (&String, &Value)| match (key.as_str(), value) {
            ("stage", _) if of_stage => None,
            ("message" | "reason" | "action", Value::String(text)) => Some(text.clone()),
            // The reason is shown already; only the hint is added, below.
            ("failure" | "diagnosis", _) => None,
            (_, Value::String(text)) => Some(format!("{key} {text}")),
            (_, value) => Some(format!("{key} {value}")),
        };
        let hint = self.details.get("failure").and_then(|failure| failure.get("hint")?.as_str());
        let hint = hint.map(|hint| format!("what to do: {hint}"));
        printable(&self.details.iter().filter_map(one).chain(hint).collect::<Vec<_>>().join(", "))
    }
}

/// Gets the events after `after` (none: from the oldest stored one), up to `limit`, of one machine or of all.
pub async fn events(client: &Client, after: Option<&str>, limit: u32, machine: Option<&str>) -> Result<Part> {
    let after = after.map(|cursor| ("after", cursor.to_owned()));
    ask(client, after, limit, machine).await
}

/// Gets the newest events, up to `limit`, oldest first, of one machine or of all.
pub async fn newest(client: &Client, limit: u32, machine: Option<&str>) -> Result<Part> {
    ask(client, Some(("newest", true.to_string())), limit, machine).await
}

async fn ask(
    client: &Client,
    from: Option<(&'static str, String)>,
    limit: u32,
    machine: Option<&str>,
) -> Result<Part> {
    let mut query: Query = vec![("limit", limit.to_string())];
    query.extend(from);
    query.extend(machine.map(|m| ("machine", m.to_owned())));
    client.get(&["events"], &query).await
}

/// The names of machines; each is requested once.
#[derive(Default)]
pub struct Names(HashMap<MachineId, String>);

impl Names {
    /// The machine's name, or its id if the machine was removed.
    pub async fn of(&mut self, client: &Client, id: MachineId) -> Result<String> {
        if let Some(name) = self.0.get(&id) {
            return Ok(name.clone());
        }
        let name = match super::machine::get(client, &id.to_string()).await {
            Ok(machine) => machine.name.to_string(),
            Err(failure) if failure.is_not_found() => id.to_string(),
            Err(failure) => return Err(failure),
        };
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggnet_core::{
        Error, ErrorKind,
        nouns::{BootStage, Cursor, Diagnosis, Event, EventKind, NewEvent},
    };

    fn entry(kind: EventKind) -> Entry {
        let event = NewEvent::new(Timestamp::UNIX_EPOCH, kind).machine(MachineId::generate());
        serde_json::from_value(serde_json::to_value(Event { cursor: Cursor::numbered(7), event }).unwrap())
            .unwrap()
    }

    #[test]
    fn events_in_words() {
        let e = entry(EventKind::BootStage { stage: BootStage::IscsiLogin, generation: Some(2) });
        assert_eq!((e.name().as_str(), e.words().as_str()), ("iscsi-login", "generation 2"));
        let e = entry(EventKind::BootFailed { stage: "sanboot".to_owned(), errno: "2c0d603b".to_owned() });
        assert_eq!((e.name().as_str(), e.words().as_str()), ("boot-failed", "errno 2c0d603b, stage sanboot"));
        let message = "Secure Boot is probably on".to_owned();
        let diagnosis = Some(Diagnosis::secure_boot_likely("52:54:00:aa:00:01", 60));
        let e = entry(EventKind::BootDiagnosis { message, diagnosis });
        assert_eq!(e.words(), "Secure Boot is probably on");
        let full = Error::new(ErrorKind::Full, "The disk is full").with_hint("Free space");
        let failure = Some((&full).into());
        let e = entry(EventKind::VersionFailed { reason: full.report(), failure });
        assert_eq!(e.words(), "The disk is full (full), what to do: Free space");
    }

    #[test]
    fn what_is_read_is_what_is_written() {
        let event = Event {
            cursor: Cursor::numbered(1),
            event: NewEvent::new(Timestamp::UNIX_EPOCH, EventKind::GenerationCommitted { number: 3 }),
        };
        let value = serde_json::to_value(event).unwrap();
        let entry: Entry = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(entry).unwrap(), value);
    }

    #[test]
    fn an_unknown_kind_is_shown() {
        let text = r#"{"cursor":"e1-1","at":"2026-11-21T00:00:00Z","kind":"machine_on_fire","degrees":451}"#;
        let e: Entry = serde_json::from_str(text).unwrap();
        assert_eq!((e.name().as_str(), e.words().as_str()), ("machine-on-fire", "degrees 451"));
    }
}
