//! `ggnet target`.

use std::collections::HashMap;

use ggnet_core::{
    api::{CreateTargetRequest, TargetResponse},
    nouns::{Machine, MachineId},
};

use super::{
    Context,
    image::{self, Bare},
};
use crate::{
    client::Client,
    failure::{Failure, Result},
    options::target::{Add, Command, Remove},
    output::{confirm, size},
};

/// Runs one command.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::List => list(context).await,
        Command::Add(o) => add(context, o).await,
        Command::Remove(o) => remove(context, o).await,
    }
}

async fn list(context: &Context) -> Result<()> {
    let client = context.client()?;
    let targets: Vec<TargetResponse> = client.get(&["targets"], &vec![]).await?;
    let names = if context.out.is_json() { HashMap::new() } else { machine_names(&client, &targets).await? };
    context.out.list(&["iqn", "for", "generation", "connections", "read", "written"], &targets, |t| {
        let owner = match (&t.manual, t.machine) {
            (Some(manual), _) => format!("{} (by hand)", manual.name),
            (None, Some(id)) => names.get(&id).cloned().unwrap_or_else(|| id.to_string()),
            (None, None) => String::new(),
        };
        vec![
            t.iqn.to_string().into(),
            owner.into(),
            t.generation.map(|g| g.to_string()).unwrap_or_default().into(),
            connections(t).into(),
            size(t.connections.iter().map(|c| c.bytes_read).sum()).into(),
            size(t.connections.iter().map(|c| c.bytes_written).sum()).into(),
        ]
    })
}

fn connections(t: &TargetResponse) -> String {
    let from = |c: &ggnet_core::ports::Connection| {
        c.peer.map_or_else(|| c.initiator.clone(), |p| p.ip().to_string())
    };
    t.connections.iter().map(from).collect::<Vec<_>>().join(" ")
}

async fn machine_names(client: &Client, targets: &[TargetResponse]) -> Result<HashMap<MachineId, String>> {
    if targets.iter().all(|t| t.machine.is_none()) {
        return Ok(HashMap::new());
    }
    let machines = client.list::<Machine>(&["machines"], &vec![], None).await?.items;
    Ok(machines.into_iter().map(|m| (m.id, m.name.to_string())).collect())
}

async fn add(context: &Context, o: Add) -> Result<()> {
    let client = context.client()?;
    let version_id = image::version(&client, &o.version, Bare::Current).await?.version.id;
    let body = CreateTargetRequest { name: o.name, version_id, initiator: o.initiator };
    let made: TargetResponse = client.post(&["targets"], &body).await?;
    let manual = made.manual.as_ref();
    let rows = vec![
        ("name", manual.map(|m| m.name.to_string()).unwrap_or_default().into()),
        ("id", manual.map(|m| m.id.to_string()).unwrap_or_default().into()),
        ("iqn", made.iqn.to_string().into()),
        ("version", o.version.to_string().into()),
        (
            "initiator",
            manual.and_then(|m| m.initiator.as_ref()).map_or("any".to_owned(), ToString::to_string).into(),
        ),
    ];
    context.out.one(&made, rows)
}

async fn remove(context: &Context, o: Remove) -> Result<()> {
    let client = context.client()?;
    let targets: Vec<TargetResponse> = client.get(&["targets"], &vec![]).await?;
    let is = |t: &TargetResponse| {
        let manual = t.manual.as_ref();
        t.iqn.as_str() == o.target
            || manual.is_some_and(|m| m.name.as_str() == o.target || m.id.to_string() == o.target)
    };
    let found = targets.iter().find(|t| is(t)).ok_or_else(|| {
        Failure::not_found(format!("Target {} does not exist", o.target))
            .hint("`ggnet target list` lists all targets")
    })?;
    let Some(manual) = &found.manual else {
        return Err(Failure::refused(format!("Target {} belongs to a session", o.target))
            .hint("Stop the session: `ggnet session stop`"));
    };
    confirm(o.yes.yes, &format!("Remove target {}?", manual.name))?;
    let query = if o.force { vec![("force", "true".to_owned())] } else { vec![] };
    client.delete(&["targets", &manual.id.to_string()], &query).await?;
    context.out.done("removed", manual.name.as_str(), &format!("Target {} was removed", manual.name))
}
