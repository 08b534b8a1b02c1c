//! Deletions, and the pruning of what is old. Who still uses a record is asked before, to be named; the foreign keys are the
//! guard behind.

use ggnet_core::{
    Error,
    error::{Code, code},
    nouns::{ImageId, ImageVersionId, MacAddr, MachineId, TargetId},
};
use sqlx::SqliteConnection;

use super::errors::{Failure, conflict};

type Done = Result<(), Failure>;

/// How many rows one transaction of a pruning deletes. Commits go in between, and wait for at most one such transaction.
pub(super) const PRUNE_STEP: i64 = 500;

/// The names of who uses a thing, at most four of each kind ("the live session of pc-1").
async fn users(
    conn: &mut SqliteConnection,
    id: &str,
    kinds: &[(&str, &'static str)],
) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for (how, sql) in kinds {
        let names: Vec<String> = sqlx::query_scalar(*sql).bind(id).fetch_all(&mut *conn).await?;
        found.extend(names.iter().map(|name| format!("{how} {name}")));
    }
    Ok(found)
}

fn in_use(code: impl Fn(&str, &str) -> Code, what: &str, id: &str, users: &[String], hint: &str) -> Failure {
    let users = users.join(", ");
    conflict(code(id, &users), format!("The {what} {id} is in use by {users}"), hint).with_subject(id).into()
}

async fn gone(conn: &mut SqliteConnection, what: &str, id: &str, sql: &'static str) -> Done {
    if sqlx::query(sql).bind(id).execute(conn).await?.rows_affected() == 0 {
        return Err(Error::not_found(what, id).into());
    }
    Ok(())
}

/// A machine with its addresses and groups; its ended sessions stay for the record.
pub(super) async fn machine(conn: &mut SqliteConnection, id: MachineId) -> Done {
    let id = id.to_string();
    let live: Option<String> = sqlx::query_scalar(
        "SELECT m.name FROM sessions s JOIN machines m ON m.id = s.live_machine_id WHERE s.live_machine_id = $1",
    )
    .bind(&id)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(name) = live {
        return Err(conflict(
            code::machine_has_session(&name),
            format!("The machine {name} has a live session"),
            "Stop its session first",
        )
        .with_subject(id)
        .into());
    }
    gone(conn, "machine", &id, "DELETE FROM machines WHERE id = $1").await
}

/// An image with its versions.
pub(super) async fn image(conn: &mut SqliteConnection, id: ImageId) -> Done {
    let id = id.to_string();
    let users = users(
        conn,
        &id,
        &[
            ("the machine", "SELECT name FROM machines WHERE image_id = $1 ORDER BY name LIMIT 4"),
            (
                "the live session of",
                "SELECT m.name FROM sessions s JOIN machines m ON m.id = s.live_machine_id \
                 WHERE s.image_id = $1 OR s.next_image_id = $1 \
                 OR s.id IN (SELECT session_id FROM session_data_versions WHERE image_id = $1) ORDER BY m.name LIMIT 4",
            ),
            (
                "the target",
                "SELECT t.name FROM manual_targets t JOIN image_versions v ON v.id = t.version_id \
                 WHERE v.image_id = $1 ORDER BY t.name LIMIT 4",
            ),
        ],
    )
    .await?;
    if !users.is_empty() {
        return Err(in_use(
            |id, users| code::image_in_use(id, users),
            "image",
            &id,
            &users,
            "Assign these machines to another image and stop what uses it",
        ));
    }
    // Image and current version refer to each other: untie them first.
    sqlx::query("UPDATE images SET current_version_id = NULL WHERE id = $1")
        .bind(&id)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM image_versions WHERE image_id = $1").bind(&id).execute(&mut *conn).await?;
    gone(conn, "image", &id, "DELETE FROM images WHERE id = $1").await
}

/// One version.
pub(super) async fn version(conn: &mut SqliteConnection, id: ImageVersionId) -> Done {
    let id = id.to_string();
    let users = users(
        conn,
        &id,
        &[
            (
                "the live session of",
                "SELECT m.name FROM sessions s JOIN machines m ON m.id = s.live_machine_id \
                 WHERE s.live_version_id = $1 OR s.live_next_version_id = $1 \
                 OR s.id IN (SELECT session_id FROM session_data_versions WHERE version_id = $1) ORDER BY m.name LIMIT 4",
            ),
            (
                "the pinned machine",
                "SELECT name FROM machines WHERE pinned_version_id = $1 ORDER BY name LIMIT 4",
            ),
            ("the target", "SELECT name FROM manual_targets WHERE version_id = $1 ORDER BY name LIMIT 4"),
            (
                "being the current version of the image",
                "SELECT name FROM images WHERE current_version_id = $1 ORDER BY name LIMIT 4",
            ),
        ],
    )
    .await?;
    if !users.is_empty() {
        let hint = "Stop these sessions, move these pins and targets, or make another version current";
        return Err(in_use(|id, users| code::version_in_use(id, users), "version", &id, &users, hint));
    }
    gone(conn, "version", &id, "DELETE FROM image_versions WHERE id = $1").await
}

/// A manual target.
pub(super) async fn target(conn: &mut SqliteConnection, id: TargetId) -> Done {
    gone(conn, "target", &id.to_string(), "DELETE FROM manual_targets WHERE id = $1").await
}

/// An unknown machine; forgetting one that is not there is success.
pub(super) async fn seen(conn: &mut SqliteConnection, mac: MacAddr) -> Done {
    sqlx::query("DELETE FROM seen_machines WHERE mac = $1").bind(mac.to_string()).execute(conn).await?;
    Ok(())
}

/// What a pruning deletes, oldest first, [`PRUNE_STEP`] rows at a time.
pub(super) const PRUNE: [&str; 4] = [
    "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at < $1 ORDER BY at LIMIT $2)",
    "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE at < $1 ORDER BY at LIMIT $2)",
    "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE finished_at < $1 ORDER BY finished_at LIMIT $2)",
    // The newest session of a machine holds its generation number; that of a deleted machine is no use to anybody.
    "DELETE FROM sessions WHERE seq IN (SELECT s.seq FROM sessions s WHERE s.ended_at < $1 \
     AND (EXISTS (SELECT 1 FROM sessions n WHERE n.machine_id = s.machine_id AND n.seq > s.seq) \
     OR NOT EXISTS (SELECT 1 FROM machines m WHERE m.id = s.machine_id)) ORDER BY s.ended_at LIMIT $2)",
];

/// One step of a pruning: how many rows went.
pub(super) async fn prune_step(
    conn: &mut SqliteConnection,
    sql: &'static str,
    before: i64,
) -> Result<u64, Failure> {
    Ok(sqlx::query(sql).bind(before).bind(PRUNE_STEP).execute(conn).await?.rows_affected())
}
