//! A simulated disk: a power cut may lose, reorder or tear everything that was not synced.
//!
//! * After the power cut, a 512-byte sector of a file has any of the values that it had since the last sync of the file, each sector
//!   independently.
//! * A file has any length that it had since.
//! * Of the changes to a directory since its last sync, any subset took effect, in order.
//! * A rename from one directory to another took effect in both or in neither, as on XFS, ext4 and btrfs; the sync of either makes it
//!   durable.
//! * [`Sim::die_after`] ends the process during an operation, which then took effect or not.

mod nodes;

use std::{
    io::{self, IoSlice},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use ggnet_core::{
    block::{BlockDevice as _, Disk},
    nouns::ImageVersionId,
    ports::{Hold, OpenImage},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::io::Errno;

use self::nodes::{DirChange, DirNode, FileNode, Node, SECTOR, apply};
use super::{Files, Open, RawFile, Space};
use crate::layers::raw::RawDisk;

struct World {
    nodes: Vec<Node>,
    /// Renames from one directory to another: whether each is known to have taken effect.
    moves: Vec<Option<bool>>,
    rng: StdRng,
    /// Operations left until the process dies.
    left: Option<u64>,
    dead: bool,
    /// Bytes that can still be written.
    room: Option<u64>,
    failing_sync: Option<(String, Errno)>,
    /// Opens that still succeed, and the error of the next one.
    failing_open: Option<(u32, Errno)>,
    /// The error of the next read, write or punch.
    failing_io: Option<Errno>,
    /// The error of the next rename.
    failing_rename: Option<Errno>,
    free: u64,
    free_files: Option<u64>,
}

type Hook = Box<dyn FnMut() + Send>;

/// See the module.
#[derive(Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    /// Called before and after the sync of a data file takes effect.
    hook: Arc<Mutex<Option<Hook>>>,
}

struct SimFile {
    sim: Sim,
    node: usize,
    name: String,
    writable: bool,
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl World {
    /// Called before a change: decides whether it takes effect, and whether the process survives it.
    fn step(&mut self) -> (bool, io::Result<()>) {
        if self.dead {
            return (false, Err(dead()));
        }
        match &mut self.left {
            Some(0) => {
                self.dead = true;
                (self.rng.random(), Err(dead()))
            }
            Some(n) => {
                *n -= 1;
                (true, Ok(()))
            }
            None => (true, Ok(())),
        }
    }

    fn file(&mut self, node: usize) -> &mut FileNode {
        match &mut self.nodes[node] {
            Node::File(f) => f,
            Node::Dir(_) => panic!("a directory is not a file"),
        }
    }

    fn dir(&mut self, node: usize) -> &mut DirNode {
        match &mut self.nodes[node] {
            Node::Dir(d) => d,
            Node::File(_) => panic!("a file is not a directory"),
        }
    }

    /// Called before a read, write or punch.
    fn does_io(&mut self) -> io::Result<()> {
        self.failing_io.take().map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Called before a file or folder is opened.
    fn opens(&mut self) -> io::Result<()> {
        match &mut self.failing_open {
            Some((0, errno)) => {
                let errno = *errno;
                self.failing_open = None;
                Err(errno.into())
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for part in path.components() {
            if let Component::Normal(name) = part {
                at = *self.dir(at).live.get(name.to_str().unwrap()).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        if self.dead { Err(dead()) } else { Ok(at) }
    }

    fn parent(&mut self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok((self.find(path.parent().unwrap())?, name))
    }

    fn change_dir(&mut self, dir: usize, change: DirChange) -> io::Result<()> {
        let (happens, result) = self.step();
        if happens {
            self.dir(dir).change(change);
        }
        result
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (dir, name) = self.parent(path)?;
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.change_dir(dir, DirChange::Add(name, index))?;
        Ok(index)
    }
}

impl Sim {
    /// A file system with the folder `/w`.
    pub(crate) fn new(seed: u64) -> Self {
        let world = World {
            nodes: vec![Node::Dir(DirNode::default())],
            moves: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            left: None,
            dead: false,
            room: None,
            failing_sync: None,
            failing_open: None,
            failing_io: None,
            failing_rename: None,
            free: 1 << 40,
            free_files: None,
        };
        let sim = Self { world: Arc::new(Mutex::new(world)), hook: Arc::default() };
        sim.create_dir(Path::new("/w")).unwrap();
        sim.open_dir(Path::new("/")).unwrap().sync_all().unwrap();
        sim
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// A synced version with that number of numbered sectors, opened.
    pub(crate) fn base(&self, sectors: u64, salt: u64) -> OpenImage {
        self.sparse_base(sectors, &[(0, numbered(sectors, salt))])
    }

    /// A synced version with that number of sectors, with these bytes at these sectors, opened.
    pub(crate) fn sparse_base(&self, sectors: u64, content: &[(u64, Vec<u8>)]) -> OpenImage {
        let path = PathBuf::from("/base.raw");
        self.raw(&path, sectors, content);
        self.opened(&path)
    }

    /// A synced file with that number of sectors, with these bytes at these sectors.
    pub(crate) fn raw(&self, path: &Path, sectors: u64, content: &[(u64, Vec<u8>)]) {
        let file = self.open(path, Open::Create).unwrap();
        file.set_size(sectors * 512).unwrap();
        for (sector, bytes) in content {
            file.write_at(&mut [IoSlice::new(bytes)], sector * 512).unwrap();
        }
        file.sync_all().unwrap();
        self.open_dir(path.parent().unwrap()).unwrap().sync_all().unwrap();
    }

    /// A raw file as a version.
    fn opened(&self, path: &Path) -> OpenImage {
        let disk = RawDisk::open(self, path).unwrap();
        let size_bytes = disk.info().size_bytes;
        OpenImage {
            id: ImageVersionId::generate(),
            size_bytes,
            disk: Disk::Blocks(Arc::new(disk)),
            hold: Hold::nothing(),
        }
    }

    /// The process dies during the change after the next `n` changes.
    pub(crate) fn die_after(&self, n: u64) {
        self.world().left = Some(n);
    }

    /// Whether the process died.
    pub(crate) fn is_dead(&self) -> bool {
        self.world().dead
    }

    /// A new process under the same kernel.
    pub(crate) fn restart(&self) {
        let mut world = self.world();
        world.left = None;
        world.dead = false;
    }

    /// Cuts the power and restores it.
    pub(crate) fn cut(&self) {
        self.restart();
        let mut world = self.world();
        let World { nodes, rng, moves, .. } = &mut *world;
        // Of the unsynced data, keeps nothing, everything, or a random part of each.
        let newest = [0.0, 1.0, 0.5, 0.1, 0.9][rng.random_range(0..5)];
        for node in nodes {
            match node {
                Node::File(file) => {
                    for (i, older) in std::mem::take(&mut file.older) {
                        if !rng.random_bool(newest) {
                            let pick = if newest == 0.0 { 0 } else { rng.random_range(0..older.len()) };
                            file.live.insert(i, older[pick]);
                        }
                    }
                    let sizes = std::mem::take(&mut file.older_sizes);
                    if !sizes.is_empty() && !rng.random_bool(newest) {
                        file.size = sizes[rng.random_range(0..sizes.len())];
                        let end = file.size;
                        file.live.retain(|i, _| i * 512 < end);
                    }
                }
                Node::Dir(dir) => {
                    for change in std::mem::take(&mut dir.changes) {
                        let happened = match change.of_move() {
                            Some(number) => *moves[number].get_or_insert_with(|| rng.random_bool(newest)),
                            None => rng.random_bool(newest),
                        };
                        if happened {
                            apply(&mut dir.synced, &change);
                        }
                    }
                    dir.live = dir.synced.clone();
                }
            }
        }
    }

    /// From now on only this number of bytes can be written; `None`: no limit.
    pub(crate) fn room(&self, bytes: Option<u64>) {
        self.world().room = bytes;
    }

    /// The next sync of a file of that name fails with `errno`, and the data that it should have synced is lost.
    pub(crate) fn fail_next_sync(&self, name: &str, errno: Errno) {
        self.world().failing_sync = Some((name.to_owned(), errno));
    }

    /// The next read, write or punch of a file fails with `errno` and does nothing.
    pub(crate) fn fail_next_io(&self, errno: Errno) {
        self.world().failing_io = Some(errno);
    }

    /// After `after` more opens of files and folders, one open fails with `errno`.
    pub(crate) fn fail_an_open(&self, after: u32, errno: Errno) {
        self.world().failing_open = Some((after, errno));
    }

    /// The next rename fails with `errno` and does nothing.
    pub(crate) fn fail_next_rename(&self, errno: Errno) {
        self.world().failing_rename = Some(errno);
    }

    /// The number of free inodes that `space` reports.
    pub(crate) fn set_free_files(&self, files: Option<u64>) {
        self.world().free_files = files;
    }

    /// The free space that `space` reports.
    pub(crate) fn set_free(&self, bytes: u64) {
        self.world().free = bytes;
    }

    /// A hook that runs while a data file is being synced, once before and once after the sync takes effect.
    pub(crate) fn during_sync(&self, hook: Option<Hook>) {
        *self.hook.lock().unwrap() = hook;
    }

    fn call_hook(&self) {
        // Taken out while it runs, because the hook may sync too.
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            *self.hook.lock().unwrap() = Some(hook);
        }
    }
}

impl SimFile {
    fn change(&self, change: impl FnOnce(&mut FileNode)) -> io::Result<()> {
        assert!(self.writable, "{} was opened for reading only", self.name);
        let mut world = self.sim.world();
        let (happens, result) = world.step();
        if happens {
            change(world.file(self.node));
        }
        result
    }

    fn sync(&self) -> io::Result<()> {
        let data = self.name == "data";
        if data {
            self.sim.call_hook();
        }
        {
            let mut world = self.sim.world();
            if let Some((_, errno)) = world.failing_sync.take_if(|(name, _)| *name == self.name) {
                return Err(errno.into());
            }
            let (happens, result) = world.step();
            if happens {
                let World { nodes, moves, .. } = &mut *world;
                match &mut nodes[self.node] {
                    Node::File(file) => file.sync(),
                    Node::Dir(dir) => {
                        for number in dir.changes.drain(..).filter_map(|change| change.of_move()) {
                            moves[number] = Some(true);
                        }
                        dir.synced = dir.live.clone();
                    }
                }
            }
            result?;
        }
        if data {
            self.sim.call_hook();
        }
        Ok(())
    }
}

impl RawFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.sim.world().file(self.node).size)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(|f| f.resize(size))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut world = self.sim.world();
        if world.dead {
            return Err(dead());
        }
        world.does_io()?;
        let file = world.file(self.node);
        if offset + buf.len() as u64 > file.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let from = usize::try_from(at % 512).unwrap();
            let n = rest.len().min(SECTOR - from);
            let (part, next) = rest.split_at_mut(n);
            part.copy_from_slice(&file.sector(at / 512)[from..from + n]);
            at += n as u64;
            rest = next;
        }
        Ok(())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        // Sometimes the data is not in memory.
        if self.sim.world().rng.random_bool(0.3) {
            return Ok(false);
        }
        self.read_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.sim.world().does_io()?;
        let mut bytes = parts.iter().map(|p| &**p).collect::<Vec<&[u8]>>().concat();
        let mut full = false;
        if let Some(room) = &mut self.sim.world().room {
            full = bytes.len() as u64 > *room;
            bytes.truncate(usize::try_from(*room).unwrap());
            *room -= bytes.len() as u64;
        }
        self.change(|f| f.write(&bytes, offset))?;
        if full { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.sim.world().does_io()?;
        self.change(|f| f.clear(offset, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn run(&self, _offset: u64, end: u64) -> io::Result<(bool, u64)> {
        Ok((true, end))
    }
}

impl Files for Sim {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn RawFile>> {
        let mut world = self.world();
        world.opens()?;
        let node = match world.find(path) {
            Ok(node) => {
                if how == Open::Create {
                    let (happens, result) = world.step();
                    if happens {
                        world.file(node).resize(0);
                    }
                    result?;
                }
                node
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && how == Open::Create => {
                world.add(path, Node::File(FileNode::default()))?
            }
            Err(e) => return Err(e),
        };
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(Arc::new(SimFile { sim: self.clone(), node, name, writable: how != Open::Read }))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn RawFile>> {
        let mut world = self.world();
        world.opens()?;
        let node = world.find(path)?;
        Ok(Arc::new(SimFile { sim: self.clone(), node, name: String::new(), writable: false }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        match world.find(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                world.add(path, Node::Dir(DirNode::default())).map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(from)?;
        if let Some(errno) = world.failing_rename.take() {
            return Err(errno.into());
        }
        let ((dir, old), (to_dir, new)) = (world.parent(from)?, world.parent(to)?);
        if dir == to_dir {
            return world.change_dir(dir, DirChange::Rename(old, new));
        }
        let (happens, result) = world.step();
        if happens {
            let number = world.moves.len();
            world.moves.push(None);
            world.dir(dir).change(DirChange::Leave(old, number));
            world.dir(to_dir).change(DirChange::Arrive(new, node, number));
        }
        result
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.find(path)?;
        let (dir, name) = world.parent(path)?;
        world.change_dir(dir, DirChange::Remove(name))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let node = self.world().find(path)?;
        assert!(self.world().dir(node).live.is_empty(), "only an empty folder can be removed");
        self.remove_file(path)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut world = self.world();
        let node = world.find(dir)?;
        Ok(world.dir(node).live.keys().cloned().collect())
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.world().find(path).map(|_| false)
    }

    fn allocated(&self, path: &Path) -> io::Result<u64> {
        let mut world = self.world();
        let node = world.find(path)?;
        Ok(world.file(node).live.len() as u64 * 512)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let world = self.world();
        Ok(Space { total: 1 << 40, available: world.free, files: world.free_files })
    }
}

/// Bytes that identify their sector, so that a misplaced sector is visible.
pub(crate) fn numbered(sectors: u64, salt: u64) -> Vec<u8> {
    (0..sectors).map(|i| (salt << 32 | (i + 1)).to_le_bytes().repeat(64)).collect::<Vec<_>>().concat()
}
