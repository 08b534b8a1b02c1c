//! `ggnet events`, `server` and `completion`.

use std::time::Duration;

use clap::CommandFactory as _;
use ggnet_core::{
    api::{BackendHealth, HealthResponse, ServerInfo},
    ports::Health,
};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Context,
    timeline::{self, Entry, Names},
};
use crate::{
    client::Client,
    failure::{Failure, Result},
    options::{
        Options,
        system::{Completion, Events, Server},
    },
    output::{Field, Mood},
    time,
};

const POLL: Duration = Duration::from_millis(250);

/// Shows the events after a cursor, or the newest.
pub async fn events(context: &Context, o: &Events) -> Result<()> {
    let client = context.client()?;
    let machine = o.machine.as_deref();
    let part = match o.after.as_deref() {
        Some(after) => timeline::events(&client, Some(after), o.limit, machine).await?,
        None => timeline::newest(&client, o.limit, machine).await?,
    };
    let items = part.items;
    let mut names = Names::default();
    let mut rows = Vec::with_capacity(items.len());
    for entry in items {
        let name = match entry.machine {
            Some(id) if !context.out.is_json() => names.of(&client, id).await?,
            _ => String::new(),
        };
        rows.push(Named { entry, name });
    }
    context.out.list(&["cursor", "time", "machine", "event", "details"], &rows, |Named { entry, name }| {
        vec![
            entry.cursor.as_str().into(),
            time::exact(entry.at).into(),
            name.as_str().into(),
            entry.name().into(),
            entry.words().into(),
        ]
    })
}

#[derive(Serialize)]
struct Named {
    #[serde(flatten)]
    entry: Entry,
    #[serde(skip)]
    name: String,
}

#[derive(Serialize)]
struct About {
    #[serde(flatten)]
    info: ServerInfo,
    #[serde(flatten)]
    health: HealthResponse,
}

/// Shows the server's version and health.
pub async fn server(context: &Context, o: &Server) -> Result<()> {
    let client = context.client()?;
    let health = match o.wait {
        Some(limit) => wait(&client, limit).await?,
        None => client.ready().await?,
    };
    let about = About { info: client.get(&["server"], &vec![]).await?, health };
    let mut rows = vec![
        ("version", about.info.version.as_str().into()),
        ("instance", about.info.instance.as_str().into()),
        ("import folders", about.info.import_dirs.join(" ").into()),
        (
            "machines can boot",
            if about.health.ready { Field::with("yes", Mood::Good) } else { Field::with("no", Mood::Bad) },
        ),
    ];
    if !about.health.serving {
        rows.push((
            "serving",
            Field::with("not yet: the first reconciliation has not ended", Mood::Middling),
        ));
    }
    rows.extend(about.health.backends.iter().map(|b| (b.port.as_str(), backend(b))));
    context.out.one(&about, rows)?;
    if about.health.ready {
        Ok(())
    } else {
        Err(Failure::refused("Machines cannot boot now").hint(reasons(&about.health)))
    }
}

/// Polls until the server is ready; one that does not respond yet may still be starting.
async fn wait(client: &Client, limit: Duration) -> Result<HealthResponse> {
    let begun = Instant::now();
    loop {
        // The time limit also covers a server that accepts the connection and sends no response.
        let left = limit.saturating_sub(begun.elapsed());
        let Ok(got) = tokio::time::timeout(left, client.ready()).await else {
            return Err(Failure::timed_out("The server still does not respond")
                .hint("It accepts connections; see its log"));
        };
        match got {
            Ok(health) if health.ready => return Ok(health),
            Err(failure) if !failure.is_unreachable() => return Err(failure),
            _ if begun.elapsed() < limit => sleep(POLL).await,
            Ok(health) => return Err(Failure::timed_out("Machines still cannot boot").hint(reasons(&health))),
            Err(_) => {
                return Err(Failure::timed_out("The server still cannot be reached")
                    .hint("Check that ggnet-server is running there"));
            }
        }
    }
}

fn reasons(health: &HealthResponse) -> String {
    let down = |b: &BackendHealth| match &b.health {
        Health::Down(reason) | Health::Blocked(reason) => Some(format!("{}: {reason}", b.port)),
        Health::Up | Health::Degraded(_) => None,
    };
    let all: Vec<String> = health.backends.iter().filter_map(down).collect();
    if all.is_empty() {
        "Wait until it is ready: `ggnet server --wait 30`".to_owned()
    } else {
        all.join("; ")
    }
}

fn backend(b: &BackendHealth) -> Field {
    match &b.health {
        Health::Up => Field::with(format!("{}: up", b.backend), Mood::Good),
        Health::Degraded(reason) => Field::with(format!("{}: {reason}", b.backend), Mood::Middling),
        Health::Blocked(reason) => {
            Field::with(format!("{}: blocked, accepts nothing new: {reason}", b.backend), Mood::Bad)
        }
        Health::Down(reason) => Field::with(format!("{}: down: {reason}", b.backend), Mood::Bad),
    }
}

/// Prints a completion script.
pub fn completion(context: &Context, o: &Completion) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(o.shell, &mut Options::command(), "ggnet", &mut script);
    context.out.text(&String::from_utf8_lossy(&script))
}
