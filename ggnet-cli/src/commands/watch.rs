//! `ggnet session watch`: shows boot stages live.
//!
//! It keeps its cursor while the server restarts: events of that time are shown when the server responds again.

use std::{collections::HashMap, time::Duration};

use ggnet_core::nouns::{MachineId, Timestamp};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Context, machine,
    timeline::{Entry, Names, Part, events, newest},
    wire_name,
};
use crate::{
    client::Client,
    failure::{Failure, Result},
    options::session::Watch,
    output::{Output, print},
    time,
};

const POLL: Duration = Duration::from_millis(250);
/// The most events per request.
const AT_ONCE: u32 = 1000;
/// Prefixes of kinds that are not about machines; not shown.
const HIDDEN_PREFIXES: [&str; 4] = ["image_", "version_", "target_", "job_"];

/// Watches until the stage is reached, the time limit has passed, or Ctrl-C.
pub async fn watch(context: &Context, o: Watch) -> Result<()> {
    let client = context.client()?;
    // By id, because the machine may be renamed meanwhile.
    let machine = match &o.machine {
        Some(reference) => Some(machine::get(&client, reference).await?.id.to_string()),
        None => None,
    };
    let cursor = if o.since_start { None } else { newest(&client, 1, None).await?.cursor };
    let until = o.until.map(|stage| wire_name(&stage));
    let mut watcher = Watcher {
        client,
        out: context.out,
        machine,
        cursor,
        until,
        names: Names::default(),
        last: HashMap::new(),
    };
    watcher.out.note(if o.since_start {
        "Watching; press Ctrl-C to stop"
    } else {
        "Watching from now on; press Ctrl-C to stop"
    });
    let Some(limit) = o.timeout else { return watcher.run().await };
    match tokio::time::timeout(limit, watcher.run()).await {
        Ok(ended) => ended,
        Err(_) => match &watcher.until {
            Some(stage) => {
                Err(Failure::timed_out(format!("{} was not reached in time", stage.replace('_', "-")))
                    .hint("`ggnet session watch --since-start` shows the stages that were reached"))
            }
            None => Ok(()),
        },
    }
}

struct Watcher {
    client: Client,
    out: Output,
    machine: Option<String>,
    cursor: Option<String>,
    until: Option<String>,
    names: Names,
    /// The time of each machine's last stage.
    last: HashMap<MachineId, Timestamp>,
}

impl Watcher {
    async fn run(&mut self) -> Result<()> {
        let mut gone = false;
        loop {
            let full = match self.more().await {
                Ok(part) => {
                    gone = false;
                    let full = part.items.len() >= AT_ONCE as usize;
                    for entry in &part.items {
                        if self.show(entry).await? {
                            return Ok(());
                        }
                    }
                    full
                }
                Err(failure) if failure.is_unreachable() => {
                    if !gone {
                        self.out.note("The server does not respond; waiting for it");
                    }
                    gone = true;
                    false
                }
                // Pruned events, or those of another database, cannot be read: continue with the newest.
                Err(failure) if failure.is_lost_cursor() => {
                    self.out.note("Some events are no longer stored; continuing with the newest");
                    self.cursor = newest(&self.client, 1, None).await?.cursor;
                    false
                }
                Err(failure) => return Err(failure),
            };
            if !full {
                sleep(POLL).await;
            }
        }
    }

    async fn more(&mut self) -> Result<Part> {
        let part = events(&self.client, self.cursor.as_deref(), AT_ONCE, self.machine.as_deref()).await?;
        self.cursor.clone_from(&part.cursor);
        Ok(part)
    }

    /// Prints one line; returns whether it is the awaited stage.
    async fn show(&mut self, entry: &Entry) -> Result<bool> {
        if is_hidden(&entry.kind) {
            return Ok(false);
        }
        let name = match entry.machine {
            Some(id) => Some(self.name(id).await),
            None => None,
        };
        let since = self.since_stage_before(entry);
        if self.out.is_json() {
            self.out.json_line(&with(entry, name.as_deref(), since))?;
        } else {
            print(&line(entry, name.as_deref(), since))?;
        }
        Ok(self.until.is_some() && entry.stage() == self.until.as_deref())
    }

    /// The machine's name; its id if the server cannot be asked now, so that no line is lost.
    async fn name(&mut self, id: MachineId) -> String {
        self.names.of(&self.client, id).await.unwrap_or_else(|_| id.to_string())
    }

    /// Milliseconds since the machine's previous stage; none for its first stage and for other events.
    fn since_stage_before(&mut self, entry: &Entry) -> Option<i64> {
        let (id, _) = entry.machine.zip(entry.stage())?;
        let before = self.last.insert(id, entry.at)?;
        Some(entry.at.as_millisecond() - before.as_millisecond())
    }
}

fn is_hidden(kind: &str) -> bool {
    HIDDEN_PREFIXES.iter().any(|prefix| kind.starts_with(prefix))
}

fn line(entry: &Entry, machine: Option<&str>, since: Option<i64>) -> String {
    let step = since.map(time::step).unwrap_or_default();
    let text = format!(
        "{}  {:<16}  {:<20}  {:>12}  {}",
        time::exact(entry.at),
        machine.unwrap_or("-"),
        entry.name(),
        step,
        entry.words()
    );
    text.trim_end().to_owned()
}

/// The event as the server sent it, with the machine's name and the time since the previous stage.
fn with(entry: &Entry, machine: Option<&str>, since: Option<i64>) -> Value {
    let mut value = json!(entry);
    if let Value::Object(fields) = &mut value {
        fields.extend(machine.map(|m| ("machine_name".to_owned(), json!(m))));
        fields.extend(since.map(|s| ("since_stage_before_ms".to_owned(), json!(s))));
    }
    value
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::{EventKind, JobId, JobState};

    use super::*;

    #[test]
    fn events_of_images_and_jobs_are_not_shown() {
        let hidden = |kind: EventKind| is_hidden(json!(kind)["kind"].as_str().unwrap());
        assert!(hidden(EventKind::VersionImporting) && hidden(EventKind::ImageUpdated));
        assert!(hidden(EventKind::JobChanged { job: JobId::generate(), state: JobState::Running }));
        assert!(!hidden(EventKind::SessionActive) && !hidden(EventKind::MachineUpdated));
    }

    #[test]
    fn a_line_says_when_who_what_and_how_long() {
        let text = r#"{"cursor":"e1-9","at":"2026-11-21T01:02:03.5Z","kind":"boot_stage","stage":"first_read","generation":4}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        let got = line(&entry, Some("pc-1"), Some(1234));
        let words: Vec<&str> = got.split_whitespace().collect();
        assert_eq!(words, ["2026-11-21T01:02:03.500Z", "pc-1", "first-read", "+1.2", "s", "generation", "4"]);
        let value = with(&entry, Some("pc-1"), Some(1234));
        assert_eq!(value["machine_name"], "pc-1");
        assert_eq!(value["since_stage_before_ms"], 1234);
        assert_eq!(value["stage"], "first_read");
    }
}
