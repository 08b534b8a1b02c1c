//! The only code that changes configfs: applies an [`Op`] to the tree below its root, and knows nothing about targets.
//!
//! Invariants: an operation whose result already exists succeeds, so that a list of operations can be applied again; a value is written
//! with one `write` without a newline (the kernel would keep a newline in a user name or secret); a secret is never in an error.
//!
//! Retried, because the kernel's error means "not yet":
//! * `rmdir` with EBUSY: a session that is being closed still holds the object;
//! * `mkdir` of a portal with EINVAL or EADDRINUSE: the kernel is still closing the same portal of its previous target.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind as Io, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::Secret,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::owner::Owner;

/// Number of retries and the pause before each.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// The value of an attribute.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// A value that may be shown.
    Plain(String),
    /// A CHAP secret.
    Secret(#[serde(with = "exposed")] Secret),
}

/// A secret on its way to the code that writes it: the only place where it is text.
mod exposed {
    use ggnet_core::nouns::Secret;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(secret: &Secret, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Secret, D::Error> {
        String::deserialize(d).map(Secret::new)
    }
}

impl Value {
    /// The text itself. Keep it out of logs and errors.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(secret) => secret.expose(),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => text.fmt(f),
            Self::Secret(secret) => secret.fmt(f),
        }
    }
}

/// One change. Paths are relative to the root of the tree, except for [`Op::Flush`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Creates an object.
    Mkdir(String),
    /// Removes an object.
    Rmdir(String),
    /// Sets an attribute.
    Write(String, Value),
    /// Links `.0` to the object `.1`.
    Link(String, String),
    /// Removes a link.
    Unlink(String),
    /// Makes the data that was written to a backstore's file or device survive a power cut.
    Flush(PathBuf),
}

/// Called before each operation: tests stop the process there, or reject the operation.
pub type Hook = Arc<dyn Fn(&Op) -> io::Result<()> + Send + Sync>;

/// The tree below `/sys/kernel/config/target`, or below another root.
#[derive(Clone)]
pub struct Tree {
    root: PathBuf,
    hook: Option<Hook>,
    backing: Option<Owner>,
}

impl Tree {
    /// The tree below `root`.
    pub fn at(root: PathBuf, hook: Option<Hook>) -> Self {
        Self { root, hook, backing: None }
    }

    /// The kernel opens the files of backstores with the rights of `owner` instead of ours.
    #[cfg(feature = "helper")]
    pub fn with_backing(self, owner: Owner) -> Self {
        Self { backing: Some(owner), ..self }
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Applies operations in order up to the first that fails. A failed flush does not stop the list: the following operations take the
    /// target away from its initiator, which must be done anyway; the flush error is returned at the end. Blocking.
    pub fn apply(&self, ops: &[Op]) -> Result<()> {
        let mut unflushed = None;
        for op in ops {
            match (self.one(op), op) {
                (Ok(()), _) => {}
                (Err(e), Op::Flush(_)) => unflushed = Some(e),
                (Err(e), _) => return Err(e),
            }
        }
        unflushed.map_or(Ok(()), Err)
    }

    /// Calls the hook for an operation; operations that another process applies only go through here.
    pub fn before(&self, op: &Op) -> Result<()> {
        match &self.hook {
            Some(hook) => hook(op).map_err(|e| failed(op, e)),
            None => Ok(()),
        }
    }

    fn one(&self, op: &Op) -> Result<()> {
        self.before(op)?;
        for attempt in 1.. {
            match self.once(op) {
                Err(e) if attempt < ATTEMPTS && is_not_yet(op, &e) => pause(),
                done => return done.map_err(|e| failed(op, e)),
            }
        }
        Ok(())
    }

    fn once(&self, op: &Op) -> io::Result<()> {
        let at = |path: &str| self.root.join(path);
        match op {
            Op::Mkdir(path) => accept(fs::create_dir(at(path)), Io::AlreadyExists),
            Op::Rmdir(path) => {
                let done = accept(fs::remove_dir(at(path)), Io::NotFound);
                // Another program also has a device in this adapter, so the adapter is not ours.
                if is_adapter(path) { accept(done, Io::DirectoryNotEmpty) } else { done }
            }
            Op::Write(path, value) => {
                let mut attribute = OpenOptions::new().write(true).open(at(path))?;
                let mut write = || attribute.write_all(value.expose().as_bytes());
                if opens_backing(path) { self.with_rights(write) } else { write() }
            }
            Op::Link(path, to) => accept(std::os::unix::fs::symlink(at(to), at(path)), Io::AlreadyExists),
            Op::Unlink(path) => accept(fs::remove_file(at(path)), Io::NotFound),
            // If the file was deleted under its target, no flush is needed.
            Op::Flush(path) => {
                accept(self.with_rights(|| File::open(path).and_then(|f| f.sync_data())), Io::NotFound)
            }
        }
    }

    /// Opens the file of a backstore: the kernel checks the rights of the thread that triggers the open.
    fn with_rights(&self, open: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
        match &self.backing {
            Some(owner) => owner.run(open),
            None => open(),
        }
    }
}

/// Converts an error that means "already done" to success.
fn accept(done: io::Result<()>, already: Io) -> io::Result<()> {
    done.or_else(|e| if e.kind() == already { Ok(()) } else { Err(e) })
}

fn is_adapter(path: &str) -> bool {
    path.strip_prefix("core/").is_some_and(|rest| !rest.contains('/'))
}

/// Whether a write to this attribute makes the kernel open a backstore's file.
fn opens_backing(path: &str) -> bool {
    path.starts_with("core/") && path.ends_with("/enable")
}

fn is_portal(path: &str) -> bool {
    path.rsplit_once('/').is_some_and(|(parent, _)| parent.ends_with("/np"))
}

fn is_not_yet(op: &Op, e: &io::Error) -> bool {
    let is = |errno: Errno| e.raw_os_error() == Some(errno.raw_os_error());
    match op {
        Op::Rmdir(_) => is(Errno::BUSY),
        Op::Mkdir(path) => is_portal(path) && (is(Errno::INVAL) || is(Errno::ADDRINUSE)),
        _ => false,
    }
}

#[expect(clippy::disallowed_methods, reason = "operations are applied on blocking threads only")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// The error of an operation, with a hint for the operator.
fn failed(op: &Op, e: io::Error) -> Error {
    let invalid = e.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    match op {
        Op::Mkdir(path) if is_portal(path) && invalid => {
            Error::new(ErrorKind::Busy, format!("The kernel rejected the portal {path}"))
                .with_source(e)
                .with_hint("Another program or another kernel target already listens there, perhaps on all addresses: see `ss -ltnp` and `dmesg`")
        }
        Op::Mkdir(path) => Error::io(format!("Making {path}"), e),
        Op::Rmdir(path) => Error::io(format!("Removing {path}"), e),
        Op::Write(path, _) if e.kind() == Io::NotFound && path.ends_with("/enable") => {
            Error::io(format!("Enabling {path}: its file or device does not exist"), e)
        }
        Op::Write(path, _) => Error::io(format!("Writing {path}"), e),
        Op::Link(path, to) => Error::io(format!("Linking {path} to {to}"), e),
        Op::Unlink(path) => Error::io(format!("Removing the link {path}"), e),
        Op::Flush(path) => {
            Error::new(ErrorKind::Corrupt, format!("{} could not be flushed", path.display())).with_source(e)
        }
    }
}
