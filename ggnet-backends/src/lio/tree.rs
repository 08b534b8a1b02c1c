//! The one place that changes configfs: it applies an [`Op`] to the tree below its root, and knows nothing of targets.
//!
//! Invariants: an operation whose outcome is already there succeeds, so that a list of them can be applied again; a value is written
//! by one `write` without a newline (the kernel keeps a newline in a user name or secret); a secret is never in an error.
//!
//! What is tried again, because the kernel means "not yet":
//! * `rmdir` with EBUSY: a session that is being closed still holds the object;
//! * `mkdir` of a portal with EINVAL or EADDRINUSE: the kernel is still closing the same portal of the last target that had it.

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

/// How often and after which pause the kernel is asked again.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// What is written into an attribute.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Anything that may be shown.
    Plain(String),
    /// A CHAP secret.
    Secret(#[serde(with = "exposed")] Secret),
}

/// A secret on its way to whoever writes it: the one place where it is text.
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

/// One change. Paths are relative to the root of the tree, but for [`Op::Flush`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Makes an object.
    Mkdir(String),
    /// Removes an object.
    Rmdir(String),
    /// Sets an attribute.
    Write(String, Value),
    /// Links `.0` to the object `.1`.
    Link(String, String),
    /// Removes a link.
    Unlink(String),
    /// Makes what was written to a backstore's file or device survive a power cut.
    Flush(PathBuf),
}

/// Called before each operation: tests stop the process there, or refuse the operation.
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

    /// With the rights of `owner`, and not ours, the kernel opens the files of backstores.
    #[cfg(feature = "helper")]
    pub fn with_backing(self, owner: Owner) -> Self {
        Self { backing: Some(owner), ..self }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Applies operations in their order up to the first that fails. A flush that fails does not end it: what follows takes the
    /// target away from its initiator, and that must be done all the same; its error comes in the end. Blocking.
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

    /// Asks the hook about an operation; those that another process applies come here alone.
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
                // Somebody else's device has this adapter, too: the adapter is theirs then.
                if is_adapter(path) { accept(done, Io::DirectoryNotEmpty) } else { done }
            }
            Op::Write(path, value) => {
                let mut attribute = OpenOptions::new().write(true).open(at(path))?;
                let mut write = || attribute.write_all(value.expose().as_bytes());
                if opens_backing(path) { self.with_rights(write) } else { write() }
            }
            Op::Link(path, to) => accept(std::os::unix::fs::symlink(at(to), at(path)), Io::AlreadyExists),
            Op::Unlink(path) => accept(fs::remove_file(at(path)), Io::NotFound),
            // A file that was deleted under its target needs no flush.
            Op::Flush(path) => {
                accept(self.with_rights(|| File::open(path).and_then(|f| f.sync_data())), Io::NotFound)
            }
        }
    }

    /// What opens the file of a backstore: the kernel asks for the rights of the thread that has it opened.
    fn with_rights(&self, open: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
        match &self.backing {
            Some(owner) => owner.run(open),
            None => open(),
        }
    }
}

/// Makes of an error that says "so it is already" a success.
fn accept(done: io::Result<()>, already: Io) -> io::Result<()> {
    done.or_else(|e| if e.kind() == already { Ok(()) } else { Err(e) })
}

fn is_adapter(path: &str) -> bool {
    path.strip_prefix("core/").is_some_and(|rest| !rest.contains('/'))
}

/// Whether a write to this attribute has the kernel open a backstore's file.
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

/// The error of an operation, in words that an operator can act on.
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
