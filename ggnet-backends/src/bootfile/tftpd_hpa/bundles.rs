//! GGnet's bundles in the served folder: how they are created, found, listed and removed.
//!
//! ```text
//!   <root>/machines/52-54-00-12-34-56.ipxe         a link to the file below; clients request this path
//!   <root>/.ggnet/<instance>/<id>/machines/52-…    the bundle's file, mode 0644
//!                                 .new.<n>         a file that is not complete yet
//!                                 .changing        exists while the bundle is being changed
//!                            .removed-<id>/        a bundle that is being removed
//!                            .alive                a file that shows which folder the server serves
//! ```
//! The text of the link is relative, so it is valid under any `chroot`, and contains the owner of the path: instance and bundle. It never
//! changes: a new version of a file is renamed over the old one. So a client always gets one of the two as a whole, and a transfer in
//! progress continues with the old one.
//!
//! * Create: `.changing` (in a new folder, which is renamed from `.removed-…`), all new files (synced) next to the old ones, renames,
//!   links, then removal of what the bundle no longer has, each link before its file; finally `.changing` is removed. An error before the
//!   renames leaves everything as it was.
//! * Remove: links, then the folder is renamed to `.removed-…`, then its content is deleted.
//!
//! Invariants: each of our links has its file, so the files determine the links (a link without a file, which a power cut can leave, is
//! removed at start and replaced if it is in the way). A path with anything else is never replaced and never removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{InstanceId, ResourceId},
    ports::{BootBundle, BootPath, Completeness, Listed},
};
use rustix::fs::FileType;

use super::root::{Entry, Root, is_in_the_way, is_nothing};

/// The folder inside the served folder in which every GGnet keeps its files.
const OURS: &str = ".ggnet";
const CHANGING: &str = ".changing";
const NEW: &str = ".new.";
const REMOVED: &str = ".removed-";
const ALIVE: &str = ".alive";
/// The maximum depth of a boot path.
const DEEPEST: usize = 8;

/// See the module. Its calls block on disk I/O; two calls for the same id must not run concurrently.
pub(super) struct Bundles {
    root: PathBuf,
    instance: InstanceId,
    /// Held while the `.alive` file is written, because two concurrent writes would conflict.
    living: Mutex<()>,
}

/// The owner of a path.
enum PathOwner {
    /// No owner: the path is free, or a dangling link.
    Nobody,
    /// This bundle.
    This,
    /// Another owner, described in words.
    Other(String),
}

/// The existing parts of a bundle.
#[derive(Default)]
struct Found {
    /// Its files, without those that in.tftpd cannot read.
    files: BTreeMap<BootPath, Bytes>,
    /// All existing files, readable or not.
    paths: BTreeSet<BootPath>,
    /// Folders, the deepest last.
    folders: Vec<String>,
    /// Leftovers of an interrupted `ensure`.
    leftovers: Vec<String>,
}

impl Bundles {
    pub(super) const fn new(root: PathBuf, instance: InstanceId) -> Self {
        Self { root, instance, living: Mutex::new(()) }
    }

    fn open(&self) -> Result<Root> {
        Root::open(&self.root).map_err(|e| self.failed("Opening", "", e))
    }

    /// An error of the operating system, with the whole path and a hint.
    fn failed(&self, doing: &str, path: &str, e: io::Error) -> Error {
        let full = if path.is_empty() { self.root.clone() } else { self.root.join(path) };
        if is_in_the_way(&e) {
            return Error::new(
                ErrorKind::Conflict,
                format!("{doing} {}: part of this path is a file or a symbolic link, and GGnet does not follow links here", full.display()),
            )
            .with_source(e)
            .with_hint("find out what it is (ls -l) and move it away");
        }
        let error = Error::io(format!("{doing} {}", full.display()), e);
        let root = self.root.display();
        match error.kind() {
            ErrorKind::Permission => error.with_hint(format!(
                "the server's user must own {root}: sudo chown USER {root}; under systemd also ReadWritePaths={root}"
            )),
            ErrorKind::NotFound if path.is_empty() => error
                .with_hint(format!("apt-get install tftpd-hpa, or: sudo install -d -m 0755 -o USER {root}")),
            ErrorKind::Full => error.with_hint(format!("free some space on the file system of {root}")),
            _ => error,
        }
    }

    fn instance_folder(&self) -> String {
        format!("{OURS}/{}", self.instance)
    }

    fn home(&self, id: &ResourceId) -> String {
        format!("{OURS}/{}/{id}", self.instance)
    }

    fn removed(&self, id: &ResourceId) -> String {
        format!("{OURS}/{}/{REMOVED}{id}", self.instance)
    }

    /// The path, as a client requests it, of the file that shows which folder the server serves.
    pub(super) fn alive(&self) -> String {
        format!("{OURS}/{}/{ALIVE}", self.instance)
    }

    /// The content of that file.
    pub(super) fn alive_text(&self) -> String {
        format!("GGnet {}\n", self.instance)
    }

    /// The text of the link at a path.
    fn text(&self, id: &ResourceId, path: &BootPath) -> String {
        let up = "../".repeat(path.as_str().matches('/').count());
        format!("{up}{}/{path}", self.home(id))
    }

    /// The owner of the link at `path`: instance and bundle; `None` for a link that no GGnet made.
    fn parse_text<'a>(text: &'a str, path: &str) -> Option<(&'a str, ResourceId)> {
        let up = "../".repeat(path.matches('/').count());
        let rest = text.strip_prefix(&*up)?.strip_prefix(OURS)?.strip_prefix('/')?;
        let (instance, rest) = rest.split_once('/')?;
        let id = rest.strip_suffix(path)?.strip_suffix('/')?;
        Some((instance, id.parse().ok()?))
    }

    fn owner(&self, root: &Root, id: &ResourceId, path: &BootPath) -> Result<PathOwner> {
        let at = |e| self.failed("Looking at", path.as_str(), e);
        let text = match root.entry(path.as_str()).map_err(at)? {
            Entry::Absent => return Ok(PathOwner::Nobody),
            Entry::Other => return Ok(PathOwner::Other("exists and was not made by GGnet".to_owned())),
            Entry::Link(text) => text,
        };
        let Some((instance, owner)) = Self::parse_text(&text, path.as_str()) else {
            return Ok(PathOwner::Other(format!("is a symbolic link to {text:?} that GGnet did not make")));
        };
        if instance != self.instance.as_str() {
            return Ok(PathOwner::Other(format!("belongs to another GGnet, instance {instance}")));
        }
        if owner == *id {
            return Ok(PathOwner::This);
        }
        let file = format!("{}/{path}", self.home(&owner));
        Ok(match root.entry(&file).map_err(at)? {
            Entry::Absent => PathOwner::Nobody,
            _ => PathOwner::Other(format!("already belongs to {owner}")),
        })
    }

    /// Makes exactly these files exist under this bundle.
    pub(super) fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        let root = self.open()?;
        for path in bundle.files.keys() {
            if let PathOwner::Other(words) = self.owner(&root, &bundle.id, path)? {
                return Err(self.conflict(path, &words));
            }
        }
        self.end_removal(&root, &bundle.id)?;
        let home = self.home(&bundle.id);
        let found = self.find(&root, &home).map_err(|e| self.failed("Reading", &home, e))?;
        let was_there = found.is_some();
        let found = found.unwrap_or_default();
        if was_there
            && found.leftovers.is_empty()
            && found.files == bundle.files
            && self.linked(&root, bundle)?
        {
            return Ok(());
        }
        let begun = if was_there { self.mark(&root, &home, &found) } else { self.begin(&root, &bundle.id) };
        begun.and_then(|()| self.write(&root, bundle, &found)).inspect_err(|e| {
            // Removes a new bundle again, so that a failed start leaves nothing. An existing bundle is left to the next call.
            let undo = || self.end_removal(&root, &bundle.id).and_then(|()| self.remove_in(&root, &bundle.id));
            if !was_there && let Err(left) = undo() {
                tracing::warn!(bundle = %bundle.id, error = %left.report(), after = %e.report(), "cannot undo a failed change");
            }
        })
    }

    fn conflict(&self, path: &BootPath, words: &str) -> Error {
        Error::new(ErrorKind::Conflict, format!("Boot file {path} {words}"))
            .with_hint(format!("The file is {}", self.root.join(path.as_str()).display()))
    }

    fn linked(&self, root: &Root, bundle: &BootBundle) -> Result<bool> {
        for path in bundle.files.keys() {
            if !matches!(self.owner(root, &bundle.id, path)?, PathOwner::This) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks an existing bundle as being changed.
    fn mark(&self, root: &Root, home: &str, found: &Found) -> Result<()> {
        for name in &found.leftovers {
            root.unlink(name).map_err(|e| self.failed("Removing", name, e))?;
        }
        let changing = format!("{home}/{CHANGING}");
        root.write_new(&changing, b"").map_err(|e| self.failed("Writing", &changing, e))
    }

    /// Creates the folder of a new bundle. It has the mark from the start, because without the mark it would count as a bundle without
    /// files; before the rename it counts as a bundle that is being removed.
    fn begin(&self, root: &Root, id: &ResourceId) -> Result<()> {
        let (home, removed) = (self.home(id), self.removed(id));
        root.make_dirs(&removed)
            .and_then(|()| root.write_new(&format!("{removed}/{CHANGING}"), b""))
            .and_then(|()| root.rename(&removed, &home))
            .map_err(|e| self.failed("Making", &home, e))
    }

    fn write(&self, root: &Root, bundle: &BootBundle, found: &Found) -> Result<()> {
        let home = self.home(&bundle.id);
        let changing = format!("{home}/{CHANGING}");
        let changed: Vec<_> =
            bundle.files.iter().filter(|(path, bytes)| found.files.get(path) != Some(bytes)).collect();
        let news: Vec<String> = (0..changed.len()).map(|n| format!("{home}/{NEW}{n}")).collect();
        let prepared = changed.iter().zip(&news).try_for_each(|((path, bytes), new)| {
            let file = format!("{home}/{path}");
            let parent = file.rsplit_once('/').map_or("", |(parent, _)| parent);
            root.make_dirs(parent)
                .and_then(|()| root.write_new(new, bytes))
                .map_err(|e| self.failed("Writing", &file, e))
        });
        if let Err(e) = prepared {
            // Nothing was renamed: without the new files the bundle is unchanged.
            for name in news.iter().chain([&changing]) {
                root.unlink(name).map_err(|e| self.failed("Removing", name, e))?;
            }
            return Err(e);
        }
        for ((path, _), new) in changed.iter().zip(&news) {
            let file = format!("{home}/{path}");
            root.rename(new, &file).map_err(|e| self.failed("Writing", &file, e))?;
        }
        for path in bundle.files.keys() {
            self.link(root, &bundle.id, path)?;
        }
        for path in found.paths.iter().filter(|path| !bundle.files.contains_key(path)) {
            self.unlink(root, &bundle.id, path)?;
            let file = format!("{home}/{path}");
            root.unlink(&file).map_err(|e| self.failed("Removing", &file, e))?;
        }
        root.unlink(&changing).map_err(|e| self.failed("Removing", &changing, e))
    }

    /// Creates the link of a path that is free or belongs to this bundle.
    fn link(&self, root: &Root, id: &ResourceId, path: &BootPath) -> Result<()> {
        let at = |e| self.failed("Linking", path.as_str(), e);
        loop {
            match self.owner(root, id, path)? {
                PathOwner::This => return Ok(()),
                PathOwner::Other(words) => return Err(self.conflict(path, &words)),
                PathOwner::Nobody => {}
            }
            // A dangling link, if it exists.
            if matches!(root.entry(path.as_str()).map_err(at)?, Entry::Link(_)) {
                root.unlink(path.as_str()).map_err(at)?;
            }
            let parent = path.as_str().rsplit_once('/').map_or("", |(parent, _)| parent);
            match root.make_dirs(parent).and_then(|()| root.symlink(&self.text(id, path), path.as_str())) {
                // Removing another bundle may have removed the empty folder in the meantime, or another call created the link first.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                other => return other.map_err(at),
            }
        }
    }

    /// Removes the link of a path, if it belongs to this bundle, and the folders that become empty, except the topmost one.
    fn unlink(&self, root: &Root, id: &ResourceId, path: &BootPath) -> Result<()> {
        if !matches!(self.owner(root, id, path)?, PathOwner::This) {
            return Ok(());
        }
        root.unlink(path.as_str()).map_err(|e| self.failed("Removing", path.as_str(), e))?;
        let mut at = path.as_str();
        while let Some((parent, _)) = at.rsplit_once('/').filter(|(parent, _)| parent.contains('/')) {
            // Usually because it is not empty.
            if root.rmdir(parent).is_err() {
                break;
            }
            at = parent;
        }
        Ok(())
    }

    /// Removes the bundle, including an incomplete one.
    pub(super) fn remove(&self, id: &ResourceId) -> Result<()> {
        let root = self.open()?;
        self.end_removal(&root, id)?;
        self.remove_in(&root, id)
    }

    fn remove_in(&self, root: &Root, id: &ResourceId) -> Result<()> {
        let home = self.home(id);
        let Some(found) = self.find(root, &home).map_err(|e| self.failed("Reading", &home, e))? else {
            return Ok(());
        };
        for path in &found.paths {
            self.unlink(root, id, path)?;
        }
        root.rename(&home, &self.removed(id)).map_err(|e| self.failed("Removing", &home, e))?;
        self.end_removal(root, id)
    }

    /// Completes a removal that was interrupted after the rename.
    fn end_removal(&self, root: &Root, id: &ResourceId) -> Result<()> {
        let removed = self.removed(id);
        let at = |e| self.failed("Removing", &removed, e);
        let Some(found) = self.find(root, &removed).map_err(at)? else { return Ok(()) };
        for path in &found.paths {
            root.unlink(&format!("{removed}/{path}")).map_err(at)?;
        }
        for name in &found.leftovers {
            root.unlink(name).map_err(at)?;
        }
        for folder in found.folders.iter().rev() {
            root.rmdir(folder).map_err(at)?;
        }
        Ok(())
    }

    /// The existing parts of the bundle in this folder; `None` if the folder does not exist.
    fn find(&self, root: &Root, home: &str) -> io::Result<Option<Found>> {
        let mut found = Found::default();
        let mut folders = vec![home.to_owned()];
        while let Some(folder) = folders.pop() {
            let names = match root.names(&folder) {
                Err(e) if is_nothing(&e) && folder == home => return Ok(None),
                // Removed in the meantime.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for (name, kind) in names {
                let full = format!("{folder}/{name}");
                if kind == FileType::Directory {
                    folders.push(full);
                    continue;
                }
                let Ok(path) = full[home.len() + 1..].parse::<BootPath>() else {
                    found.leftovers.push(full);
                    continue;
                };
                match root.read(&full) {
                    Ok(content) => {
                        if content.world_readable {
                            found.files.insert(path.clone(), content.bytes.into());
                        }
                        found.paths.insert(path);
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    // A link or another kind of file that an operator created: it will be replaced.
                    Err(e) if is_in_the_way(&e) || e.kind() == io::ErrorKind::InvalidInput => {
                        found.paths.insert(path);
                    }
                    Err(e) => return Err(e),
                }
            }
            found.folders.push(folder);
        }
        Ok(Some(found))
    }

    /// Lists our bundles.
    pub(super) fn list(&self) -> Result<Vec<Listed>> {
        self.listed(|_| true)
    }

    /// Returns one of our bundles.
    pub(super) fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(self.listed(|other| other == id)?.pop())
    }

    fn listed(&self, is_wanted: impl Fn(&ResourceId) -> bool) -> Result<Vec<Listed>> {
        let root = self.open()?;
        let instance_folder = self.instance_folder();
        let names = match root.names(&instance_folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| self.failed("Reading", &instance_folder, e))?,
        };
        let mut listed = BTreeMap::new();
        for (name, _) in names.iter().filter(|(_, kind)| *kind == FileType::Directory) {
            let removed = name.strip_prefix(REMOVED);
            let Ok(id) = removed.unwrap_or(name).parse::<ResourceId>() else { continue };
            if !is_wanted(&id) {
                continue;
            }
            let home = format!("{instance_folder}/{name}");
            let Some(found) = self.find(&root, &home).map_err(|e| self.failed("Reading", &home, e))? else {
                continue;
            };
            let unread = found.files.len() != found.paths.len();
            let half = removed.is_some() || unread || !found.leftovers.is_empty();
            let bundle = BootBundle { id: id.clone(), files: found.files };
            let whole = !half && self.linked(&root, &bundle)?;
            let completeness = if whole { Completeness::Whole } else { Completeness::Partial };
            let one = Listed { digest: whole.then(|| bundle.digest()), id: id.clone(), completeness };
            // The rest of a removed bundle with the same name is deleted by the next call for it.
            if removed.is_none() || !listed.contains_key(&id) {
                listed.insert(id, one);
            }
        }
        Ok(listed.into_values().collect())
    }

    /// The content of one of our files, as a client gets it.
    pub(super) fn read(&self, path: &BootPath) -> Result<Bytes> {
        let root = self.open()?;
        let at = |e| self.failed("Reading", path.as_str(), e);
        let none = || Error::not_found("boot file", path);
        let Entry::Link(text) = root.entry(path.as_str()).map_err(at)? else { return Err(none()) };
        let id = match Self::parse_text(&text, path.as_str()) {
            Some((instance, id)) if instance == self.instance.as_str() => id,
            _ => return Err(none()),
        };
        match root.read(&format!("{}/{path}", self.home(&id))) {
            Ok(content) => Ok(content.bytes.into()),
            Err(e) if is_nothing(&e) => Err(none()),
            Err(e) => Err(at(e)),
        }
    }

    /// Removes incomplete files of an earlier process of ours, creates our folder, and writes the `.alive` file.
    pub(super) fn clean(&self) -> Result<()> {
        let root = self.open()?;
        let instance_folder = self.instance_folder();
        root.make_dirs(&instance_folder).map_err(|e| self.failed("Making", &instance_folder, e))?;
        for (name, kind) in
            root.names(&instance_folder).map_err(|e| self.failed("Reading", &instance_folder, e))?
        {
            if kind == FileType::Symlink {
                // Not made by GGnet: the call that it blocks will report it.
            } else if let Some(Ok(id)) = name.strip_prefix(REMOVED).map(str::parse) {
                self.end_removal(&root, &id)?;
            } else if name.starts_with(NEW) {
                let old = format!("{instance_folder}/{name}");
                root.unlink(&old).map_err(|e| self.failed("Removing", &old, e))?;
            } else if let Ok(id) = name.parse() {
                self.clean_home(&root, &self.home(&id))?;
            }
        }
        self.clean_links(&root)?;
        self.show_life()
    }

    /// Removes incomplete files. The mark stays, so that the next `ensure` checks the bundle.
    fn clean_home(&self, root: &Root, home: &str) -> Result<()> {
        let at = |e| self.failed("Cleaning", home, e);
        for (name, _) in root.names(home).map_err(at)?.iter().filter(|(name, _)| name.starts_with(NEW)) {
            root.unlink(&format!("{home}/{name}")).map_err(at)?;
        }
        Ok(())
    }

    /// Removes our dangling links.
    fn clean_links(&self, root: &Root) -> Result<()> {
        let mut folders = vec![(String::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let names = match root.names(&folder) {
                // An operator's folder that we cannot read does not contain our links.
                Err(_) if depth > 0 => continue,
                other => other.map_err(|e| self.failed("Reading", &folder, e))?,
            };
            for (name, kind) in names {
                let full = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                if kind == FileType::Directory && depth + 1 < DEEPEST && name != OURS {
                    folders.push((full, depth + 1));
                } else if kind == FileType::Symlink
                    && let Entry::Link(text) =
                        root.entry(&full).map_err(|e| self.failed("Reading", &full, e))?
                    && let Some((instance, id)) = Self::parse_text(&text, &full)
                    && instance == self.instance.as_str()
                {
                    let file = format!("{}/{full}", self.home(&id));
                    if root.entry(&file).map_err(|e| self.failed("Reading", &file, e))? == Entry::Absent {
                        root.unlink(&full).map_err(|e| self.failed("Removing", &full, e))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the `.alive` file. This also shows that the folder is writable.
    pub(super) fn show_life(&self) -> Result<()> {
        let _one = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.open()?;
        let (alive, new) = (self.alive(), format!("{}/{NEW}alive", self.instance_folder()));
        root.unlink(&new)
            .and_then(|()| root.write_new(&new, self.alive_text().as_bytes()))
            .and_then(|()| root.rename(&new, &alive))
            .map_err(|e| self.failed("Writing", &alive, e))
    }

    /// A folder that in.tftpd, which runs as another user, cannot enter: its path and the command that fixes it.
    pub(super) fn closed_folder(&self) -> Result<Option<String>> {
        let root = self.open()?;
        for folder in ["", OURS, &self.instance_folder(), "machines"] {
            let mode = match root.folder_mode(folder) {
                Err(e) if is_nothing(&e) => continue,
                other => other.map_err(|e| self.failed("Looking at", folder, e))?,
            };
            if !mode.contains(rustix::fs::Mode::XOTH) {
                let full = self.root.join(folder);
                let full = full.display();
                return Ok(Some(format!("in.tftpd's user has no access to {full}: sudo chmod o+rx {full}")));
            }
        }
        Ok(None)
    }
}
