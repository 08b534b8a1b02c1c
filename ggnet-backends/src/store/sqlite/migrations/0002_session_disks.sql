-- The versions of a live session's data disks; those of its system disk are columns of `sessions`. What a live session holds cannot be
-- deleted. An ended session has no row here.

CREATE TABLE session_data_versions (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    version_id TEXT NOT NULL,
    image_id TEXT NOT NULL,
    PRIMARY KEY (session_id, version_id),
    -- The pair: a disk's version is one of the disk's image.
    FOREIGN KEY (version_id, image_id) REFERENCES image_versions (id, image_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX session_data_versions_version ON session_data_versions (version_id, image_id);
CREATE INDEX session_data_versions_image ON session_data_versions (image_id);
