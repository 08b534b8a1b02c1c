-- Long works. `subject` is what a job works on ("version <id>"): at most one live job each. `finished_at` is set exactly when the job has
-- ended. No foreign key: a job that has ended outlives what it worked on, as an ended session does.

CREATE TABLE jobs (
    -- The order in which jobs were recorded: whose turn is next does not depend on the clock.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    state TEXT NOT NULL,
    finished_at INTEGER,
    revision INTEGER NOT NULL CHECK (revision > 0),
    doc TEXT NOT NULL,
    CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL))
) STRICT;
CREATE UNIQUE INDEX jobs_one_live ON jobs (subject) WHERE finished_at IS NULL;
CREATE INDEX jobs_live ON jobs (seq) WHERE finished_at IS NULL;
CREATE INDEX jobs_subject ON jobs (subject, seq);
CREATE INDEX jobs_state ON jobs (state, seq);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
