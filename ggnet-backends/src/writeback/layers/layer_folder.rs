//! The layers in their folder: how they are created, found, listed and frozen. `folder` handles names, removal and health.
//!
//! ```text
//!   <dir>/<instance>-<id>/             one writeback
//!        data                         as long as the disk, sparse
//!        hot                          header and map, follows every write
//!        durable                      header and map, follows every flush; does not exist before the first
//!        durable.new                  the first durable map, not synced yet; treated as missing
//! ```
//! * Create: folder, `data`, then `hot`, its header last. A folder without a readable header is *partial*: nothing was ever acknowledged in
//!   it, so `ensure` starts again.
//! * Open: under the same kernel that wrote the hot map (its boot id is in the header), the hot map is valid; under another, the durable
//!   map, and if there is none, nothing was ever flushed and the writeback is empty again. A hot map that is created from the durable one
//!   gets its header last, too: if interrupted, it is created again.
//! * Freeze: opened as above and flushed, so that `data` and the durable map are complete; nothing else changes.
//!
//! Invariants: under each of our names there is nothing, a whole or a partial writeback; see `folder` for the rest. The boot id identifies
//! the kernel, but a file system can lose unwritten data while the kernel keeps running (a removed disk, a network mount): such a folder
//! must not be used again before a reboot.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{Completeness, Health, OpenImage, WritebackListed, WritebackSpec},
};

use super::folder::{Folder, nothing_to_freeze, other_base};
use crate::{
    files::{Files, Open, RawFile, check_len, check_size, damaged, gone_is_none},
    layers::{
        chain::read_header,
        device::{Device, Parts},
        flush::Flusher,
        format::{DATA, DURABLE, FAILED_MARK, FAILED_OFFSET, HOT, Header, Kind},
        inline::Inline,
        layer::Layer,
        map::BlockMap,
        raw::bytes_of,
    },
};

/// See the module.
pub(super) struct LayerFolder {
    folder: Folder,
    boot: String,
    punches: bool,
    inline: Arc<Inline>,
}

/// A frozen layer.
pub(super) struct Still {
    /// Its folder.
    pub(super) home: PathBuf,
    /// The version below it.
    pub(super) base: ImageVersionId,
    /// The disk's size in bytes.
    pub(super) size_bytes: u64,
}

/// An existing map file.
struct MapFile {
    header: Header,
    file: Arc<dyn RawFile>,
}

impl LayerFolder {
    /// Opens the folder, which must exist, and checks whether its file system can punch holes.
    pub(super) fn open(
        files: Arc<dyn Files>,
        dir: PathBuf,
        instance: InstanceId,
        boot: String,
    ) -> Result<Self> {
        let folder = Folder::new(files, dir, instance);
        let punches =
            folder.can_punch().map_err(|e| Error::io(format!("Writing to {}", folder.dir.display()), e))?;
        Ok(Self { folder, boot, punches, inline: Arc::new(Inline::new()) })
    }

    /// Whether discarded blocks are freed on the host.
    pub(super) const fn punches(&self) -> bool {
        self.punches
    }

    /// Creates the writeback or opens it again, over `base`.
    pub(super) fn ensure(&self, id: &ResourceId, base: &OpenImage) -> Result<Arc<Device>> {
        check_size(base.size_bytes)?;
        let below = bytes_of(base)?;
        let home = self.folder.home(id);
        let at = |what: &str, e| Error::io(format!("{what} {}", home.display()), e);
        self.folder.end_removal(id).map_err(|e| at("Removing the rest of", e))?;
        let durable = self.durable(&home).map_err(|e| at("Reading", e))?;
        let hot = self.hot(&home).map_err(|e| at("Reading", e))?;
        for map in [&durable, &hot].into_iter().flatten() {
            self.check(id, &map.header)?;
            if map.header.base != base.id || map.header.size != base.size_bytes {
                return Err(other_base(id, map.header.base));
            }
        }
        let header = Header {
            kind: Kind::Durable,
            size: base.size_bytes,
            instance: self.folder.instance.clone(),
            base: base.id,
            id: id.clone(),
            boot: String::new(),
        };
        let layer = self.layer(&home, &header, hot, durable.as_ref())?;
        let flusher = Flusher::new(self.folder.files.clone(), home, header, durable.map(|d| d.file));
        Ok(Arc::new(Device::new(Parts {
            layer,
            size: base.size_bytes,
            base: base.clone(),
            below,
            flusher,
            punches: self.punches,
            inline: Arc::clone(&self.inline),
        })))
    }

    /// Flushes a writeback that is not open.
    pub(super) fn freeze(&self, id: &ResourceId) -> Result<Still> {
        let home = self.folder.home(id);
        let at = |what: &str, e| Error::io(format!("{what} {}", home.display()), e);
        let durable = self.durable(&home).map_err(|e| at("Reading", e))?;
        let hot = self.hot(&home).map_err(|e| at("Reading", e))?;
        for map in [&durable, &hot].into_iter().flatten() {
            self.check(id, &map.header)?;
        }
        let known = durable.as_ref().or(hot.as_ref()).map(|map| map.header.clone());
        let Some(header) = known else { return Err(nothing_to_freeze(id)) };
        let header = Header { kind: Kind::Durable, boot: String::new(), ..header };
        let (base, size_bytes) = (header.base, header.size);
        let layer = self.layer(&home, &header, hot, durable.as_ref())?;
        let flusher = Flusher::new(self.folder.files.clone(), home.clone(), header, durable.map(|d| d.file));
        flusher.flush(&layer).map_err(|e| at("Flushing", e))?;
        Ok(Still { home, base, size_bytes })
    }

    /// Opens the files of a writeback with the valid map, or creates them.
    fn layer(
        &self,
        home: &Path,
        durable_header: &Header,
        hot: Option<MapFile>,
        durable: Option<&MapFile>,
    ) -> Result<Layer> {
        let size = durable_header.size;
        let at = |what: &str, e| Error::io(format!("{what} {}", home.display()), e);
        match (hot.filter(|h| h.header.boot == self.boot), durable) {
            (Some(hot), durable) => {
                Self::refuse_failed(&durable_header.id, &*hot.file)?;
                let map = BlockMap::load(&*hot.file, size)
                    .and_then(|map| map.mark_differences(durable.map(|d| &*d.file)).map(|()| map))
                    .map_err(|e| at("Reading", e))?;
                Ok(Layer::new(durable_header.id.clone(), self.data(home, size)?, hot.file, map))
            }
            (None, Some(durable)) => {
                let data = self.data(home, size)?;
                let map = BlockMap::load(&*durable.file, size).map_err(|e| at("Reading", e))?;
                let hot =
                    self.new_hot(home, durable_header, &map).map_err(|e| at("Writing the map of", e))?;
                Ok(Layer::new(durable_header.id.clone(), data, hot, map))
            }
            (None, None) => {
                self.folder.make_home(home)?;
                self.create(home, durable_header).map_err(|e| at("Creating", e))
            }
        }
    }

    /// Checks that a header belongs to this writeback.
    fn check(&self, id: &ResourceId, header: &Header) -> Result<()> {
        if header.id != *id || header.instance != self.folder.instance {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("The folder of writeback {id} contains writeback {}-{}", header.instance, header.id),
            )
            .with_hint("a folder was renamed or copied by hand: restore its name or remove it"));
        }
        Ok(())
    }

    fn refuse_failed(id: &ResourceId, hot: &dyn RawFile) -> Result<()> {
        let mut mark = [0; FAILED_MARK.len()];
        match hot.read_at(&mut mark, FAILED_OFFSET) {
            Ok(()) if mark == *FAILED_MARK => Err(failed(id)),
            Ok(()) => Ok(()),
            Err(e) => Err(Error::io(format!("Reading the hot map of {id}"), e)),
        }
    }

    /// The durable map if it exists; an invalid one is an error.
    fn durable(&self, home: &Path) -> io::Result<Option<MapFile>> {
        match self.folder.files.open(&home.join(DURABLE), Open::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(file) => match read_header(&*file)? {
                header if header.kind == Kind::Durable => Ok(Some(MapFile { header, file })),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a durable map")),
            },
        }
    }

    /// The hot map if it exists with its header: without a header it was never completed, or not written before a power cut.
    fn hot(&self, home: &Path) -> io::Result<Option<MapFile>> {
        let file = match self.folder.files.open(&home.join(HOT), Open::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match read_header(&*file) {
            Ok(header) if header.kind == Kind::Hot => Ok(Some(MapFile { header, file })),
            Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(e),
            _ => Ok(None),
        }
    }

    /// The data file of a writeback that has a map.
    fn data(&self, home: &Path, size: u64) -> Result<Arc<dyn RawFile>> {
        let path = home.join(DATA);
        let opening = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => damaged(&path, e),
            _ => Error::io(format!("Opening {}", path.display()), e),
        };
        let data = self.folder.files.open(&path, Open::Write).map_err(opening)?;
        check_len(&path, data.size().map_err(opening)?, size)?;
        Ok(data)
    }

    fn create(&self, home: &Path, header: &Header) -> io::Result<Layer> {
        let data = self.folder.files.open(&home.join(DATA), Open::Create)?;
        data.set_size(header.size)?;
        let map = BlockMap::new(header.size);
        let hot = self.new_hot(home, header, &map)?;
        Ok(Layer::new(header.id.clone(), data, hot, map))
    }

    /// Creates the hot map file again from `map`, its header last.
    fn new_hot(&self, home: &Path, header: &Header, map: &BlockMap) -> io::Result<Arc<dyn RawFile>> {
        let hot = self.folder.files.open(&home.join(HOT), Open::Create)?;
        hot.set_size(BlockMap::file_len(header.size))?;
        map.mark_differences(None)?;
        BlockMap::write_pages(&*hot, &map.take_dirty())?;
        let header = Header { kind: Kind::Hot, boot: self.boot.clone(), ..header.clone() };
        hot.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        Ok(hot)
    }

    /// Removes the writeback, including an incomplete one.
    pub(super) fn remove(&self, id: &ResourceId) -> Result<()> {
        self.folder.remove(id)
    }

    /// Lists the folder.
    pub(super) fn list(&self) -> Result<Vec<WritebackListed>> {
        self.folder.list(|home, id, names, removed| self.describe(home, id, names, removed).map(Some))
    }

    /// Returns one writeback.
    pub(super) fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.folder.get(id, |home, id, names, removed| self.describe(home, id, names, removed).map(Some))
    }

    /// The health of the folder; blocks on disk I/O.
    pub(super) fn health(&self) -> Health {
        self.folder.health()
    }

    fn describe(
        &self,
        home: &Path,
        id: ResourceId,
        names: &[String],
        removed: bool,
    ) -> io::Result<WritebackListed> {
        let bytes = self.folder.allocated(home, names)?;
        let durable = match self.durable(home) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(()),
            other => Ok(other?),
        };
        let intact = durable.is_ok();
        let header = match durable.ok().flatten() {
            Some(map) => Some(map.header),
            None => self.hot(home)?.map(|map| map.header),
        };
        let data = gone_is_none(self.folder.files.open(&home.join(DATA), Open::Read).and_then(|f| f.size()))?;
        let whole = !removed
            && intact
            && header
                .as_ref()
                .is_some_and(|h| h.id == id && h.instance == self.folder.instance && Some(h.size) == data);
        let digest = header
            .as_ref()
            .map(|h| WritebackSpec { id: h.id.clone(), version: h.base, size_bytes: h.size }.digest());
        Ok(WritebackListed {
            id,
            digest,
            completeness: if whole { Completeness::Whole } else { Completeness::Partial },
            base: header.map(|h| h.base),
            bytes,
        })
    }
}

/// The error for a disk that failed an fsync.
pub(super) fn failed(id: &ResourceId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("Writeback {id} could not be written to its disk and cannot be used"))
        .with_hint("look for disk errors in the kernel log; remove the writeback, or reboot the host to get the flushed data back")
}
