//! The possible states of a file and a directory on the simulated disk after a power cut: their current values, and those since the last
//! sync.

use std::collections::{BTreeMap, HashMap};

pub(super) const SECTOR: usize = 512;
pub(super) type Sector = [u8; SECTOR];

#[derive(Default)]
pub(super) struct FileNode {
    pub(super) live: HashMap<u64, Sector>,
    pub(super) size: u64,
    /// Values of each sector since the last sync, without the current one.
    pub(super) older: HashMap<u64, Vec<Sector>>,
    pub(super) older_sizes: Vec<u64>,
}

impl FileNode {
    pub(super) fn sector(&self, i: u64) -> Sector {
        self.live.get(&i).copied().unwrap_or([0; SECTOR])
    }

    pub(super) fn set(&mut self, i: u64, value: Sector) {
        let old = self.sector(i);
        self.older.entry(i).or_default().push(old);
        self.live.insert(i, value);
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (i, from) = (at / 512, usize::try_from(at % 512).unwrap());
            let n = rest.len().min(SECTOR - from);
            let mut sector = self.sector(i);
            sector[from..from + n].copy_from_slice(&rest[..n]);
            self.set(i, sector);
            at += n as u64;
            rest = &rest[n..];
        }
        self.resize(self.size.max(at));
    }

    pub(super) fn clear(&mut self, offset: u64, len: u64) {
        let within: Vec<u64> = self
            .live
            .keys()
            .copied()
            .filter(|i| i * 512 >= offset && (i + 1) * 512 <= offset + len)
            .collect();
        for i in within {
            self.set(i, [0; SECTOR]);
        }
    }

    pub(super) fn resize(&mut self, size: u64) {
        if size != self.size {
            if size < self.size {
                assert_eq!(size % 512, 0, "only whole sectors are cut off here");
                self.clear(size, u64::MAX - size);
            }
            self.older_sizes.push(self.size);
            self.size = size;
        }
    }

    pub(super) fn sync(&mut self) {
        self.older.clear();
        self.older_sizes.clear();
    }
}

pub(super) enum DirChange {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
    /// Moved to another directory; the number of the move.
    Leave(String, usize),
    /// Moved from another directory; its node and the number of the move.
    Arrive(String, usize, usize),
}

impl DirChange {
    pub(super) const fn of_move(&self) -> Option<usize> {
        match self {
            Self::Leave(_, number) | Self::Arrive(_, _, number) => Some(*number),
            Self::Add(..) | Self::Remove(_) | Self::Rename(..) => None,
        }
    }
}

#[derive(Default)]
pub(super) struct DirNode {
    pub(super) live: BTreeMap<String, usize>,
    pub(super) synced: BTreeMap<String, usize>,
    pub(super) changes: Vec<DirChange>,
}

impl DirNode {
    pub(super) fn change(&mut self, change: DirChange) {
        apply(&mut self.live, &change);
        self.changes.push(change);
    }
}

pub(super) fn apply(names: &mut BTreeMap<String, usize>, change: &DirChange) {
    match change {
        DirChange::Add(name, node) | DirChange::Arrive(name, node, _) => {
            names.insert(name.clone(), *node);
        }
        DirChange::Remove(name) | DirChange::Leave(name, _) => {
            names.remove(name);
        }
        DirChange::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}
