//! Our bundles in the served folder: how they are made, found again, listed and removed.
//!
//! ```text
//!   <root>/machines/52-54-00-12-34-56.ipxe         a link to the file below; this is what a client asks for
//!   <root>/.ggnet/<instance>/<id>/machines/52-…    the bundle's file, mode 0644
//!                                 .new.<n>         a file that is not whole yet
//!                                 .changing        there while the bundle is being changed
//!                            .removed-<id>/        a bundle that is being removed
//!                            .alive                a file of ours by which we know who serves the folder
//! ```
//! The link's text, relative and so right under any `chroot`, says whose the path is: instance and bundle. It never changes: a
//! new version of a file is renamed over the old one, so a client at any time gets one of the two whole, and one that is being sent is
//! sent to its end.
//!
//! * Made: `.changing` (a new folder comes with it, from `.removed-…`), all new files (synced) beside the old ones, renames, links, then what the bundle no longer has, link before
//!   file; at last `.changing` goes. An error before the renames leaves everything as it was.
//! * Removed: links, then the folder is renamed to `.removed-…`, then emptied.
//!
//! Invariants: a link of ours has its file, so that whoever knows the files knows the links (a link without one, as a power cut can leave it,
//! is removed at the start and replaced when it is in the way); a path where anything else stands is never replaced and never removed.

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

/// The folder in the served folder in which every GGnet keeps its files.
const OURS: &str = ".ggnet";
const CHANGING: &str = ".changing";
const NEW: &str = ".new.";
const REMOVED: &str = ".removed-";
const ALIVE: &str = ".alive";
/// As deep as a boot path can be.
const DEEPEST: usize = 8;

/// See the module. Its calls wait for the disk; two for one id must not run at the same time.
pub(super) struct Bundles {
    root: PathBuf,
    instance: InstanceId,
    /// Held while the sign of life is written: two at once would be in each other's way.
    living: Mutex<()>,
}

/// Whose a path is.
enum PathOwner {
    /// Nobody's: free, or a link that leads to nothing.
    Nobody,
    /// Of this bundle.
    This,
    /// Of somebody else, in words.
    Other(String),
}

/// What stands of a bundle.
#[derive(Default)]
struct Found {
    /// Its files; those that in.tftpd may not read are left out.
    files: BTreeMap<BootPath, Bytes>,
    /// Files that are there, readable or not.
    paths: BTreeSet<BootPath>,
    /// Folders, the deepest last.
    folders: Vec<String>,
    /// Left by an `ensure` that was cut short.
    leftovers: Vec<String>,
}

impl Bundles {
    pub(super) const fn new(root: PathBuf, instance: InstanceId) -> Self {
        Self { root, instance, living: Mutex::new(()) }
    }

    fn open(&self) -> Result<Root> {
        Root::open(&self.root).map_err(|e| self.failed("Opening", "", e))
    }

    /// An error of the operating system, with the whole path and what to do about it.
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

    /// The path, as a client names it, of the file by which we know who serves the folder.
    pub(super) fn alive(&self) -> String {
        format!("{OURS}/{}/{ALIVE}", self.instance)
    }

    /// What that file says.
    pub(super) fn alive_text(&self) -> String {
        format!("GGnet {}\n", self.instance)
    }

    /// The text of the link that a path is.
    fn text(&self, id: &ResourceId, path: &BootPath) -> String {
        let up = "../".repeat(path.as_str().matches('/').count());
        format!("{up}{}/{path}", self.home(id))
    }

    /// Whose link at `path` this is: instance and bundle; none for a link that no GGnet made.
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
            // A new bundle goes again, so that a start that failed leaves nothing. What exists is left to the next call.
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

    /// Marks a bundle that is there as being changed.
    fn mark(&self, root: &Root, home: &str, found: &Found) -> Result<()> {
        for name in &found.leftovers {
            root.unlink(name).map_err(|e| self.failed("Removing", name, e))?;
        }
        let changing = format!("{home}/{CHANGING}");
        root.write_new(&changing, b"").map_err(|e| self.failed("Writing", &changing, e))
    }

    /// A new bundle's folder. It has the mark from its first moment, for without one it would be a bundle without files; until then
    /// it is one that is being removed.
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
            // Nothing was renamed: without these the bundle is as it was.
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

    /// Makes the link of a path that is ours or nobody's.
    fn link(&self, root: &Root, id: &ResourceId, path: &BootPath) -> Result<()> {
        let at = |e| self.failed("Linking", path.as_str(), e);
        loop {
            match self.owner(root, id, path)? {
                PathOwner::This => return Ok(()),
                PathOwner::Other(words) => return Err(self.conflict(path, &words)),
                PathOwner::Nobody => {}
            }
            // Leads to nothing, if it is there.
            if matches!(root.entry(path.as_str()).map_err(at)?, Entry::Link(_)) {
                root.unlink(path.as_str()).map_err(at)?;
            }
            let parent = path.as_str().rsplit_once('/').map_or("", |(parent, _)| parent);
            match root.make_dirs(parent).and_then(|()| root.symlink(&self.text(id, path), path.as_str())) {
                // Another bundle of the folder went meanwhile and took the empty folder with it, or somebody was quicker.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                other => return other.map_err(at),
            }
        }
    }

    /// Removes the link of a path, if it is this bundle's, and the folders that it leaves empty, but for the topmost.
    fn unlink(&self, root: &Root, id: &ResourceId, path: &BootPath) -> Result<()> {
        if !matches!(self.owner(root, id, path)?, PathOwner::This) {
            return Ok(());
        }
        root.unlink(path.as_str()).map_err(|e| self.failed("Removing", path.as_str(), e))?;
        let mut at = path.as_str();
        while let Some((parent, _)) = at.rsplit_once('/').filter(|(parent, _)| parent.contains('/')) {
            // Not empty, mostly.
            if root.rmdir(parent).is_err() {
                break;
            }
            at = parent;
        }
        Ok(())
    }

    /// Removes the bundle, whatever is there of it.
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

    /// Ends a removal that had got as far as the rename.
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

    /// What stands of the bundle in this folder of ours; none if that is not there.
    fn find(&self, root: &Root, home: &str) -> io::Result<Option<Found>> {
        let mut found = Found::default();
        let mut folders = vec![home.to_owned()];
        while let Some(folder) = folders.pop() {
            let names = match root.names(&folder) {
                Err(e) if is_nothing(&e) && folder == home => return Ok(None),
                // Removed meanwhile.
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
                    // A link or something stranger that somebody put there: to be replaced.
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

    /// Our bundles.
    pub(super) fn list(&self) -> Result<Vec<Listed>> {
        self.listed(|_| true)
    }

    /// One of our bundles.
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
            // What is left of a namesake goes with the next call for it.
            if removed.is_none() || !listed.contains_key(&id) {
                listed.insert(id, one);
            }
        }
        Ok(listed.into_values().collect())
    }

    /// A file of ours, as a client gets it.
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

    /// Removes what an earlier process of ours left half-way, makes our folder, and puts our sign of life into it.
    pub(super) fn clean(&self) -> Result<()> {
        let root = self.open()?;
        let instance_folder = self.instance_folder();
        root.make_dirs(&instance_folder).map_err(|e| self.failed("Making", &instance_folder, e))?;
        for (name, kind) in
            root.names(&instance_folder).map_err(|e| self.failed("Reading", &instance_folder, e))?
        {
            if kind == FileType::Symlink {
                // Nobody of ours made it: the call that it is in the way of will name it.
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

    /// Half-written files. The mark stays: the bundle is what the next `ensure` has to look at.
    fn clean_home(&self, root: &Root, home: &str) -> Result<()> {
        let at = |e| self.failed("Cleaning", home, e);
        for (name, _) in root.names(home).map_err(at)?.iter().filter(|(name, _)| name.starts_with(NEW)) {
            root.unlink(&format!("{home}/{name}")).map_err(at)?;
        }
        Ok(())
    }

    /// Links of ours that lead to nothing.
    fn clean_links(&self, root: &Root) -> Result<()> {
        let mut folders = vec![(String::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let names = match root.names(&folder) {
                // An operator's folder that we may not look into holds nothing of ours.
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

    /// Writes the file by which we know who serves the folder: also how we know that we can write.
    pub(super) fn show_life(&self) -> Result<()> {
        let _one = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.open()?;
        let (alive, new) = (self.alive(), format!("{}/{NEW}alive", self.instance_folder()));
        root.unlink(&new)
            .and_then(|()| root.write_new(&new, self.alive_text().as_bytes()))
            .and_then(|()| root.rename(&new, &alive))
            .map_err(|e| self.failed("Writing", &alive, e))
    }

    /// A folder that in.tftpd, who runs as a user of its own, may not go through: its path and the line that mends it.
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
