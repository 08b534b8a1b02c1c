//! The built-in target as a process, for measurements: the backends as the server wires them, without the server.
//!
//! ```text
//! bench-target LISTEN COUNT raw FILE            COUNT targets, each a door to the same file
//! bench-target LISTEN COUNT layers FILE FOLDER  COUNT targets, each a layer of its own over the file; what was in the folder goes
//! ```
//! It prints `target NAME` for each and `ready`. Whoever calls itself [`INITIATOR`] gets in.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ggnet_backends::layers::open_raw;
use ggnet_backends::target::builtin::{BuiltinTargetConfig, BuiltinTargets};
use ggnet_backends::writeback::layers::{Layers, LayersConfig};
use ggnet_benches::INITIATOR;
use ggnet_core::block::{BlockDevice, BlockInfo, Disk};
use ggnet_core::nouns::{ImageVersionId, InstanceId, Iqn, ResourceId};
use ggnet_core::ports::{
    Access, Login, LoginGate, LoginVerdict, LunDisks, LunSpec, NullObserver, OpenImage, SystemClock,
    TargetBackend as _, TargetSpec, WritebackSpec, WritebackStore as _,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// A raw file through the page cache: what tgtd serves as well.
struct RawFile {
    file: File,
    size: u64,
}

impl BlockDevice for RawFile {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            discard: false,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let len = buf.len();
        match preadv2(&self.file, &mut [io::IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n == len),
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.file.write_all_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Lets everybody in.
struct Open;

#[async_trait::async_trait]
impl LoginGate for Open {
    fn serving(&self) -> bool {
        true
    }

    async fn login(&self, _: Login) -> LoginVerdict {
        LoginVerdict::Accept
    }
}

/// Makes the disk of target number `n`.
enum Disks {
    Raw(Arc<RawFile>),
    Layers(Layers, OpenImage),
}

impl Disks {
    fn open(kind: &str, file: &Path, folder: Option<String>) -> Result<Self> {
        let opened = File::options().read(true).write(true).open(file)?;
        let size = opened.metadata()?.len();
        match kind {
            "raw" => Ok(Self::Raw(Arc::new(RawFile { file: opened, size }))),
            "layers" => {
                let dir = PathBuf::from(folder.context("FOLDER is missing")?);
                if dir.exists() {
                    std::fs::remove_dir_all(&dir)?;
                }
                let store = Layers::open(LayersConfig { dir, instance: InstanceId::generate() })?;
                Ok(Self::Layers(store, open_raw(ImageVersionId::generate(), file)?))
            }
            other => bail!("raw or layers, not {other}"),
        }
    }

    async fn disk(&self, id: &ResourceId) -> Result<Disk> {
        Ok(match self {
            Self::Raw(file) => Disk::Blocks(file.clone()),
            Self::Layers(store, base) => {
                let spec = WritebackSpec { id: id.clone(), version: base.id, size_bytes: base.size_bytes };
                store.ensure(&spec, base).await?
            }
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().with_context(|| format!("{what} is missing"));
    let listen: SocketAddr = next("LISTEN")?.parse()?;
    let count: u32 = next("COUNT")?.parse()?;
    let (kind, file) = (next("raw or layers")?, PathBuf::from(next("FILE")?));
    let disks = Disks::open(&kind, &file, args.next())?;
    let (prefix, instance): (Iqn, _) = ("iqn.2024-01.org.example".parse()?, InstanceId::generate());
    let config = BuiltinTargetConfig { listen: vec![listen] };
    let targets = BuiltinTargets::start(config, prefix.clone(), instance.clone(), Arc::new(SystemClock))?;
    targets.attach(Arc::new(Open), Arc::new(NullObserver));
    for n in 0..count {
        let id: ResourceId = format!("bench{n}.1").parse()?;
        let iqn = Iqn::target(&prefix, &instance, &id)?;
        let lun = LunSpec {
            number: 0,
            disk_key: format!("bench{n}"),
            serial: format!("bench{n}"),
            read_only: false,
        };
        let access = Access::Initiator { name: INITIATOR.parse()?, chap: None, mutual: None };
        let on = LunDisks::from([(0, disks.disk(&id).await?)]);
        targets.ensure(&TargetSpec { id, iqn: iqn.clone(), luns: vec![lun], access }, &on).await?;
        println!("target {iqn}");
    }
    println!("ready");
    tokio::signal::ctrl_c().await?;
    targets.shutdown().await;
    Ok(())
}
