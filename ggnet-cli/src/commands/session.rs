//! `ggnet session`, except `watch`.

use ggnet_core::{
    api::{
        SessionResponse, SessionStartRequest, SessionStartResponse, SessionStatsResponse, SessionStopRequest,
    },
    nouns::{SessionDisk, SessionId, SessionState},
};

use super::{Context, failure_rows, image, machine, watch, wire_name};
use crate::{
    client::{Client, Query},
    failure::{Failure, Result},
    options::session::{Command, List},
    output::{Field, Mood},
    time,
};

/// Runs one command.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::List(o) => list(context, o).await,
        Command::Show { session } => show(context, &find(&context.client()?, &session).await?),
        Command::Start { machine, image } => start(context, &machine, image.as_deref()).await,
        Command::Stop { session, force } => {
            let client = context.client()?;
            let id = find(&client, &session).await?.session.id;
            let body = SessionStopRequest { force };
            show(context, &client.post(&["sessions", &id.to_string(), "stop"], &body).await?)
        }
        Command::Stats => stats(context).await,
        Command::Watch(o) => watch::watch(context, o).await,
    }
}

/// Gets a session by its id, or a machine's newest session. A live session is always the newest.
async fn find(client: &Client, reference: &str) -> Result<SessionResponse> {
    if let Ok(id) = reference.parse::<SessionId>() {
        match client.get(&["sessions", &id.to_string()], &vec![]).await {
            // Not a session's id, but it may be a machine's: both have the same form.
            Err(failure) if failure.is_not_found() => {}
            other => return other,
        }
    }
    let query = vec![("machine", reference.to_owned())];
    let newest =
        client.list::<SessionResponse>(&["sessions"], &query, Some(1)).await?.items.into_iter().next();
    newest.ok_or_else(|| {
        Failure::not_found(format!("Machine {reference} has no session"))
            .hint(format!("Start one: `ggnet session start {reference}`"))
    })
}

async fn list(context: &Context, o: List) -> Result<()> {
    let mut query = Query::new();
    match o.state {
        Some(state) => query.push(("state", state.as_str().to_owned())),
        None if !o.all => query.push(("live", "true".to_owned())),
        None => {}
    }
    query.extend(o.machine.map(|m| ("machine", m)));
    query.extend(o.image.map(|i| ("image", i)));
    let got = context.client()?.list::<SessionResponse>(&["sessions"], &query, o.limit).await?;
    context.out.list(
        &["machine", "image", "state", "online", "generation", "started", "id"],
        &got.items,
        |s| {
            vec![
                machine_name(s).into(),
                image_name(s).into(),
                state(s.session.state),
                online(s),
                s.session.current.number.to_string().into(),
                time::ago(s.session.started_at).into(),
                s.session.id.to_string().into(),
            ]
        },
    )?;
    if u64::try_from(got.items.len()).is_ok_and(|n| n < got.total) {
        context.out.note(&format!(
            "Showing {} of {}; use a larger --limit to see more",
            got.items.len(),
            got.total
        ));
    }
    Ok(())
}

fn machine_name(s: &SessionResponse) -> String {
    s.machine_name.as_ref().map_or_else(|| s.session.machine.to_string(), ToString::to_string)
}

fn image_name(s: &SessionResponse) -> String {
    s.image_name.as_ref().map_or_else(|| s.session.current.system().image.to_string(), ToString::to_string)
}

fn state(state: SessionState) -> Field {
    let mood = match state {
        SessionState::Active => Mood::Good,
        SessionState::Starting | SessionState::Stopping => Mood::Middling,
        SessionState::Failed => Mood::Bad,
        SessionState::Stopped => Mood::Plain,
    };
    Field::with(state.as_str(), mood)
}

fn online(s: &SessionResponse) -> Field {
    if s.online { Field::with("yes", Mood::Good) } else { "no".into() }
}

fn rows(s: &SessionResponse) -> Vec<(&'static str, Field)> {
    let session = &s.session;
    let at = |t: Option<ggnet_core::nouns::Timestamp>| Field::from(t.map(time::exact).unwrap_or_default());
    let mut rows = vec![
        ("session", session.id.to_string().into()),
        ("machine", machine_name(s).into()),
        ("image", image_name(s).into()),
        ("state", state(session.state)),
        ("online", online(s)),
        ("at a reboot", wire_name(&session.policy).into()),
        ("generation", session.current.number.to_string().into()),
        ("target", s.target_iqn.to_string().into()),
        ("initiator", session.initiator.to_string().into()),
        ("started", time::exact(session.started_at).into()),
        ("active", at(session.active_at)),
    ];
    let data: Vec<_> = session.current.disks.iter().skip(1).map(data_disk).collect();
    if !data.is_empty() {
        rows.push(("data disks", data.join("; ").into()));
    }
    if let Some(next) = &session.next {
        rows.push((
            "next generation",
            format!("{} (prepared {})", next.number, time::ago(next.prepared_at)).into(),
        ));
    }
    if let Some(ended) = session.ended_at {
        rows.push(("ended", time::exact(ended).into()));
    }
    if let Some(reason) = &session.stop_reason {
        rows.push(("reason", wire_name(reason).into()));
    }
    if let Some(error) = &session.error {
        rows.push(("error", Field::with(error, Mood::Bad)));
    }
    rows.extend(failure_rows(session.failure.as_ref()));
    rows
}

fn data_disk(disk: &SessionDisk) -> String {
    let access = if disk.writeback().is_some() { "copy on write" } else { "shared, read-only" };
    format!("LUN {}: version {} ({access})", disk.lun, disk.version)
}

fn show(context: &Context, s: &SessionResponse) -> Result<()> {
    context.out.one(s, rows(s))
}

async fn start(context: &Context, machine: &str, image: Option<&str>) -> Result<()> {
    let client = context.client()?;
    let image_id = match image {
        Some(reference) => Some(image::get(&client, reference).await?.image.id),
        None => None,
    };
    let body = SessionStartRequest { machine_id: machine::get(&client, machine).await?.id, image_id };
    let started: SessionStartResponse = client.post(&["sessions", "start"], &body).await?;
    let mut rows = rows(&started.session);
    rows.push(("portal", portal(&started.iscsi.portal, started.iscsi.port).into()));
    rows.push(("LUN", started.iscsi.lun.to_string().into()));
    rows.push(("boot script", started.script_url.as_str().into()));
    context.out.one(&started, rows)
}

/// Address and port; an IPv6 address needs brackets.
fn portal(address: &str, port: u16) -> String {
    if address.contains(':') && !address.starts_with('[') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

async fn stats(context: &Context) -> Result<()> {
    let s: SessionStatsResponse = context.client()?.get(&["sessions", "stats"], &vec![]).await?;
    let counts = s.status_counts;
    let rows = vec![
        ("starting", counts.starting.to_string().into()),
        ("active", format!("{} ({} online)", counts.active, s.online_sessions).into()),
        ("stopping", counts.stopping.to_string().into()),
        ("stopped", counts.stopped.to_string().into()),
        ("failed", counts.failed.to_string().into()),
        ("total", s.total_sessions.to_string().into()),
    ];
    context.out.one(&s, rows)
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::{DiskAccess, ImageId, ImageVersionId};

    use super::*;

    #[test]
    fn a_data_disk_says_what_becomes_of_writes_to_it() {
        let (image, version) = (ImageId::generate(), ImageVersionId::generate());
        let disk = |access| SessionDisk { lun: 3, image, version, access };
        assert_eq!(
            data_disk(&disk(DiskAccess::Shared)),
            format!("LUN 3: version {version} (shared, read-only)")
        );
        let private = DiskAccess::CopyOnWrite { writeback: "a-l3".parse().unwrap() };
        assert_eq!(data_disk(&disk(private)), format!("LUN 3: version {version} (copy on write)"));
    }

    #[test]
    fn portals_of_both_families() {
        assert_eq!(portal("10.0.0.1", 3260), "10.0.0.1:3260");
        assert_eq!(portal("fd00::1", 3260), "[fd00::1]:3260");
        assert_eq!(portal("[fd00::1]", 3260), "[fd00::1]:3260");
    }
}
