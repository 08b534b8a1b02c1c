//! Machines, and the unknown ones that were seen.

use axum::{Extension, Json, extract::State, http::StatusCode};
use ggnet_core::{
    api::{CreateMachineRequest, UpdateMachineRequest},
    nouns::{
        Firmware, ImageId, MacAddr, Machine, MachineId, MachineState, Name, Principal, SeenMachine, Timestamp,
    },
    ports::{MachineFilter, Page},
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery, free_in_a_path, page},
};

/// Words that stand where a machine's name may in a path.
const TAKEN: [&str; 1] = ["seen"];

/// Filters and page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    page: Option<u32>,
    per_page: Option<u32>,
    state: Option<MachineState>,
    group: Option<Name>,
    image: Option<String>,
    search: Option<String>,
}

/// `GET /machines`.
pub async fn list(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<ListQuery>,
) -> Answer<Json<Page<Machine>>> {
    let read = app.orchestrator.read();
    let image: Option<ImageId> = match &q.image {
        Some(reference) => Some(read.image(reference).await?.id),
        None => None,
    };
    let filter = MachineFilter { state: q.state, group: q.group, image, search: q.search };
    Ok(Json(read.machines(&filter, page(q.page, q.per_page)?).await?))
}

/// `POST /machines`.
pub async fn create(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidJson(body): ValidJson<CreateMachineRequest>,
) -> Answer<(StatusCode, Json<Machine>)> {
    free_in_a_path(&body.name, &TAKEN)?;
    let made = app.orchestrator.machines().create(new_machine(body), &by).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

fn new_machine(body: CreateMachineRequest) -> Machine {
    Machine {
        // Id, times and revision are the orchestrator's to set.
        id: MachineId::generate(),
        name: body.name,
        description: body.description,
        macs: body.macs,
        device_type: body.device_type,
        firmware: body.firmware,
        fixed_address: body.fixed_address,
        groups: body.groups,
        state: body.state,
        image: body.image,
        pinned_version: body.pinned_version,
        auto_start: body.auto_start,
        writeback: body.writeback,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        revision: 0,
    }
}

/// `GET /machines/{id}`: by id, name or MAC address.
pub async fn show(State(app): State<Shared>, ValidPath(id): ValidPath<String>) -> Answer<Json<Machine>> {
    Ok(Json(app.orchestrator.read().machine(&id).await?))
}

/// `PATCH /machines/{id}`.
pub async fn update(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<String>,
    ValidJson(body): ValidJson<UpdateMachineRequest>,
) -> Answer<Json<Machine>> {
    body.name.as_ref().map_or(Ok(()), |name| free_in_a_path(name, &TAKEN))?;
    let id = app.orchestrator.read().machine(&id).await?.id;
    let revision = body.revision;
    let change = Box::new(move |m| Ok(changed(m, body)));
    Ok(Json(app.orchestrator.machines().update(id, revision, change, &by).await?))
}

fn changed(mut m: Machine, c: UpdateMachineRequest) -> Machine {
    m.name = c.name.unwrap_or(m.name);
    m.description = c.description.unwrap_or(m.description);
    m.macs = c.macs.unwrap_or(m.macs);
    m.device_type = c.device_type.unwrap_or(m.device_type);
    m.firmware = c.firmware.unwrap_or(m.firmware);
    m.fixed_address = c.fixed_address.unwrap_or(m.fixed_address);
    m.groups = c.groups.unwrap_or(m.groups);
    m.state = c.state.unwrap_or(m.state);
    if let Some(image) = c.image {
        // A pin belongs to the image it was made for.
        if image != m.image {
            m.pinned_version = None;
        }
        m.image = image;
    }
    m.pinned_version = c.pinned_version.unwrap_or(m.pinned_version);
    m.auto_start = c.auto_start.unwrap_or(m.auto_start);
    m.writeback = c.writeback.unwrap_or(m.writeback);
    m
}

/// `DELETE /machines/{id}`.
pub async fn remove(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<String>,
) -> Answer<StatusCode> {
    let id = app.orchestrator.read().machine(&id).await?.id;
    app.orchestrator.machines().delete(id, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /machines/{id}/writeback`: throws away what a `keep` machine has written.
pub async fn discard_writeback(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<String>,
) -> Answer<StatusCode> {
    let id = app.orchestrator.read().machine(&id).await?.id;
    app.orchestrator.machines().discard_kept(id, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Page of seen machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenQuery {
    page: Option<u32>,
    per_page: Option<u32>,
}

/// `GET /machines/seen`.
pub async fn seen(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<SeenQuery>,
) -> Answer<Json<Page<SeenMachine>>> {
    Ok(Json(app.orchestrator.read().seen(page(q.page, q.per_page)?).await?))
}

/// `POST /machines/seen/{mac}/register`: takes an unknown machine over, with its MAC address and firmware.
pub async fn register_seen(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(mac): ValidPath<MacAddr>,
    ValidJson(body): ValidJson<CreateMachineRequest>,
) -> Answer<(StatusCode, Json<Machine>)> {
    free_in_a_path(&body.name, &TAKEN)?;
    let seen = app.orchestrator.read().seen_machine(mac).await?;
    let mut new = new_machine(body);
    if !new.macs.contains(&mac) {
        new.macs.insert(0, mac);
    }
    if new.firmware == Firmware::Unknown {
        new.firmware = seen.firmware;
    }
    let made = app.orchestrator.machines().create(new, &by).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// `DELETE /machines/seen/{mac}`: forgets one.
pub async fn forget_seen(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(mac): ValidPath<MacAddr>,
) -> Answer<StatusCode> {
    // What was never seen is `NotFound`, not forgotten.
    app.orchestrator.read().seen_machine(mac).await?;
    app.orchestrator.machines().forget_seen(mac, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}
