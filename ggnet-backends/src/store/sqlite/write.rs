//! A batch, applied inside the writer's transaction: every change in order, then its events and audit rows.
//!
//! Constraints of the schema are the guard; the messages here only name the field, the value and who is in the way. Updates are
//! conditional on the revision (`… WHERE id = $ AND revision = $`), so that of two writers over one revision exactly one wins.

use ggnet_core::{
    Error, ErrorKind,
    error::code,
    nouns::{
        AuditRow, Event, Generation, Image, ImageId, ImageVersion, ImageVersionId, Job, Machine, MachineId,
        ManualTarget, NewEvent, SeenMachine, Session,
    },
    ports::{Batch, Fence, MAX_SEEN, Write},
};
use sqlx::SqliteConnection;

use super::{
    delete,
    errors::{Failure, Violation, conflict, unique_on, violation},
    rows::{cursor, decode, encode, micros, revision, search_text, seen_again, word},
    seal::Sealer,
};

type Done = Result<(), Failure>;

/// Applies a batch; the caller commits, or rolls back when this fails.
pub(super) async fn apply(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    batch: Batch,
) -> Result<Vec<Event>, Failure> {
    for fence in &batch.fences {
        check(conn, fence).await?;
    }
    for write in batch.writes {
        match write {
            Write::Machine(m) => machine(conn, m).await?,
            Write::DeleteMachine(id) => delete::machine(conn, id).await?,
            Write::Image(i) => image(conn, i).await?,
            Write::DeleteImage(id) => delete::image(conn, id).await?,
            Write::Version(v) => version(conn, &v).await?,
            Write::DeleteVersion(id) => delete::version(conn, id).await?,
            Write::Session(s) => session(conn, sealer, *s).await?,
            Write::Job(j) => job(conn, *j).await?,
            Write::Target(t) => target(conn, &t).await?,
            Write::DeleteTarget(id) => delete::target(conn, id).await?,
            Write::Seen(s) => seen(conn, s).await?,
            Write::DeleteSeen(mac) => delete::seen(conn, mac).await?,
            Write::Setting { key, value } => setting(conn, &key, &value).await?,
            other => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("The SQLite store does not know the change {other:?}"),
                )
                .into());
            }
        }
    }
    let mut events = Vec::with_capacity(batch.events.len());
    for new in batch.events {
        events.push(event(conn, new).await?);
    }
    for row in &batch.audit {
        audit(conn, row).await?;
    }
    Ok(events)
}

/// That a fence still holds.
async fn check(conn: &mut SqliteConnection, fence: &Fence) -> Done {
    let id = fence.session.to_string();
    // Records from before there were epochs are in the first.
    let epoch: Option<i64> =
        sqlx::query_scalar("SELECT coalesce(json_extract(doc, '$.epoch'), 0) FROM sessions WHERE id = $1")
            .bind(&id)
            .fetch_optional(conn)
            .await?;
    let epoch = epoch.ok_or_else(|| Error::not_found("session", &id))?;
    if u64::try_from(epoch).is_ok_and(|epoch| epoch == fence.epoch) {
        return Ok(());
    }
    let message = format!(
        "Session {id} was taken over: it is in epoch {epoch}, this change was made in epoch {}",
        fence.epoch
    );
    let code = code::session_taken_over(&id, epoch);
    Err(conflict(code, message, "Another server has it now; nothing was changed").with_subject(id).into())
}

const READ_AGAIN: &str = "Read it again and repeat the change";
const OTHER_NAME: &str = "Choose another name";

/// A record that is new to whoever writes it, and is there.
fn exists_already(what: &str, id: &str) -> Error {
    conflict(code::exists_already(what, id), format!("The {what} {id} exists already"), READ_AGAIN)
}

/// Why an update over `over` found no row: the record is gone, or somebody else changed it.
fn lost_update(what: &str, which: &str, over: u64, now: Option<i64>) -> Failure {
    match now {
        None => Error::not_found(what, which).into(),
        Some(now) => conflict(
            code::record_changed(what, which, now),
            format!(
                "The {what} {which} was changed by somebody else: it is at revision {now}, this change was made over \
                 revision {over}"
            ),
            READ_AGAIN,
        )
        .with_subject(which)
        .into(),
    }
}

async fn machine(conn: &mut SqliteConnection, mut m: Machine) -> Done {
    m.validate()?;
    let over = m.revision;
    m.revision = over.saturating_add(1);
    let id = m.id.to_string();
    let sql = if over == 0 {
        "INSERT INTO machines (name, state, image_id, pinned_version_id, search, revision, doc, id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    } else {
        "UPDATE machines SET name = $1, state = $2, image_id = $3, pinned_version_id = $4, search = $5, revision = $6, \
         doc = $7 WHERE id = $8 AND revision = $9"
    };
    let mut query = sqlx::query(sql)
        .bind(m.name.as_str())
        .bind(m.state.as_str())
        .bind(m.image.map(|i| i.to_string()))
        .bind(m.pinned_version.map(|v| v.to_string()))
        .bind(search_text(&m))
        .bind(revision(m.revision)?)
        .bind(encode(&m)?)
        .bind(&id);
    if over != 0 {
        query = query.bind(revision(over)?);
    }
    let changed = match query.execute(&mut *conn).await {
        Ok(done) => done.rows_affected(),
        Err(e) if unique_on(&e, "machines.name") => {
            return Err(conflict(
                code::name_taken("machine", &m.name),
                format!("The name {} is already used by another machine", m.name),
                OTHER_NAME,
            )
            .with_source(e)
            .into());
        }
        Err(e) if unique_on(&e, "machines.id") => {
            return Err(exists_already("machine", &id).with_source(e).into());
        }
        Err(e) if violation(&e) == Some(Violation::ForeignKey) => {
            return Err(
                missing_version(conn, m.image, m.pinned_version, &format!("The machine {}", m.name)).await?
            );
        }
        Err(e) => return Err(e.into()),
    };
    if changed == 0 {
        let now = sqlx::query_scalar("SELECT revision FROM machines WHERE id = $1")
            .bind(&id)
            .fetch_optional(conn)
            .await?;
        return Err(lost_update("machine", &id, over, now));
    }
    machine_lists(conn, &m, over != 0).await
}

/// The addresses and groups of a machine, as rows.
async fn machine_lists(conn: &mut SqliteConnection, m: &Machine, existed: bool) -> Done {
    let id = m.id.to_string();
    if existed {
        sqlx::query("DELETE FROM machine_macs WHERE machine_id = $1").bind(&id).execute(&mut *conn).await?;
        sqlx::query("DELETE FROM machine_groups WHERE machine_id = $1").bind(&id).execute(&mut *conn).await?;
    }
    for mac in &m.macs {
        let inserted = sqlx::query("INSERT INTO machine_macs (mac, machine_id) VALUES ($1, $2)")
            .bind(mac.to_string())
            .bind(&id)
            .execute(&mut *conn)
            .await;
        if let Err(e) = inserted {
            if violation(&e) != Some(Violation::Unique) {
                return Err(e.into());
            }
            let holder: Option<String> = sqlx::query_scalar(
                "SELECT m.name FROM machine_macs a JOIN machines m ON m.id = a.machine_id WHERE a.mac = $1",
            )
            .bind(mac.to_string())
            .fetch_optional(conn)
            .await?;
            let holder = holder.unwrap_or_else(|| "another machine".to_owned());
            return Err(conflict(
                code::mac_taken(mac, &holder),
                format!("The MAC address {mac} is already used by the machine {holder}"),
                "Give each network card to one machine only",
            )
            .with_source(e)
            .into());
        }
    }
    for group in &m.groups {
        sqlx::query("INSERT INTO machine_groups (name, machine_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(group.as_str())
            .bind(&id)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Which of image and version is not there, for the message.
async fn missing_version(
    conn: &mut SqliteConnection,
    image: Option<ImageId>,
    version: Option<ImageVersionId>,
    who: &str,
) -> Result<Failure, Failure> {
    if let Some(image) = image
        && sqlx::query("SELECT 1 FROM images WHERE id = $1")
            .bind(image.to_string())
            .fetch_optional(conn)
            .await?
            .is_none()
    {
        return Ok(conflict(
            code::reference_missing("image", image),
            format!("{who} refers to the image {image}, which does not exist"),
            "Choose an image that exists",
        )
        .into());
    }
    let version = version.map(|v| v.to_string()).unwrap_or_default();
    Ok(conflict(
        code::reference_missing("version", &version),
        format!("{who} refers to the version {version}, which is not a version of its image"),
        "Choose a version of that image",
    )
    .into())
}

async fn image(conn: &mut SqliteConnection, mut i: Image) -> Done {
    let over = i.revision;
    i.revision = over.saturating_add(1);
    let id = i.id.to_string();
    let sql = if over == 0 {
        "INSERT INTO images (name, current_version_id, revision, doc, id) VALUES ($1, $2, $3, $4, $5)"
    } else {
        "UPDATE images SET name = $1, current_version_id = $2, revision = $3, doc = $4 WHERE id = $5 AND revision = $6"
    };
    let mut query = sqlx::query(sql)
        .bind(i.name.as_str())
        .bind(i.current.map(|v| v.to_string()))
        .bind(revision(i.revision)?)
        .bind(encode(&i)?)
        .bind(&id);
    if over != 0 {
        query = query.bind(revision(over)?);
    }
    let changed = match query.execute(&mut *conn).await {
        Ok(done) => done.rows_affected(),
        Err(e) if unique_on(&e, "images.name") => {
            return Err(conflict(
                code::name_taken("image", &i.name),
                format!("The name {} is already used by another image", i.name),
                OTHER_NAME,
            )
            .with_source(e)
            .into());
        }
        Err(e) if unique_on(&e, "images.id") => {
            return Err(exists_already("image", &id).with_source(e).into());
        }
        Err(e) if violation(&e) == Some(Violation::ForeignKey) => {
            return Err(missing_version(conn, None, i.current, &format!("The image {}", i.name)).await?);
        }
        Err(e) => return Err(e.into()),
    };
    if changed == 0 {
        let now = sqlx::query_scalar("SELECT revision FROM images WHERE id = $1")
            .bind(&id)
            .fetch_optional(conn)
            .await?;
        return Err(lost_update("image", &id, over, now));
    }
    Ok(())
}

async fn version(conn: &mut SqliteConnection, v: &ImageVersion) -> Done {
    let id = v.id.to_string();
    let done = sqlx::query(
        "INSERT INTO image_versions (id, image_id, number, state, doc) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET number = excluded.number, state = excluded.state, doc = excluded.doc \
         WHERE image_versions.image_id = excluded.image_id",
    )
    .bind(&id)
    .bind(v.image.to_string())
    .bind(i64::from(v.number))
    .bind(word(&v.state)?)
    .bind(encode(v)?)
    .execute(conn)
    .await;
    match done {
        Ok(done) if done.rows_affected() == 0 => Err(conflict(
            ErrorKind::Conflict,
            format!("The version {id} belongs to another image than {}", v.image),
            "A version stays with its image",
        )
        .into()),
        Ok(_) => Ok(()),
        Err(e) if unique_on(&e, "image_versions.number") => Err(conflict(
            ErrorKind::Conflict,
            format!("The version number {} is already used in the image {}", v.number, v.image),
            "Read the versions again and take the next number",
        )
        .with_source(e)
        .into()),
        Err(e) if violation(&e) == Some(Violation::ForeignKey) => Err(conflict(
            code::reference_missing("image", v.image),
            format!("The version {id} refers to the image {}, which does not exist", v.image),
            "Make the image first",
        )
        .with_source(e)
        .into()),
        Err(e) => Err(e.into()),
    }
}

async fn session(conn: &mut SqliteConnection, sealer: &Sealer, mut s: Session) -> Done {
    let over = s.revision;
    s.revision = over.saturating_add(1);
    let id = s.id.to_string();
    let live = s.state.is_live();
    let next_sealed = s.next.as_ref().map(|g| sealer.seal(s.id, g)).transpose()?.flatten();
    // An ended session without a time of its end is as old as its start: it must not be kept for ever.
    let ended = (!live).then(|| micros(s.ended_at.unwrap_or(s.started_at)));
    let (current, next) = (s.current.system(), s.next.as_ref().filter(|_| live).map(Generation::system));
    let sql = if over == 0 {
        "INSERT INTO sessions (machine_id, image_id, state, live_machine_id, live_version_id, next_image_id, \
         live_next_version_id, ended_at, current_sealed, next_sealed, revision, doc, id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
    } else {
        "UPDATE sessions SET machine_id = $1, image_id = $2, state = $3, live_machine_id = $4, live_version_id = $5, \
         next_image_id = $6, live_next_version_id = $7, ended_at = $8, current_sealed = $9, next_sealed = $10, \
         revision = $11, doc = $12 WHERE id = $13 AND revision = $14"
    };
    let mut query = sqlx::query(sql)
        .bind(s.machine.to_string())
        .bind(current.image.to_string())
        .bind(s.state.as_str())
        .bind(live.then(|| s.machine.to_string()))
        .bind(live.then(|| current.version.to_string()))
        .bind(next.map(|disk| disk.image.to_string()))
        .bind(next.map(|disk| disk.version.to_string()))
        .bind(ended)
        .bind(sealer.seal(s.id, &s.current)?)
        .bind(next_sealed)
        .bind(revision(s.revision)?)
        .bind(encode(&s)?)
        .bind(&id);
    if over != 0 {
        query = query.bind(revision(over)?);
    }
    let changed = match query.execute(&mut *conn).await {
        Ok(done) => done.rows_affected(),
        Err(e) if unique_on(&e, "sessions.machine_id") => {
            let machine = machine_name(conn, s.machine).await?.unwrap_or_else(|| s.machine.to_string());
            return Err(conflict(
                code::machine_has_session(&machine),
                format!("The machine {machine} already has a live session"),
                "Stop that session first",
            )
            .with_subject(s.machine.to_string())
            .with_source(e)
            .into());
        }
        Err(e) if unique_on(&e, "sessions.id") => {
            return Err(exists_already("session", &id).with_source(e).into());
        }
        Err(e) if violation(&e) == Some(Violation::ForeignKey) => return Err(session_lacks(conn, &s).await?),
        Err(e) => return Err(e.into()),
    };
    if changed == 0 {
        let now = sqlx::query_scalar("SELECT revision FROM sessions WHERE id = $1")
            .bind(&id)
            .fetch_optional(conn)
            .await?;
        return Err(lost_update("session", &id, over, now));
    }
    data_versions(conn, &s, over != 0).await
}

/// The versions of a live session's data disks, as rows; an ended one has none.
async fn data_versions(conn: &mut SqliteConnection, s: &Session, existed: bool) -> Done {
    let id = s.id.to_string();
    if existed {
        sqlx::query("DELETE FROM session_data_versions WHERE session_id = $1")
            .bind(&id)
            .execute(&mut *conn)
            .await?;
    }
    let live = s.generations().filter(|_| s.state.is_live());
    for disk in live.flat_map(|generation| generation.disks.iter().skip(1)) {
        let sql = "INSERT INTO session_data_versions (session_id, version_id, image_id) VALUES ($1, $2, $3) \
                   ON CONFLICT (session_id, version_id) DO NOTHING";
        let query = sqlx::query(sql).bind(&id).bind(disk.version.to_string()).bind(disk.image.to_string());
        match query.execute(&mut *conn).await {
            Ok(_) => {}
            Err(e) if violation(&e) == Some(Violation::ForeignKey) => {
                return Err(session_lacks(conn, s).await?);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Which of a live session's machine and versions is not there, for the message.
async fn session_lacks(conn: &mut SqliteConnection, s: &Session) -> Result<Failure, Failure> {
    if machine_name(conn, s.machine).await?.is_none() {
        return Ok(conflict(
            code::reference_missing("machine", s.machine),
            format!("The session {} refers to the machine {}, which does not exist", s.id, s.machine),
            "Register the machine first",
        )
        .into());
    }
    let mut lacking = s.current.system();
    for disk in s.generations().flat_map(|generation| generation.disks.iter()) {
        let there = sqlx::query("SELECT 1 FROM image_versions WHERE id = $1 AND image_id = $2")
            .bind(disk.version.to_string())
            .bind(disk.image.to_string())
            .fetch_optional(&mut *conn)
            .await?;
        if there.is_none() {
            lacking = disk;
        }
    }
    missing_version(conn, Some(lacking.image), Some(lacking.version), &format!("The session {}", s.id)).await
}

async fn machine_name(conn: &mut SqliteConnection, id: MachineId) -> Result<Option<String>, Failure> {
    Ok(sqlx::query_scalar("SELECT name FROM machines WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(conn)
        .await?)
}

async fn job(conn: &mut SqliteConnection, mut j: Job) -> Done {
    let over = j.revision;
    j.revision = over.saturating_add(1);
    let id = j.id.to_string();
    let sql = if over == 0 {
        "INSERT INTO jobs (subject, state, finished_at, revision, doc, id) VALUES ($1, $2, $3, $4, $5, $6)"
    } else {
        "UPDATE jobs SET subject = $1, state = $2, finished_at = $3, revision = $4, doc = $5 WHERE id = $6 AND revision = $7"
    };
    // One that ended without a time of its end is as old as its request: it must not be kept for ever.
    let finished = (!j.state.is_live()).then(|| micros(j.finished_at.unwrap_or(j.created_at)));
    let mut query = sqlx::query(sql)
        .bind(j.subject.to_string())
        .bind(j.state.as_str())
        .bind(finished)
        .bind(revision(j.revision)?)
        .bind(encode(&j)?)
        .bind(&id);
    if over != 0 {
        query = query.bind(revision(over)?);
    }
    let changed = match query.execute(&mut *conn).await {
        Ok(done) => done.rows_affected(),
        Err(e) if unique_on(&e, "jobs.subject") => {
            return Err(conflict(
                code::job_under_way(j.subject),
                format!("Another job works on {} already", j.subject),
                "Wait for its end, or cancel it",
            )
            .with_subject(id)
            .with_source(e)
            .into());
        }
        Err(e) if unique_on(&e, "jobs.id") => {
            return Err(exists_already("job", &id).with_source(e).into());
        }
        Err(e) => return Err(e.into()),
    };
    if changed == 0 {
        let now = sqlx::query_scalar("SELECT revision FROM jobs WHERE id = $1")
            .bind(&id)
            .fetch_optional(conn)
            .await?;
        return Err(lost_update("job", &id, over, now));
    }
    Ok(())
}

async fn target(conn: &mut SqliteConnection, t: &ManualTarget) -> Done {
    let done = sqlx::query("INSERT INTO manual_targets (id, name, version_id, doc) VALUES ($1, $2, $3, $4)")
        .bind(t.id.to_string())
        .bind(t.name.as_str())
        .bind(t.version.to_string())
        .bind(encode(t)?)
        .execute(conn)
        .await;
    match done {
        Ok(_) => Ok(()),
        Err(e) if unique_on(&e, "manual_targets.name") => Err(conflict(
            code::name_taken("target", &t.name),
            format!("The name {} is already used by another target", t.name),
            OTHER_NAME,
        )
        .with_source(e)
        .into()),
        Err(e) if violation(&e) == Some(Violation::Unique) => {
            Err(exists_already("target", &t.id.to_string()).with_source(e).into())
        }
        Err(e) if violation(&e) == Some(Violation::ForeignKey) => Err(conflict(
            code::reference_missing("version", t.version),
            format!("The target {} refers to the version {}, which does not exist", t.name, t.version),
            "Choose a version that exists",
        )
        .with_source(e)
        .into()),
        Err(e) => Err(e.into()),
    }
}

async fn seen(conn: &mut SqliteConnection, new: SeenMachine) -> Done {
    let mac = new.mac.to_string();
    let old: Option<String> = sqlx::query_scalar("SELECT doc FROM seen_machines WHERE mac = $1")
        .bind(&mac)
        .fetch_optional(&mut *conn)
        .await?;
    let is_new = old.is_none();
    let record = match old {
        None => new,
        Some(doc) => seen_again(decode("seen machine", &doc)?, new),
    };
    sqlx::query(
        "INSERT INTO seen_machines (mac, last_seen, doc) VALUES ($1, $2, $3) \
         ON CONFLICT (mac) DO UPDATE SET last_seen = excluded.last_seen, doc = excluded.doc",
    )
    .bind(&mac)
    .bind(micros(record.last_seen))
    .bind(encode(&record)?)
    .execute(&mut *conn)
    .await?;
    if is_new {
        // The index has this order: what stands behind the last place is all that is looked at.
        sqlx::query(
            "DELETE FROM seen_machines WHERE mac IN \
             (SELECT mac FROM seen_machines ORDER BY last_seen DESC, mac LIMIT -1 OFFSET $1)",
        )
        .bind(i64::try_from(MAX_SEEN).unwrap_or(i64::MAX))
        .execute(conn)
        .await?;
    }
    Ok(())
}

async fn setting(conn: &mut SqliteConnection, key: &str, value: &str) -> Done {
    sqlx::query(
        "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )
    .bind(key)
    .bind(value)
    .execute(conn)
    .await?;
    Ok(())
}

async fn event(conn: &mut SqliteConnection, new: NewEvent) -> Result<Event, Failure> {
    let seq =
        sqlx::query_scalar("INSERT INTO events (at, machine_id, doc) VALUES ($1, $2, $3) RETURNING seq")
            .bind(micros(new.at))
            .bind(new.machine.map(|m| m.to_string()))
            .bind(encode(&new)?)
            .fetch_one(conn)
            .await?;
    Ok(Event { cursor: cursor(seq), event: new })
}

async fn audit(conn: &mut SqliteConnection, row: &AuditRow) -> Done {
    sqlx::query("INSERT INTO audit (at, doc) VALUES ($1, $2)")
        .bind(micros(row.at))
        .bind(encode(row)?)
        .execute(conn)
        .await?;
    Ok(())
}
