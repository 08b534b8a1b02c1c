//! [`AuditRow`]: who did what to which thing, written in the same transaction as the change.
//!
//! Rows from versions without typed actions and subjects can still be read: their `details` are split into before and after.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ImageId, ImageVersionId, InstanceId, JobId, MacAddr, MachineId, Principal, SessionId, TargetId,
    Timestamp, id::string_serde,
};
use crate::error::Error;

macro_rules! actions {
    ($(#[doc = $doc:literal] $variant:ident = $name:literal;)*) => {
        /// What was done. The names never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum AuditAction {
            $(#[doc = $doc] $variant,)*
        }

        impl AuditAction {
            /// Every action.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, dotted.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

actions! {
    /// A machine was registered.
    MachineCreate = "machine.create";
    /// A machine was changed.
    MachineUpdate = "machine.update";
    /// A machine was deleted.
    MachineDelete = "machine.delete";
    /// The kept writes of a machine were discarded.
    MachineDiscardWriteback = "machine.discard_writeback";
    /// An unknown machine was forgotten.
    SeenForget = "seen.forget";
    /// An import of a version began.
    ImageImport = "image.import";
    /// The kept writes of a machine are published as a version of its image.
    ImagePublish = "image.publish";
    /// A job was asked to end.
    JobCancel = "job.cancel";
    /// A job is retried.
    JobRetry = "job.retry";
    /// Another version of an image became current.
    ImageSetCurrent = "image.set_current";
    /// An image was deleted.
    ImageDelete = "image.delete";
    /// A version was deleted.
    VersionDelete = "version.delete";
    /// A session was started.
    SessionStart = "session.start";
    /// A session was stopped.
    SessionStop = "session.stop";
    /// A manual target was created.
    TargetCreate = "target.create";
    /// A manual target was deleted.
    TargetDelete = "target.delete";
    /// The administrator token was replaced.
    TokenReset = "token.reset";
    /// The key of the credentials in the database was replaced.
    KeyReset = "key.reset";
    /// The database was given the id of its instance.
    InstanceRemember = "instance.remember";
}

impl fmt::Display for AuditAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AuditAction {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let known = Self::ALL.iter().find(|action| action.as_str() == s);
        known.copied().ok_or_else(|| Error::invalid("action", format!("{s:?} is not an audit action")))
    }
}

string_serde!(AuditAction);

/// What it was done to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
#[non_exhaustive]
pub enum AuditSubject {
    /// A machine.
    Machine(MachineId),
    /// An unknown machine that was seen.
    Seen(MacAddr),
    /// An image.
    Image(ImageId),
    /// A version of an image.
    Version(ImageVersionId),
    /// A session.
    Session(SessionId),
    /// A job.
    Job(JobId),
    /// A manual target.
    Target(TargetId),
    /// A token, by its name.
    Token(String),
    /// A key, by what it is for.
    Key(String),
    /// The installation.
    Instance(InstanceId),
}

/// One row of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct AuditRow {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: Principal,
    /// What.
    pub action: AuditAction,
    /// To what.
    pub subject: AuditSubject,
    /// Its state before the change; `None` if it did not exist, or is not recorded. Never a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// Its state after the change; `None` if it no longer exists, or is not recorded. Never a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

impl AuditRow {
    /// A row without before and after.
    #[must_use]
    pub fn new(at: Timestamp, by: &Principal, action: AuditAction, subject: AuditSubject) -> Self {
        Self { at, by: by.clone(), action, subject, before: None, after: None }
    }

    /// Sets the state before the change.
    #[must_use]
    pub fn before(mut self, value: Value) -> Self {
        self.before = Some(value);
        self
    }

    /// Sets the state after the change.
    #[must_use]
    pub fn after(mut self, value: Value) -> Self {
        self.after = Some(value);
        self
    }
}

/// A row in any form in which it was ever stored.
#[derive(Deserialize)]
struct Stored {
    at: Timestamp,
    #[serde(alias = "actor")]
    by: Principal,
    action: AuditAction,
    subject: Option<AuditSubject>,
    subject_kind: Option<String>,
    subject_id: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
    details: Option<Value>,
}

impl TryFrom<Stored> for AuditRow {
    type Error = serde_json::Error;

    fn try_from(stored: Stored) -> Result<Self, serde_json::Error> {
        let Stored { at, by, action, subject, subject_kind, subject_id, before, after, details } = stored;
        let subject = match subject {
            Some(subject) => subject,
            None => serde_json::from_value(serde_json::json!({ "kind": subject_kind, "id": subject_id }))?,
        };
        let (before, after) = match details {
            Some(details) => split_details(details),
            None => (before, after),
        };
        Ok(Self { at, by, action, subject, before, after })
    }
}

/// Splits the details of an old row: either an object with `before` and `after`, or the state after the change.
fn split_details(details: Value) -> (Option<Value>, Option<Value>) {
    match details {
        Value::Object(mut fields) if fields.keys().all(|key| key == "before" || key == "after") => {
            let mut take = |key: &str| fields.remove(key).filter(|value| !value.is_null());
            (take("before"), take("after"))
        }
        other => (None, Some(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;
    use crate::nouns::SystemPart;

    const AT: Timestamp = Timestamp::constant(1_790_000_000, 0);

    #[test]
    fn every_action_and_subject_reads_back_as_it_was_written() {
        let subjects = [
            AuditSubject::Machine(MachineId::generate()),
            AuditSubject::Seen("52:54:00:00:00:01".parse().unwrap()),
            AuditSubject::Image(ImageId::generate()),
            AuditSubject::Version(ImageVersionId::generate()),
            AuditSubject::Session(SessionId::generate()),
            AuditSubject::Job(JobId::generate()),
            AuditSubject::Target(TargetId::generate()),
            AuditSubject::Token("admin".to_owned()),
            AuditSubject::Key("credentials".to_owned()),
            AuditSubject::Instance(InstanceId::generate()),
        ];
        for (n, action) in AuditAction::ALL.iter().enumerate() {
            let subject = subjects[n % subjects.len()].clone();
            let bare = AuditRow::new(AT, &Principal::embedder(), *action, subject);
            for row in [bare.clone(), bare.before(json!({ "a": null })).after(json!([1]))] {
                let text = to_value(&row).unwrap();
                assert_eq!(from_value::<AuditRow>(text.clone()).unwrap(), row, "{text}");
            }
        }
        let names: std::collections::BTreeSet<_> = AuditAction::ALL.iter().map(|a| a.as_str()).collect();
        assert_eq!(names.len(), AuditAction::ALL.len());
    }

    #[test]
    fn rows_of_before_are_read_with_all_that_they_say() {
        let machine = MachineId::generate();
        let id = machine.to_string();
        let old = |action: &str, kind: &str, id: &str, details: Value| {
            from_value::<AuditRow>(json!({
                "at": AT, "actor": { "kind": "admin", "address": "192.0.2.7" }, "action": action,
                "subject_kind": kind, "subject_id": id, "details": details,
            }))
            .unwrap()
        };
        let by = Principal::administrator().at(Some("192.0.2.7".to_owned()));
        let row = AuditRow::new(AT, &by, AuditAction::MachineUpdate, AuditSubject::Machine(machine));
        let changed = row.clone().before(json!({ "name": "a" })).after(json!({ "name": "b" }));
        let details = json!({ "before": { "name": "a" }, "after": { "name": "b" } });
        assert_eq!(old("machine.update", "machine", &id, details), changed);
        assert_eq!(old("machine.update", "machine", &id, json!({})), row);
        let stop = old("session.stop", "session", &id, json!({ "force": true, "reason": "operator" }));
        assert_eq!((stop.before, stop.after), (None, Some(json!({ "force": true, "reason": "operator" }))));
        let current = old("image.set_current", "image", &id, json!({ "before": null, "after": id }));
        assert_eq!((current.before, current.after), (None, Some(json!(id))));
        assert_eq!(
            old("token.reset", "token", "admin", Value::Null),
            AuditRow::new(AT, &by, AuditAction::TokenReset, AuditSubject::Token("admin".to_owned()))
        );
        let key = old("key.reset", "key", "credentials", json!({ "sessions_ended": 2 }));
        assert_eq!(key.subject, AuditSubject::Key("credentials".to_owned()));
        let seen = old("seen.forget", "seen", "52:54:00:00:00:01", json!({ "before": { "count": 1 } }));
        assert_eq!((seen.before, seen.after), (Some(json!({ "count": 1 })), None));
        let system = json!({
            "at": AT, "actor": { "kind": "system" }, "action": "session.stop", "subject_kind": "session",
            "subject_id": id, "details": null,
        });
        let system = from_value::<AuditRow>(system).unwrap();
        assert_eq!(system.by, Principal::system(SystemPart::Upkeep));
    }
}
