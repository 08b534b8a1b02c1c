//! A DHCP backend that keeps an ethers file (ethers(5)): `52:54:00:00:00:01 pc-17 # ggnet <instance> <resource> <digest>`.
//!
//! For a DHCP server that somebody else runs and that reads such a file (dnsmasq with `read-ethers`). The lines themselves tell whose
//! they are, so nothing is remembered elsewhere: a restart finds what it left.
//!
//! Invariants: lines that are not this instance's stay as they are, byte for byte; the file is replaced by a rename, so that it is always
//! the old or the new one; a call that is dropped half-way still ends, and before the next one begins, for its work is one
//! blocking task that holds the turn.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_core::{
    Error, Result,
    nouns::{InstanceId, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpCapabilities, DhcpChange, DhcpRefusal, Health, Listed, Observer,
    },
    registry::{Descriptor, Finding, Level, Registry, Settings, Wiring, settings},
};
use serde::Deserialize;
use tokio::sync::Mutex;

/// The backend's name in the configuration: `[dhcp]` `backend = "ethers"`.
pub const NAME: &str = "ethers";

/// The keys of the configuration's section.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// The file; left out: `ethers` in the data folder.
    path: Option<PathBuf>,
}

/// Registers the backend.
pub fn register(registry: &mut Registry) {
    registry.dhcp.add(
        Descriptor::new(NAME, make)
            .summary("An ethers file, for a DHCP server that somebody else runs")
            .keys(&[("path", "The file; left out: ethers in the data folder")])
            .check(check),
    );
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn DhcpBackend>> {
    let table: Table = settings(NAME, table)?;
    let path = table.path.unwrap_or_else(|| wiring.data_dir.join("ethers"));
    Ok(Arc::new(EthersFile::new(path, wiring.instance)))
}

/// Whether the file can be read, and made where it is not there. The server makes the data folder, but no other.
async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let table: Table = settings(NAME, table)?;
    let path = table.path.clone().unwrap_or_else(|| wiring.data_dir.join("ethers"));
    let what = format!("ethers file {}", path.display());
    let folder = path.parent().map(Path::to_owned).filter(|_| table.path.is_some());
    let file = EthersFile::new(path, wiring.instance);
    let looked = file.blocking(move |inner| {
        let missing = folder.filter(|folder| !folder.is_dir());
        Ok((inner.read()?.lines().count(), missing))
    });
    Ok(vec![match looked.await {
        Ok((lines, None)) => Finding::ok(what, format!("It has {lines} lines")),
        Ok((_, Some(folder))) => {
            let mend = format!("sudo install -d -o ggnet {}", folder.display());
            Finding::bad(Level::Fail, what, format!("There is no folder {}", folder.display()), mend)
        }
        Err(e) => Finding::failed(Level::Fail, what, &e),
    }])
}

/// An ethers file.
pub struct EthersFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    // How our lines end, before the resource.
    mark: String,
    // One call at a time, in their order: each change reads, changes and replaces the whole file.
    turn: Arc<Mutex<()>>,
}

impl EthersFile {
    /// The file at `path`, of which the lines of `instance` are ours. It need not exist.
    #[must_use]
    pub fn new(path: PathBuf, instance: InstanceId) -> Self {
        let mark = format!(" # ggnet {instance} ");
        Self { inner: Arc::new(Inner { path, mark, turn: Arc::default() }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.inner.turn.clone().lock_owned().await;
        let inner = self.inner.clone();
        // The turn goes with the work, which goes on when the caller does not wait for it.
        let task = move || {
            let _turn = turn;
            work(&inner)
        };
        let done = tokio::task::spawn_blocking(task).await;
        done.map_err(|e| Error::internal("The task that changes the ethers file died").with_source(e))?
            .map_err(|e| e.with_backend(NAME))
    }
}

impl Inner {
    fn io(&self, doing: &str) -> impl FnOnce(std::io::Error) -> Error {
        let doing = format!("{doing} {}", self.path.display());
        move |e| Error::io(doing, e)
    }

    fn read(&self) -> Result<String> {
        match fs::read_to_string(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map_err(self.io("Reading")),
        }
    }

    /// The resource and the digest of a line of ours.
    fn ours<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str)> {
        line.split_once(self.mark.as_str())?.1.split_once(' ')
    }

    /// Replaces the lines of these resources.
    fn put(&self, lines: &BTreeMap<String, String>) -> Result<()> {
        let old = self.read()?;
        let stays =
            |line: &&str| self.ours(line.trim_end()).is_none_or(|(owner, _)| !lines.contains_key(owner));
        let mut new: String = old.split_inclusive('\n').filter(stays).collect();
        let lines: String = lines.values().map(String::as_str).collect();
        if !new.is_empty() && !new.ends_with('\n') && !lines.is_empty() {
            new.push('\n');
        }
        new.push_str(&lines);
        if new == old {
            return Ok(());
        }
        let temporary = self.path.with_extension("ggnet-new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(new.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(self.io("Replacing"))
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let text = self.read()?;
        let mut found: BTreeMap<ResourceId, String> = BTreeMap::new();
        for (id, digest) in text.lines().filter_map(|line| self.ours(line)) {
            found.entry(id.parse()?).or_insert_with(|| digest.to_owned());
        }
        // The digest in the file is shortened, for people; whether it is the wanted one, `ensure` decides.
        let listed = |id| Listed { id, digest: None, completeness: Completeness::Whole };
        Ok(found.into_keys().map(listed).collect())
    }
}

#[async_trait]
impl DhcpBackend for EthersFile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> DhcpCapabilities {
        DhcpCapabilities { leases: false, observes: false }
    }

    fn attach(&self, _: Arc<dyn Observer>) {
        // A file sees nobody.
    }

    /// All of them in one change of the file: none can fail alone.
    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        let lines = |change: &DhcpChange| match change {
            DhcpChange::Ensure(host) => {
                let end = format!("{}{} {}", self.inner.mark, host.id, host.digest().short());
                host.macs.iter().map(|mac| format!("{mac} {}{end}\n", host.name)).collect()
            }
            DhcpChange::Remove(_) => String::new(),
        };
        let new = changes.iter().map(|change| (change.id().to_string(), lines(change))).collect();
        self.blocking(move |inner| inner.put(&new)).await?;
        Ok(Vec::new())
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.blocking(Inner::list).await
    }

    async fn health(&self) -> Health {
        match self.blocking(|inner| inner.read().map(|_| ())).await {
            Ok(()) => Health::Up,
            Err(e) => Health::Down(e.to_string()),
        }
    }

    async fn shutdown(&self) {}
}
