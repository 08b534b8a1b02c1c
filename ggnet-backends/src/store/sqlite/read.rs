//! Reads, each one statement or one read transaction, so that a page and its total are of one moment.

use std::collections::HashMap;

use ggnet_core::{
    Error,
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, Job, Machine, MachineId, ManualTarget, Name,
        NewEvent, SeenMachine, Session, SessionState,
    },
    ports::{JobFilter, MachineFilter, Names, Page, PageRequest, SessionCounts, SessionFilter},
};
use serde::de::DeserializeOwned;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, SqlitePool};

use super::{
    errors::Failure,
    rows::{SessionRow, all, cursor, decode, like_pattern, one, sessions},
    seal::Sealer,
};

type Read<T> = Result<T, Failure>;

/// The longest search: longer than any field that is searched.
const MAX_SEARCH: usize = 2000;

/// A record by one text column. `sql` selects `doc` with `$1`.
pub(super) async fn by_text<T: DeserializeOwned>(
    pool: &SqlitePool,
    what: &str,
    sql: &'static str,
    value: &str,
) -> Read<Option<T>> {
    one(what, sqlx::query_scalar(sql).bind(value).fetch_optional(pool).await?)
}

pub(super) const MACHINE: &str = "SELECT doc FROM machines WHERE id = $1";
pub(super) const MACHINE_BY_NAME: &str = "SELECT doc FROM machines WHERE name = $1";
pub(super) const MACHINE_BY_MAC: &str =
    "SELECT m.doc FROM machine_macs a JOIN machines m ON m.id = a.machine_id WHERE a.mac = $1";
pub(super) const IMAGE: &str = "SELECT doc FROM images WHERE id = $1";
pub(super) const IMAGE_BY_NAME: &str = "SELECT doc FROM images WHERE name = $1";
pub(super) const VERSION: &str = "SELECT doc FROM image_versions WHERE id = $1";
pub(super) const SEEN: &str = "SELECT doc FROM seen_machines WHERE mac = $1";
pub(super) const JOB: &str = "SELECT doc FROM jobs WHERE id = $1";
pub(super) const TARGET: &str = "SELECT doc FROM manual_targets WHERE id = $1";

pub(super) const SESSION: &str = "SELECT doc, current_sealed, next_sealed FROM sessions WHERE id = $1";
pub(super) const LIVE_SESSION: &str =
    "SELECT doc, current_sealed, next_sealed FROM sessions WHERE live_machine_id = $1";
pub(super) const LAST_SESSION: &str =
    "SELECT doc, current_sealed, next_sealed FROM sessions WHERE machine_id = $1 ORDER BY seq DESC LIMIT 1";

/// A session by one text column, with its credentials.
pub(super) async fn session(
    pool: &SqlitePool,
    sealer: &Sealer,
    sql: &'static str,
    value: &str,
) -> Read<Option<Session>> {
    let row: Option<SessionRow> = sqlx::query_as(sql).bind(value).fetch_optional(pool).await?;
    Ok(row.map(|r| r.open(sealer)).transpose()?)
}

/// Every live session, newest first.
pub(super) async fn live_sessions(pool: &SqlitePool, sealer: &Sealer) -> Read<Vec<Session>> {
    let rows = sqlx::query(
        "SELECT doc, current_sealed, next_sealed FROM sessions WHERE live_machine_id IS NOT NULL ORDER BY seq DESC",
    );
    sessions(&rows.fetch_all(pool).await?, sealer)
}

/// The live sessions with credentials, as they are stored.
pub(super) async fn live_sealed(pool: &SqlitePool) -> Read<Vec<SessionRow>> {
    Ok(sqlx::query_as(
        "SELECT doc, current_sealed, next_sealed FROM sessions WHERE live_machine_id IS NOT NULL \
         AND (current_sealed IS NOT NULL OR next_sealed IS NOT NULL) ORDER BY seq DESC",
    )
    .fetch_all(pool)
    .await?)
}

fn check_page(page: PageRequest) -> Result<(), Error> {
    if page.page == 0 {
        return Err(Error::invalid("page", "Pages are counted from 1"));
    }
    if !(1..=1000).contains(&page.per_page) {
        return Err(Error::invalid("per_page", format!("A page has 1 to 1000 items, not {}", page.per_page)));
    }
    Ok(())
}

/// One page of `SELECT {columns} FROM {from} {order}`; `conditions` writes the WHERE clause.
async fn page(
    pool: &SqlitePool,
    request: PageRequest,
    columns: &'static str,
    from: &'static str,
    order: &'static str,
    conditions: impl Fn(&mut QueryBuilder<Sqlite>),
) -> Read<(Vec<sqlx::sqlite::SqliteRow>, u64)> {
    check_page(request)?;
    let mut tx = pool.begin().await?;
    let mut count = QueryBuilder::new(format!("SELECT count(*) FROM {from} WHERE 1 = 1"));
    conditions(&mut count);
    let total: i64 = count.build_query_scalar().fetch_one(&mut *tx).await?;
    let mut items = QueryBuilder::new(format!("SELECT {columns} FROM {from} WHERE 1 = 1"));
    conditions(&mut items);
    items
        .push(" ORDER BY ")
        .push(order)
        .push(" LIMIT ")
        .push_bind(i64::from(request.per_page))
        .push(" OFFSET ")
        .push_bind((i64::from(request.page) - 1) * i64::from(request.per_page));
    let rows = items.build().fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok((rows, u64::try_from(total).unwrap_or_default()))
}

fn decoded<T: DeserializeOwned>(
    what: &str,
    request: PageRequest,
    (rows, total): (Vec<sqlx::sqlite::SqliteRow>, u64),
) -> Read<Page<T>> {
    let items = rows.iter().map(|row| Ok(decode(what, row.try_get(0)?)?)).collect::<Result<_, Failure>>()?;
    Ok(Page { items, total, page: request.page, per_page: request.per_page })
}

/// Machines by name.
pub(super) async fn machines(
    pool: &SqlitePool,
    filter: &MachineFilter,
    request: PageRequest,
) -> Read<Page<Machine>> {
    if filter.search.as_ref().is_some_and(|s| s.len() > MAX_SEARCH) {
        return Err(Error::invalid("search", format!("A search is at most {MAX_SEARCH} bytes long")).into());
    }
    let found = page(pool, request, "doc", "machines", "name", |q| {
        if let Some(state) = filter.state {
            q.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(image) = filter.image {
            q.push(" AND image_id = ").push_bind(image.to_string());
        }
        if let Some(group) = &filter.group {
            q.push(" AND id IN (SELECT machine_id FROM machine_groups WHERE name = ")
                .push_bind(group.to_string())
                .push(")");
        }
        if let Some(search) = &filter.search {
            q.push(" AND search LIKE ").push_bind(like_pattern(search)).push(" ESCAPE '\\'");
        }
    })
    .await?;
    decoded("machine", request, found)
}

/// Images by name.
pub(super) async fn images(pool: &SqlitePool, request: PageRequest) -> Read<Page<Image>> {
    decoded("image", request, page(pool, request, "doc", "images", "name", |_| {}).await?)
}

/// The versions of an image by number.
pub(super) async fn versions(pool: &SqlitePool, image: &str) -> Read<Vec<ImageVersion>> {
    let docs: Vec<String> =
        sqlx::query_scalar("SELECT doc FROM image_versions WHERE image_id = $1 ORDER BY number")
            .bind(image)
            .fetch_all(pool)
            .await?;
    all("version", &docs)
}

/// The versions of these images, by image and number.
pub(super) async fn versions_of(pool: &SqlitePool, images: &[ImageId]) -> Read<Vec<ImageVersion>> {
    let docs: Vec<String> = sqlx::query_scalar(
        "SELECT doc FROM image_versions WHERE image_id IN (SELECT value FROM json_each($1)) \
         ORDER BY image_id, number",
    )
    .bind(ids(images))
    .fetch_all(pool)
    .await?;
    all("version", &docs)
}

/// Versions being imported.
pub(super) async fn importing(pool: &SqlitePool) -> Read<Vec<ImageVersion>> {
    let docs: Vec<String> = sqlx::query_scalar(
        "SELECT doc FROM image_versions WHERE state = 'importing' ORDER BY image_id, number",
    )
    .fetch_all(pool)
    .await?;
    all("version", &docs)
}

/// Sessions, newest first, without their credentials.
pub(super) async fn session_page(
    pool: &SqlitePool,
    filter: &SessionFilter,
    request: PageRequest,
) -> Read<Page<Session>> {
    let found = page(pool, request, "doc", "sessions", "seq DESC", |q| {
        if let Some(state) = filter.state {
            q.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(machine) = filter.machine {
            q.push(" AND machine_id = ").push_bind(machine.to_string());
        }
        if let Some(image) = filter.image {
            q.push(" AND image_id = ").push_bind(image.to_string());
        }
        match filter.live {
            Some(true) => _ = q.push(" AND live_machine_id IS NOT NULL"),
            Some(false) => _ = q.push(" AND live_machine_id IS NULL"),
            None => {}
        }
    })
    .await?;
    decoded("session", request, found)
}

/// The counters, as the triggers keep them.
pub(super) async fn counts(pool: &SqlitePool) -> Read<SessionCounts> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, count FROM session_counts").fetch_all(pool).await?;
    let of = |state: SessionState| {
        let found = rows.iter().find(|(s, _)| s == state.as_str()).map(|(_, n)| *n);
        u64::try_from(found.unwrap_or_default()).unwrap_or_default()
    };
    Ok(SessionCounts {
        starting: of(SessionState::Starting),
        active: of(SessionState::Active),
        stopping: of(SessionState::Stopping),
        stopped: of(SessionState::Stopped),
        failed: of(SessionState::Failed),
    })
}

/// Names of machines and images, of one moment and in one statement: on a busy host each further one waits for its thread again. Each
/// list is one column: a thousand rows cost more than their names.
pub(super) async fn names(pool: &SqlitePool, machines: &[MachineId], images: &[ImageId]) -> Read<Names> {
    let (of_machines, of_images): (String, String) = sqlx::query_as(
        "SELECT (SELECT json_group_object(id, name) FROM machines WHERE id IN (SELECT value FROM json_each($1))),
                (SELECT json_group_object(id, name) FROM images WHERE id IN (SELECT value FROM json_each($2)))",
    )
    .bind(ids(machines))
    .bind(ids(images))
    .fetch_one(pool)
    .await?;
    let machines: HashMap<MachineId, Name> = decode("name", &of_machines)?;
    let images: HashMap<ImageId, Name> = decode("name", &of_images)?;
    Ok(Names { machines, images })
}

/// Ids as one parameter: a JSON array.
fn ids<Id: ToString>(ids: &[Id]) -> String {
    serde_json::Value::from(ids.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
}

/// Every live job, oldest first.
pub(super) async fn live_jobs(pool: &SqlitePool) -> Read<Vec<Job>> {
    let docs: Vec<String> = sqlx::query_scalar("SELECT doc FROM jobs WHERE finished_at IS NULL ORDER BY seq")
        .fetch_all(pool)
        .await?;
    all("job", &docs)
}

/// Jobs, newest first.
pub(super) async fn jobs(pool: &SqlitePool, filter: &JobFilter, request: PageRequest) -> Read<Page<Job>> {
    let found = page(pool, request, "doc", "jobs", "seq DESC", |q| {
        if let Some(state) = filter.state {
            q.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(subject) = filter.subject {
            q.push(" AND subject = ").push_bind(subject.to_string());
        }
        match filter.live {
            Some(true) => _ = q.push(" AND finished_at IS NULL"),
            Some(false) => _ = q.push(" AND finished_at IS NOT NULL"),
            None => {}
        }
    })
    .await?;
    decoded("job", request, found)
}

/// Manual targets by name.
pub(super) async fn targets(pool: &SqlitePool) -> Read<Vec<ManualTarget>> {
    let docs: Vec<String> =
        sqlx::query_scalar("SELECT doc FROM manual_targets ORDER BY name").fetch_all(pool).await?;
    all("target", &docs)
}

/// Unknown machines, last seen first.
pub(super) async fn seen(pool: &SqlitePool, request: PageRequest) -> Read<Page<SeenMachine>> {
    let found = page(pool, request, "doc", "seen_machines", "last_seen DESC, mac", |_| {}).await?;
    decoded("seen machine", request, found)
}

/// Events after a cursor, which is checked at the same moment.
pub(super) async fn events(
    pool: &SqlitePool,
    after: Option<&Cursor>,
    limit: u32,
    machine: Option<MachineId>,
) -> Read<Vec<Event>> {
    let mut tx = pool.begin().await?;
    let after = match after {
        Some(cursor) => {
            let (forgotten, newest) = ends_of_events(&mut tx).await?;
            cursor.number_within(forgotten, newest)?
        }
        None => 0,
    };
    let mut q = QueryBuilder::<Sqlite>::new("SELECT seq, doc FROM events WHERE seq > ");
    q.push_bind(i64::try_from(after).unwrap_or(i64::MAX));
    if let Some(machine) = machine {
        q.push(" AND machine_id = ").push_bind(machine.to_string());
    }
    q.push(" ORDER BY seq LIMIT ").push_bind(i64::from(limit));
    let rows: Vec<(i64, String)> = q.build_query_as().fetch_all(&mut *tx).await?;
    tx.commit().await?;
    rows.into_iter().map(event).collect()
}

/// The number of the last event that was pruned, and of the newest one ever.
async fn ends_of_events(conn: &mut SqliteConnection) -> Read<(u64, u64)> {
    // AUTOINCREMENT remembers the newest number also when every event was pruned.
    let (first, newest): (Option<i64>, Option<i64>) = sqlx::query_as(
        "SELECT (SELECT min(seq) FROM events), (SELECT seq FROM sqlite_sequence WHERE name = 'events')",
    )
    .fetch_one(conn)
    .await?;
    let newest = newest.unwrap_or_default();
    let forgotten = first.map_or(newest, |first| first - 1);
    Ok((u64::try_from(forgotten).unwrap_or_default(), u64::try_from(newest).unwrap_or_default()))
}

/// The newest events, oldest first.
pub(super) async fn newest_events(
    pool: &SqlitePool,
    limit: u32,
    machine: Option<MachineId>,
) -> Read<Vec<Event>> {
    let mut q = QueryBuilder::<Sqlite>::new("SELECT seq, doc FROM events");
    if let Some(machine) = machine {
        q.push(" WHERE machine_id = ").push_bind(machine.to_string());
    }
    q.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(limit));
    let rows: Vec<(i64, String)> = q.build_query_as().fetch_all(pool).await?;
    rows.into_iter().rev().map(event).collect()
}

fn event((seq, doc): (i64, String)) -> Read<Event> {
    Ok(Event { cursor: cursor(seq), event: decode::<NewEvent>("event", &doc)? })
}

/// Audit rows, newest first.
pub(super) async fn audit(pool: &SqlitePool, request: PageRequest) -> Read<Page<AuditRow>> {
    decoded("audit row", request, page(pool, request, "doc", "audit", "seq DESC", |_| {}).await?)
}

/// A named value.
pub(super) async fn setting(pool: &SqlitePool, key: &str) -> Read<Option<String>> {
    Ok(sqlx::query_scalar("SELECT value FROM settings WHERE key = $1").bind(key).fetch_optional(pool).await?)
}
