//! `ggnet audit`: shows who changed what, and how.

use std::collections::BTreeSet;

use ggnet_core::nouns::{Principal, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use crate::{failure::Result, options::system::Audit, time};

/// Fields that every change updates; not shown.
const ALWAYS: [&str; 2] = ["revision", "updated_at"];

/// A row. Action and kind are plain text, so that rows of a newer server are shown and cause no error.
#[derive(Debug, Deserialize, Serialize)]
struct Row {
    at: Timestamp,
    by: Value,
    action: String,
    subject: Subject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

/// The object that was changed.
#[derive(Debug, Deserialize, Serialize)]
struct Subject {
    kind: String,
    id: String,
}

/// Shows the rows, newest first.
pub async fn show(context: &Context, o: &Audit) -> Result<()> {
    let got = context.client()?.list::<Row>(&["audit"], &vec![], Some(o.limit)).await?;
    context.out.list(&["time", "who", "action", "subject", "id", "change"], &got.items, |row| {
        vec![
            time::exact(row.at).into(),
            who(&row.by).into(),
            row.action.as_str().into(),
            row.subject.kind.as_str().into(),
            row.subject.id.as_str().into(),
            change(row.before.as_ref(), row.after.as_ref()).into(),
        ]
    })
}

fn who(by: &Value) -> String {
    match serde_json::from_value::<Principal>(by.clone()) {
        Ok(principal) => principal.to_string(),
        Err(_) => word(by.get("kind")),
    }
}

/// The changed fields; for a new or removed object its name.
fn change(before: Option<&Value>, after: Option<&Value>) -> String {
    match (before, after) {
        (None, None) => String::new(),
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let differs =
                |key: &&String| !ALWAYS.contains(&key.as_str()) && before.get(*key) != after.get(*key);
            let one = |key: &String| format!("{key}: {} → {}", word(before.get(key)), word(after.get(key)));
            fields.into_iter().filter(differs).map(one).collect::<Vec<_>>().join(", ")
        }
        (Some(one), None) | (None, Some(one)) => {
            one.get("name").map_or_else(String::new, |name| word(Some(name)))
        }
        (before, after) => format!("{} → {}", word(before), word(after)),
    }
}

fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::{AuditAction, AuditRow, AuditSubject};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_shows_the_fields_that_differ() {
        let (before, after) = (
            json!({ "name": "pc-1", "image": null, "macs": ["a"], "revision": 1 }),
            json!({ "name": "pc-1", "image": "debian", "macs": ["a", "b"], "revision": 2 }),
        );
        let shown = change(Some(&before), Some(&after));
        assert_eq!(shown, r#"image: - → debian, macs: ["a"] → ["a","b"]"#);
        assert_eq!(change(None, Some(&after)), "pc-1");
        assert_eq!(change(Some(&before), None), "pc-1");
        assert_eq!(change(None, Some(&json!({ "machine": 1 }))), "");
        assert_eq!(change(Some(&json!(1)), Some(&json!(2))), "1 → 2");
        assert_eq!(change(None, None), "");
    }

    #[test]
    fn what_is_read_is_what_is_written_and_a_newer_servers_row_is_shown() {
        let by = Principal::administrator().at(Some("192.0.2.7".to_owned()));
        let subject = AuditSubject::Token("admin".to_owned());
        let row = AuditRow::new(Timestamp::UNIX_EPOCH, &by, AuditAction::TokenReset, subject).after(json!(1));
        let value = serde_json::to_value(row).unwrap();
        let read: Row = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(who(&read.by), "token admin at 192.0.2.7");
        assert_eq!(serde_json::to_value(read).unwrap(), value);

        let newer = json!({
            "at": "2026-11-21T00:00:00Z", "by": { "kind": "robot" }, "action": "room.clean",
            "subject": { "kind": "room", "id": "7" },
        });
        let read: Row = serde_json::from_value(newer).unwrap();
        assert_eq!((who(&read.by).as_str(), read.action.as_str()), ("robot", "room.clean"));
    }
}
