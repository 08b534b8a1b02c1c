//! `ggnet machine`.

use std::collections::HashMap;

use ggnet_core::{
    api::{BootScriptResponse, CreateMachineRequest, ImageResponse, UpdateMachineRequest},
    nouns::{Firmware, ImageId, MacAddr, Machine, MachineState, Name, SeenMachine, WritebackPolicy},
};

use super::{Context, image, wire_name};
use crate::{
    client::{Client, Query},
    failure::{Failure, Result},
    options::{
        machine::{Add, Changes, Command, List, Set},
        values::OrNone,
    },
    output::{Field, Mood, confirm},
    time,
};

/// Runs one command.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    let out = context.out;
    match command {
        Command::List(o) => list(context, o).await,
        Command::Show(o) => {
            show(context, &context.client()?, &get(&context.client()?, &o.machine).await?).await
        }
        Command::Add(o) => add(context, o).await,
        Command::Set(o) => set(context, o).await,
        Command::Remove(o) => {
            let client = context.client()?;
            confirm(o.yes.yes, &format!("Remove machine {}?", o.machine))?;
            client.delete(&["machines", &o.machine], &vec![]).await?;
            out.done("removed", &o.machine, &format!("Machine {} was removed", o.machine))
        }
        Command::Seen => seen(context).await,
        Command::Forget { mac } => {
            context.client()?.delete(&["machines", "seen", &mac.to_string()], &vec![]).await?;
            out.done(
                "forgotten",
                &mac.to_string(),
                &format!("{mac} was removed from the list until it asks again"),
            )
        }
        Command::DiscardWriteback(o) => {
            let client = context.client()?;
            confirm(o.yes.yes, &format!("Delete everything that machine {} has written?", o.machine))?;
            client.delete(&["machines", &o.machine, "writeback"], &vec![]).await?;
            out.done("discarded", &o.machine, &format!("All writes of machine {} were deleted", o.machine))
        }
        Command::BootScript(o) => {
            let path = ["sessions", "machine", &o.machine, "boot-script"];
            let got: BootScriptResponse = context.client()?.get(&path, &vec![]).await?;
            if out.is_json() { out.json(&got) } else { out.text(&got.script) }
        }
    }
}

/// Gets a machine by name or id.
pub async fn get(client: &Client, reference: &str) -> Result<Machine> {
    client.get(&["machines", reference], &vec![]).await
}

async fn list(context: &Context, o: List) -> Result<()> {
    let client = context.client()?;
    let mut query = Query::new();
    query.extend(o.state.map(|s| ("state", s.as_str().to_owned())));
    query.extend(o.group.map(|g| ("group", g.to_string())));
    query.extend(o.image.map(|i| ("image", i)));
    query.extend(o.search.map(|s| ("search", s)));
    let machines = client.list::<Machine>(&["machines"], &query, None).await?.items;
    let images = if context.out.is_json() { HashMap::new() } else { image_names(&client, &machines).await? };
    let header = ["name", "mac", "image", "state", "firmware", "reboot", "groups"];
    context.out.list(&header, &machines, |m| {
        vec![
            m.name.as_str().into(),
            joined(&m.macs).into(),
            image_of(m, &images).into(),
            state(m.state),
            wire_name(&m.firmware).into(),
            wire_name(&m.writeback).into(),
            joined(&m.groups).into(),
        ]
    })
}

async fn image_names(client: &Client, machines: &[Machine]) -> Result<HashMap<ImageId, String>> {
    if machines.iter().all(|m| m.image.is_none()) {
        return Ok(HashMap::new());
    }
    let images = client.list::<ImageResponse>(&["images"], &vec![], None).await?.items;
    Ok(images.into_iter().map(|i| (i.image.id, i.image.name.to_string())).collect())
}

fn image_of(machine: &Machine, names: &HashMap<ImageId, String>) -> String {
    let name = |id: ImageId| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    machine.image.map(name).unwrap_or_default()
}

fn state(state: MachineState) -> Field {
    let mood = match state {
        MachineState::Active => Mood::Good,
        MachineState::Maintenance => Mood::Middling,
        MachineState::Inactive | MachineState::Retired => Mood::Plain,
    };
    Field::with(state.as_str(), mood)
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

async fn show(context: &Context, client: &Client, m: &Machine) -> Result<()> {
    let names = if context.out.is_json() {
        HashMap::new()
    } else {
        image_names(client, std::slice::from_ref(m)).await?
    };
    let rows = vec![
        ("name", m.name.as_str().into()),
        ("id", m.id.to_string().into()),
        ("description", m.description.as_str().into()),
        ("mac", joined(&m.macs).into()),
        ("state", state(m.state)),
        ("image", image_of(m, &names).into()),
        ("pinned version", m.pinned_version.map(|v| v.to_string()).unwrap_or_default().into()),
        ("device type", wire_name(&m.device_type).into()),
        ("firmware", wire_name(&m.firmware).into()),
        ("fixed address", m.fixed_address.map(|a| a.to_string()).unwrap_or_default().into()),
        ("groups", joined(&m.groups).into()),
        ("auto start", if m.auto_start { "yes" } else { "no" }.into()),
        (
            "at a reboot",
            if m.writeback == WritebackPolicy::Keep { "keeps its changes" } else { "gets a clean disk" }
                .into(),
        ),
        ("created", time::exact(m.created_at).into()),
        ("changed", format!("{} (revision {})", time::exact(m.updated_at), m.revision).into()),
    ];
    context.out.one(m, rows)
}

async fn seen(context: &Context) -> Result<()> {
    let machines = context.client()?.list::<SeenMachine>(&["machines", "seen"], &vec![], None).await?.items;
    context.out.list(
        &["mac", "firmware", "address", "last seen", "first seen", "times"],
        &machines,
        |m| {
            vec![
                m.mac.to_string().into(),
                wire_name(&m.firmware).into(),
                m.address.as_deref().unwrap_or_default().into(),
                time::ago(m.last_seen).into(),
                time::ago(m.first_seen).into(),
                m.count.to_string().into(),
            ]
        },
    )?;
    if let Some(first) = machines.first() {
        context.out.note(&format!("To register one: `ggnet machine add NAME --seen {}`", first.mac));
    }
    Ok(())
}

async fn add(context: &Context, o: Add) -> Result<()> {
    let client = context.client()?;
    let name = match (o.name, o.seen) {
        (Some(name), _) => name,
        (None, Some(mac)) => name_of(mac)?,
        (None, None) => return Err(Failure::input("name", "A machine needs a name")),
    };
    let image = match &o.image {
        Some(reference) => Some(image::get(&client, reference).await?.image.id),
        None => None,
    };
    let body = CreateMachineRequest {
        name,
        description: o.description,
        macs: o.mac,
        device_type: o.device_type,
        firmware: o.firmware.unwrap_or(Firmware::Unknown),
        fixed_address: o.fixed_address,
        groups: o.groups,
        state: o.state,
        image,
        pinned_version: None,
        auto_start: !o.no_auto_start,
        writeback: if o.keep { WritebackPolicy::Keep } else { WritebackPolicy::Discard },
    };
    let made: Machine = match o.seen {
        Some(mac) => client.post(&["machines", "seen", &mac.to_string(), "register"], &body).await?,
        None => client.post(&["machines"], &body).await?,
    };
    show(context, &client, &made).await?;
    if made.image.is_none() {
        context.out.note(&format!(
            "It has no image to boot yet. Set one: `ggnet machine set {} --image IMAGE`",
            made.name
        ));
    }
    Ok(())
}

/// `pc-` and the last six digits of the MAC address: unique enough in one room, and shown on the machine's screen.
fn name_of(mac: MacAddr) -> Result<Name> {
    let compact = mac.compact();
    let last = compact.get(6..).unwrap_or(&compact);
    format!("pc-{last}").parse().map_err(|e: ggnet_core::Error| Failure::input("name", e.message()))
}

async fn set(context: &Context, o: Set) -> Result<()> {
    let client = context.client()?;
    let body = changes(&client, o.revision, o.changes).await?;
    let changed: Machine = client.patch(&["machines", &o.machine], &body).await?;
    show(context, &client, &changed).await
}

async fn changes(client: &Client, revision: Option<u64>, c: Changes) -> Result<UpdateMachineRequest> {
    let image = match c.image {
        None => None,
        Some(OrNone::None) => Some(None),
        Some(OrNone::Some(reference)) => Some(Some(image::get(client, &reference).await?.image.id)),
    };
    let pinned_version = match c.pin {
        None => None,
        Some(OrNone::None) => Some(None),
        Some(OrNone::Some(version)) => {
            Some(Some(image::version(client, &version, image::Bare::Current).await?.version.id))
        }
    };
    Ok(UpdateMachineRequest {
        revision,
        name: c.name,
        description: c.description,
        macs: Some(c.mac).filter(|m| !m.is_empty()),
        device_type: c.device_type,
        firmware: c.firmware,
        fixed_address: c.fixed_address.map(OrNone::into_option),
        groups: if c.no_groups { Some(vec![]) } else { Some(c.groups).filter(|g| !g.is_empty()) },
        state: c.state,
        image,
        pinned_version,
        auto_start: if c.auto_start { Some(true) } else { c.no_auto_start.then_some(false) },
        writeback: if c.keep {
            Some(WritebackPolicy::Keep)
        } else {
            c.discard.then_some(WritebackPolicy::Discard)
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seen_machine_is_named_by_its_mac() {
        assert_eq!(name_of("52:54:00:AA:00:01".parse().unwrap()).unwrap().as_str(), "pc-aa0001");
    }
}
