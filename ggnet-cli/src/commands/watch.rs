//! `ggnet session watch`: boot stages as they happen.
//!
//! The events' cursor is kept over a restart of the server: what happened meanwhile is shown when it answers again.

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
/// How many events one request brings at most.
const AT_ONCE: u32 = 1000;
/// Of no interest to one who watches machines boot.
const ELSEWHERE: [&str; 4] = ["image_", "version_", "target_", "job_"];

/// Watches until the stage is reached, the time is over, or Ctrl-C.
pub async fn watch(context: &Context, o: Watch) -> Result<()> {
    let client = context.client()?;
    // By its id: a machine that is renamed meanwhile is still the one.
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
        "Watching; Ctrl-C ends it"
    } else {
        "Watching from now on; Ctrl-C ends it"
    });
    let Some(limit) = o.timeout else { return watcher.run().await };
    match tokio::time::timeout(limit, watcher.run()).await {
        Ok(ended) => ended,
        Err(_) => match &watcher.until {
            Some(stage) => {
                Err(Failure::timed_out(format!("{} was not reached in time", stage.replace('_', "-")))
                    .hint("`ggnet session watch --since-start` shows how far it came"))
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
    /// When each machine's last stage was.
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
                        self.out.note("The server does not answer; waiting for it");
                    }
                    gone = true;
                    false
                }
                // What is forgotten, or not in this database, never comes: go on with what comes.
                Err(failure) if failure.is_lost_cursor() => {
                    self.out.note("Some events are not kept any more; going on with the newest");
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

    /// One line; whether it is what was waited for.
    async fn show(&mut self, entry: &Entry) -> Result<bool> {
        if is_elsewhere(&entry.kind) {
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

    /// A server that is away just now is no reason to lose a line.
    async fn name(&mut self, id: MachineId) -> String {
        self.names.of(&self.client, id).await.unwrap_or_else(|_| id.to_string())
    }

    /// Milliseconds; none for a machine's first stage, and for what is no stage.
    fn since_stage_before(&mut self, entry: &Entry) -> Option<i64> {
        let (id, _) = entry.machine.zip(entry.stage())?;
        let before = self.last.insert(id, entry.at)?;
        Some(entry.at.as_millisecond() - before.as_millisecond())
    }
}

fn is_elsewhere(kind: &str) -> bool {
    ELSEWHERE.iter().any(|prefix| kind.starts_with(prefix))
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

/// The event as the server has it, and what we know beside it.
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
    fn what_images_and_jobs_do_is_not_shown_to_one_who_watches_machines() {
        let elsewhere = |kind: EventKind| is_elsewhere(json!(kind)["kind"].as_str().unwrap());
        assert!(elsewhere(EventKind::VersionImporting) && elsewhere(EventKind::ImageUpdated));
        assert!(elsewhere(EventKind::JobChanged { job: JobId::generate(), state: JobState::Running }));
        assert!(!elsewhere(EventKind::SessionActive) && !elsewhere(EventKind::MachineUpdated));
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
