-- The first schema. What is queried or constrained is a column; `doc` is the whole record as JSON, and every column beside it is
-- written from that record in the same statement. Times are microseconds since 1970 in UTC.

CREATE TABLE settings (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE images (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    current_version_id TEXT,
    revision INTEGER NOT NULL CHECK (revision > 0),
    doc TEXT NOT NULL,
    -- The pair: an image's current version is one of its own.
    FOREIGN KEY (current_version_id, id) REFERENCES image_versions (id, image_id)
) STRICT;

CREATE TABLE image_versions (
    id TEXT NOT NULL PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images (id),
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    doc TEXT NOT NULL,
    UNIQUE (image_id, number),
    UNIQUE (id, image_id)
) STRICT;
CREATE INDEX image_versions_importing ON image_versions (image_id, number) WHERE state = 'importing';
CREATE INDEX images_current ON images (current_version_id);

CREATE TABLE machines (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    image_id TEXT REFERENCES images (id),
    pinned_version_id TEXT,
    -- Name, description and addresses, folded to lower case: what a search looks through.
    search TEXT NOT NULL,
    revision INTEGER NOT NULL CHECK (revision > 0),
    doc TEXT NOT NULL,
    -- The pair: a machine is pinned to a version of the image it is assigned to.
    FOREIGN KEY (pinned_version_id, image_id) REFERENCES image_versions (id, image_id)
) STRICT;
CREATE INDEX machines_image ON machines (image_id);
CREATE INDEX machines_pinned ON machines (pinned_version_id, image_id);

CREATE TABLE machine_macs (
    mac TEXT NOT NULL PRIMARY KEY,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX machine_macs_machine ON machine_macs (machine_id);

CREATE TABLE machine_groups (
    name TEXT NOT NULL,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    PRIMARY KEY (name, machine_id)
) STRICT;
CREATE INDEX machine_groups_machine ON machine_groups (machine_id);

CREATE TABLE sessions (
    -- The order in which sessions were recorded: "newest" does not depend on the clock.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    machine_id TEXT NOT NULL,
    image_id TEXT NOT NULL,
    state TEXT NOT NULL,
    -- Set exactly while the session is live: what a live session holds cannot be deleted, what an ended one used can.
    -- A generation prepared for the next boot may be of another image.
    live_machine_id TEXT REFERENCES machines (id),
    live_version_id TEXT,
    next_image_id TEXT,
    live_next_version_id TEXT,
    ended_at INTEGER,
    -- CHAP credentials of the two generations, sealed.
    current_sealed BLOB,
    next_sealed BLOB,
    revision INTEGER NOT NULL CHECK (revision > 0),
    doc TEXT NOT NULL,
    FOREIGN KEY (live_version_id, image_id) REFERENCES image_versions (id, image_id),
    FOREIGN KEY (live_next_version_id, next_image_id) REFERENCES image_versions (id, image_id),
    CHECK ((state IN ('starting', 'active', 'stopping')) = (live_machine_id IS NOT NULL)),
    CHECK ((live_machine_id IS NULL) = (live_version_id IS NULL)),
    CHECK (live_machine_id IS NULL OR live_machine_id = machine_id),
    CHECK (live_next_version_id IS NULL OR (live_version_id IS NOT NULL AND next_image_id IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX sessions_one_live ON sessions (machine_id) WHERE live_machine_id IS NOT NULL;
CREATE INDEX sessions_live ON sessions (seq) WHERE live_machine_id IS NOT NULL;
CREATE INDEX sessions_live_version ON sessions (live_version_id, image_id) WHERE live_version_id IS NOT NULL;
CREATE INDEX sessions_live_next ON sessions (live_next_version_id, next_image_id) WHERE live_next_version_id IS NOT NULL;
CREATE INDEX sessions_machine ON sessions (machine_id, seq);
CREATE INDEX sessions_image ON sessions (image_id, seq);
CREATE INDEX sessions_state ON sessions (state, seq);
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_live_machine ON sessions (live_machine_id) WHERE live_machine_id IS NOT NULL;

-- Kept by triggers, so that no statement, present or future, can forget to count.
CREATE TABLE session_counts (
    state TEXT NOT NULL PRIMARY KEY,
    count INTEGER NOT NULL CHECK (count >= 0)
) STRICT;
INSERT INTO session_counts (state, count)
VALUES ('starting', 0), ('active', 0), ('stopping', 0), ('stopped', 0), ('failed', 0);

CREATE TRIGGER sessions_count_insert AFTER INSERT ON sessions
BEGIN
    UPDATE session_counts SET count = count + 1 WHERE state = NEW.state;
END;
CREATE TRIGGER sessions_count_delete AFTER DELETE ON sessions
BEGIN
    UPDATE session_counts SET count = count - 1 WHERE state = OLD.state;
END;
CREATE TRIGGER sessions_count_update AFTER UPDATE OF state ON sessions WHEN OLD.state <> NEW.state
BEGIN
    UPDATE session_counts SET count = count - 1 WHERE state = OLD.state;
    UPDATE session_counts SET count = count + 1 WHERE state = NEW.state;
END;

CREATE TABLE manual_targets (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    version_id TEXT NOT NULL REFERENCES image_versions (id),
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX manual_targets_version ON manual_targets (version_id);

CREATE TABLE seen_machines (
    mac TEXT NOT NULL PRIMARY KEY,
    last_seen INTEGER NOT NULL,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX seen_machines_last ON seen_machines (last_seen DESC, mac);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    machine_id TEXT,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX events_machine ON events (machine_id, seq) WHERE machine_id IS NOT NULL;
CREATE INDEX events_at ON events (at);

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX audit_at ON audit (at);
