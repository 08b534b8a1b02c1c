//! [`Code`]: which failure it is, by a name that never changes, with the arguments of its text.
//!
//! A program acts on the [`ErrorKind`]; a code serves to translate a text, to count it or to search for it. Each kind is also a code
//! (`conflict`), used by every error that needs no code of its own. The functions here create the specific codes. Their parameters are the
//! code's arguments, so a call site cannot leave one out, and [`ALL`] and docs/errors.md follow from the same list.
//!
//! A released code keeps its name, its kind and its arguments; it may get more arguments.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::kind::ErrorKind;

/// Which failure: its kind, its name and the arguments of its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    kind: ErrorKind,
    #[serde(rename = "code")]
    name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    args: BTreeMap<String, String>,
}

impl Code {
    fn new<const N: usize>(kind: ErrorKind, name: &str, args: [(&str, String); N]) -> Self {
        let args = args.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { kind, name: name.to_owned(), args }
    }

    /// The kind of failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The name: lower-case words joined by `_`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The arguments of the text, with the names from the code's row in docs/errors.md.
    #[must_use]
    pub const fn args(&self) -> &BTreeMap<String, String> {
        &self.args
    }

    /// Whether it is more specific than its kind.
    #[must_use]
    pub fn is_specific(&self) -> bool {
        self.name != self.kind.as_str()
    }
}

impl From<ErrorKind> for Code {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind, kind.as_str(), [])
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A row of the list of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// The code's name.
    pub name: &'static str,
    /// Its kind.
    pub kind: ErrorKind,
    /// The names of its arguments.
    pub args: &'static [&'static str],
    /// When it comes.
    pub meaning: &'static str,
}

macro_rules! codes {
    ($(#[doc = $meaning:literal] $kind:ident $name:ident($($arg:ident),*);)*) => {
        $(
            #[doc = $meaning]
            #[must_use]
            pub fn $name($($arg: impl fmt::Display),*) -> Code {
                Code::new(ErrorKind::$kind, stringify!($name), [$((stringify!($arg), $arg.to_string())),*])
            }
        )*

        /// Every specific code. The kinds are codes too: [`ErrorKind::ALL`].
        pub const ALL: &[Described] = &[$(Described {
            name: stringify!($name),
            kind: ErrorKind::$kind,
            args: &[$(stringify!($arg)),*],
            meaning: $meaning.trim_ascii(),
        }),*];
    };
}

codes! {
    // Machines.
    /// There is no such machine.
    NotFound machine_not_found(machine);
    /// No unknown machine with this MAC address was seen.
    NotFound seen_machine_not_found(mac);
    /// The machine's state is not `active`, so it may not boot.
    Conflict machine_not_active(machine, state);
    /// The machine has a live session, which prevents the change.
    Conflict machine_has_session(machine);
    /// No image is assigned to the machine.
    Conflict machine_without_image(machine);
    /// The machine was changed by someone else since it was read.
    Conflict machine_changed(machine, revision);
    /// Another machine has this MAC address.
    Conflict mac_taken(mac, machine);
    /// Another machine has this fixed address.
    Conflict address_taken(address, machine);
    /// The machine keeps writes over a version of another image.
    Conflict kept_writes_of_other_image(machine, version);
    /// The machine keeps writes over a version that is not in the database any more.
    Corrupt kept_writes_without_version(machine);
    /// The machine keeps no writes that could be published.
    NotFound nothing_kept(machine);
    /// The machine's image does not exist.
    Invalid unknown_image(image);
    /// The pinned version is not one of the machine's image.
    Invalid pinned_version_of_other_image(version, image);
    /// A version is pinned, and no image is assigned.
    Invalid pinned_version_without_image();
    /// A machine needs a MAC address.
    Invalid mac_missing();
    /// A MAC address is given twice.
    Invalid mac_repeated(mac);
    /// This address cannot be a machine's.
    Invalid fixed_address_invalid(address);

    // Sessions.
    /// There is no such session.
    NotFound session_not_found(session);
    /// The machine has no live session.
    NotFound no_live_session(machine);
    /// The session is not active.
    Conflict session_not_active(session, state);
    /// The session has ended already.
    Conflict session_ended(session, state);
    /// An initiator is logged in to the session: its machine runs.
    Busy session_in_use(session);
    /// Another server of the installation serves the session.
    Conflict session_of_other_server(session, server);
    /// Another server has taken over the session since it was read.
    Conflict session_taken_over(session, epoch);
    /// The start took longer than `session.start_deadline` and was undone.
    Timeout start_too_long(limit);
    /// The server ended while it started the session.
    Unavailable start_interrupted();
    /// The disk with a machine's writes is gone.
    Corrupt written_disk_gone(writeback);

    // Images.
    /// There is no such image.
    NotFound image_not_found(image);
    /// There is no such image version.
    NotFound version_not_found(version);
    /// No import of this version is in progress.
    NotFound import_not_found(version);
    /// The image has no version that can be booted.
    Conflict image_without_version(image);
    /// Something uses the image.
    Conflict image_in_use(image, users);
    /// Something uses the version.
    Conflict version_in_use(version, users);
    /// Another version is based on this one.
    Conflict version_below_another(version, above);
    /// The chain of versions already has the maximum length.
    Conflict versions_too_deep(version, most);
    /// The version is the image's current one.
    Conflict version_is_current(version);
    /// The version's bytes are still being created, or its import failed.
    Conflict version_not_ready(version);
    /// The version is being imported.
    Conflict version_importing(version);
    /// The version's file is gone.
    Corrupt image_file_gone(version);

    // Imports.
    /// There is no such file in the folders from which imports are allowed.
    NotFound import_file_not_found(path, folders);
    /// The path of the file to import is not absolute.
    Invalid import_path_not_absolute(path, folders);
    /// The file does not have the stated checksum.
    Invalid checksum_mismatch(path, found, expected);
    /// The file does not have the stated format.
    Invalid format_mismatch(found, stated);
    /// Images of this kind cannot be imported.
    Invalid image_refused(reason);
    /// This is not a SHA-256 checksum.
    Invalid sha256_invalid();
    /// The source file was changed during the import.
    Conflict import_source_changed();
    /// The image is damaged.
    Corrupt image_damaged(reason);
    /// Another program uses the file to import.
    Busy import_file_locked();
    /// No space is left in the folder of the images.
    Full image_folder_full();
    /// The import was cancelled.
    Unavailable import_cancelled();
    /// The server ended during the import.
    Unavailable import_interrupted();
    /// The server ended while it made a version from a machine's writes.
    Unavailable publish_interrupted();

    // Jobs.
    /// There is no such job.
    NotFound job_not_found(job);
    /// Another job already works on this.
    Conflict job_under_way(subject);
    /// The job has ended already.
    Conflict job_ended(job, state);
    /// The job cannot be retried: it has not ended, or it succeeded.
    Conflict job_not_retryable(job, state);

    // Targets.
    /// There is no such target.
    NotFound target_not_found(target);
    /// An initiator is logged in to the target.
    Busy target_in_use(target);

    // Names and values.
    /// Another machine, image or target (`what`) has this name.
    Conflict name_taken(what, name);
    /// A record with this id exists already.
    Conflict exists_already(what, id);
    /// The record refers to an image, a version or a machine (`what`) that does not exist.
    Conflict reference_missing(what, id);
    /// The record was changed by someone else since it was read.
    Conflict record_changed(what, id, revision);
    /// This is not a valid name.
    Invalid name_invalid(name);
    /// The name is reserved: it has a special meaning in paths of the API.
    Invalid name_reserved(name);
    /// This is not a MAC address that a machine can have.
    Invalid mac_invalid(mac);
    /// This is not an IQN.
    Invalid iqn_invalid(iqn);
    /// This is not an id of this type (`what`).
    Invalid id_invalid(what, id);
    /// The field has too many items.
    Invalid too_many(most);
    /// The field has too many bytes.
    Invalid too_long(most);
    /// The number is outside the allowed range.
    Invalid out_of_range(least, most);
    /// This is not a cursor of this server's events.
    Invalid cursor_invalid(cursor);
    /// The cursor comes from events that are not in the database: an older database was restored.
    NotFound cursor_unknown(cursor);
    /// Events after this cursor were old and have been deleted.
    NotFound cursor_expired(cursor);

    // Requests.
    /// The API has no such path.
    NotFound path_not_found();
    /// The path has no such method.
    Invalid method_not_allowed();
    /// The body, the query or the path is not valid for this request.
    Invalid request_invalid(reason);
    /// No token came with the request.
    Permission token_missing();
    /// The token is wrong.
    Permission token_wrong();
    /// The caller's role does not allow the command.
    Permission command_not_permitted(command, least);

    // The server and its environment.
    /// The server is shutting down.
    Unavailable shutting_down();
    /// A call of a backend did not end in time; it may still end later.
    Timeout backend_timeout(port, backend, operation);
    /// A call of a backend could not start, because earlier calls have not ended.
    Unavailable backend_busy(port, backend, operation);
    /// A program that a backend needs is not installed.
    Unavailable program_missing(program);
    /// Another process uses the data folder.
    Busy data_folder_in_use(folder, by);
    /// Another process has locked the database.
    Busy database_locked(database);
    /// No space is left for the database.
    Full database_full(database);
    /// The database is damaged.
    Corrupt database_damaged(database);
    /// The server has no permission to open or write the database.
    Permission database_not_writable(database);
    /// The disk under the database reported an error.
    Unavailable database_disk_error(database);
    /// The database was written by a newer GGnet.
    Unsupported database_too_new(database, schema, known);

    // The command line.
    /// `ggnet` has no token for this server.
    Permission not_logged_in();
    /// `ggnet` cannot reach the server.
    Unavailable server_unreachable(server);
    /// What `ggnet` waited for did not happen in time.
    Timeout wait_too_long();
    /// Ctrl-C ended `ggnet`.
    Unavailable interrupted();
}

/// The code for an object of this type that does not exist.
pub(super) fn not_found(what: &str, which: &str) -> Code {
    match what {
        "machine" => machine_not_found(which),
        "session" => session_not_found(which),
        "image" => image_not_found(which),
        "version" | "image version" | "version of this image" => version_not_found(which),
        "import of version" => import_not_found(which),
        "target" => target_not_found(which),
        "job" => job_not_found(which),
        _ => ErrorKind::NotFound.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    /// The rows that docs/errors.md must have.
    fn table() -> String {
        let code = |text: &str| format!("`{text}`");
        let row = |row: &Described| {
            let args = row.args.iter().map(|arg| code(arg)).collect::<Vec<_>>().join(", ");
            format!("| {} | {} | {args} | {} |\n", code(row.name), code(row.kind.as_str()), row.meaning)
        };
        ALL.iter().map(row).collect()
    }

    #[test]
    fn the_page_of_errors_has_every_code_with_its_kind_and_arguments_and_no_other() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let page = fs::read_to_string(page).unwrap();
        // The rows of the table that has so many columns.
        let rows = |columns: usize| {
            let of_table = |row: &&str| row.starts_with("| `") && row.split(" | ").count() == columns;
            page.lines().filter(of_table).collect::<Vec<_>>()
        };
        let table = table();
        assert_eq!(
            rows(4),
            table.lines().collect::<Vec<_>>(),
            "docs/errors.md should have this table:\n{table}"
        );
        let kinds: Vec<_> = rows(2).iter().filter_map(|row| row.split('`').nth(1)).collect();
        assert_eq!(kinds, ErrorKind::ALL.map(ErrorKind::as_str), "the table of kinds");
    }

    #[test]
    fn no_code_is_there_twice_and_each_is_a_snake_case_word() {
        let kinds = ErrorKind::ALL.map(ErrorKind::as_str);
        let names: Vec<_> = ALL.iter().map(|row| row.name).chain(kinds).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for row in ALL {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(row.name.bytes().all(good) && row.meaning.ends_with('.'), "{row:?}");
            assert!(!row.meaning.contains('|'), "{row:?}");
        }
    }

    #[test]
    fn a_kind_is_a_code_of_its_own() {
        for kind in ErrorKind::ALL {
            let code = Code::from(kind);
            assert_eq!((code.kind(), code.name(), code.is_specific()), (kind, kind.as_str(), false));
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str(), "one spelling everywhere");
        }
        let code = machine_not_active("pc-1", "retired");
        assert!(code.is_specific());
        assert_eq!(
            code.args().iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            ["machine=pc-1", "state=retired"]
        );
    }
}
