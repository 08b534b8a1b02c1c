//! [`Keeper`]: the file that dhcpd includes, the two files next to it, and how dhcpd gets a change.
//!
//! ```text
//!   changes ─▶ hosts ─▶ dhcpd -t ─▶ untold ─▶ checked ─▶ dhcpd gets the change ─▶ remove untold
//!                          │                               │ restart
//!                          │ rejected                      │   └─ fails ─▶ restore hosts and checked ─▶ restart
//!                          ▼                               │ OMAPI: remove what is in untold, add it as in hosts
//!              restore hosts; dhcpd keeps running          │   └─ fails ─▶ stays in untold; the next change retries
//! ```
//! * `hosts`: the file that dhcpd's main file includes.
//! * `hosts.checked`: the last text that `dhcpd -t` accepted; it is restored after a failure.
//! * `hosts.untold`: the names of declarations that dhcpd may not have loaded as they are in `checked`.
//!
//! Why the file has the declarations with OMAPI too: dhcpd stores changes by OMAPI in its lease file, and a lease file can get lost. At
//! start it reads its main file, then the changes in the lease file: a name in both is used as in the main file, and a name that OMAPI
//! removed is removed from both. So both agree as long as each change is made in both, and a declaration that OMAPI removed can only be
//! added again by OMAPI. That is why a file that was once used with OMAPI is marked, and rejected without OMAPI.
//!
//! Invariants: while no change is in progress, `hosts` equals `checked`; after a kill at any point, everything that dhcpd may not have
//! loaded is in `untold`, or differs between `hosts` and `checked`; only one change at a time.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{Error, ErrorKind, Result, error::ToolFailure, nouns::ResourceId};

use super::{
    omapi::Omapi,
    text::{Blocks, Text},
};
use crate::{
    dhcp::files,
    run::{CommandRunner, Invocation},
    service::{Service, State},
};

/// The command that installs dhcpd.
pub(super) const INSTALL: &str = "apt-get install isc-dhcp-server";
/// A permanent line in `untold`: the lease file has, or had, declarations from OMAPI.
const BY_OMAPI: &str = "# told by OMAPI";

/// A machine's new lines; `None` removes the machine.
pub(super) struct Change {
    pub(super) id: ResourceId,
    pub(super) block: Option<String>,
}

/// The content of the files.
pub(super) struct OnDisk {
    text: Option<String>,
    pub(super) hosts: Blocks,
    pub(super) checked: Blocks,
    /// Names of declarations.
    unconfirmed: BTreeSet<String>,
    by_omapi: bool,
}

impl OnDisk {
    /// The machines that dhcpd may not have loaded as they are.
    pub(super) fn unconfirmed(&self, text: &Text) -> BTreeSet<ResourceId> {
        self.unconfirmed.iter().filter_map(|name| text.id(name)).collect()
    }

    /// Adds all names of a machine whose lines differ between `a` and `b`.
    fn differ(&mut self, text: &Text, a: &Blocks, b: &Blocks) {
        let ids: BTreeSet<_> = a.keys().chain(b.keys()).filter(|id| a.get(*id) != b.get(*id)).collect();
        let blocks = ids.into_iter().flat_map(|id| a.get(id).into_iter().chain(b.get(id)));
        self.unconfirmed.extend(blocks.flat_map(|block| text.names(block)));
    }
}

/// The files and the daemon.
pub(super) struct Keeper {
    pub(super) text: Text,
    hosts: PathBuf,
    checked: PathBuf,
    unconfirmed: PathBuf,
    main_file: PathBuf,
    pub(super) service: Service,
    pub(super) omapi: Option<Omapi>,
    runner: Arc<dyn CommandRunner>,
}

impl Keeper {
    pub(super) fn new(
        text: Text,
        (hosts, main_file): (PathBuf, PathBuf),
        service: Service,
        omapi: Option<Omapi>,
        runner: Arc<dyn CommandRunner>,
    ) -> Self {
        let beside = |end: &str| {
            let mut name = hosts.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        let (checked, unconfirmed) = (beside(".checked"), beside(".untold"));
        Self { text, checked, unconfirmed, hosts, main_file, service, omapi, runner }
    }

    /// The folder of the files.
    pub(super) fn dir(&self) -> &Path {
        self.hosts.parent().unwrap_or(Path::new("/"))
    }

    /// Creates the folder and the file if they are missing (dhcpd does not start if an included file is missing), removes incomplete files
    /// of a killed GGnet, and reverts what was not checked. Returns whether a restart of that process may have been interrupted. Blocking.
    ///
    /// # Errors
    /// `Conflict` for a file that this GGnet did not write; `Invalid` for a file that was used with OMAPI if OMAPI is not configured;
    /// errors of the files.
    pub(super) fn prepare(&self) -> Result<bool> {
        let dir = self.dir();
        std::fs::create_dir_all(dir).map_err(|e| files::error("Making", dir, e))?;
        let hosts = self.hosts.file_name().unwrap_or_default().to_string_lossy();
        for name in files::names(dir)?.iter().filter(|name| name.starts_with(&format!(".{hosts}."))) {
            files::remove(&dir.join(name))?;
        }
        let shown = self.hosts.display();
        if files::read(&self.hosts)?.is_some_and(|text| !self.text.is_ours(&text)) {
            let message = format!("{shown} was not written by this GGnet instance");
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("Move it away, or set another file in hosts_file and in dhcpd's main file"));
        }
        let mut disk = self.look()?;
        if disk.by_omapi && self.omapi.is_none() {
            let message =
                format!("The machines in {shown} were added to dhcpd through OMAPI, which is not configured");
            return Err(Error::invalid("omapi", message).with_hint(format!(
                "Configure omapi again; or stop dhcpd, remove the blocks \"host ggnet-…\" from its lease file \
                 (/var/lib/dhcp/dhcpd.leases), remove {}, and start dhcpd",
                self.unconfirmed.display()
            )));
        }
        let (hosts, checked) = (disk.hosts.clone(), disk.checked.clone());
        disk.differ(&self.text, &hosts, &checked);
        self.note(&disk)?;
        self.put(&disk, &checked)?;
        Ok(self.omapi.is_none() && !disk.unconfirmed.is_empty())
    }

    /// Reads the files. Blocking.
    pub(super) fn look(&self) -> Result<OnDisk> {
        let text = files::read(&self.hosts)?;
        let parsed = |text: Option<&String>| self.text.parse(text.map_or("", String::as_str));
        let unconfirmed = files::read(&self.unconfirmed)?.unwrap_or_default();
        Ok(OnDisk {
            hosts: parsed(text.as_ref()),
            checked: parsed(files::read(&self.checked)?.as_ref()),
            unconfirmed: unconfirmed.lines().filter(|line| *line != BY_OMAPI).map(str::to_owned).collect(),
            by_omapi: unconfirmed.lines().any(|line| line == BY_OMAPI),
            text,
        })
    }

    /// Writes `hosts`, if its text changes.
    fn put(&self, disk: &OnDisk, blocks: &Blocks) -> Result<()> {
        let text = self.text.file(blocks);
        if disk.text.as_ref() == Some(&text) { Ok(()) } else { files::write(&self.hosts, &text) }
    }

    /// Writes `untold`, or removes it if it would be empty.
    fn note(&self, disk: &OnDisk) -> Result<()> {
        let by_omapi = (disk.by_omapi || self.omapi.is_some()).then_some(BY_OMAPI);
        let lines: Vec<&str> =
            by_omapi.into_iter().chain(disk.unconfirmed.iter().map(String::as_str)).collect();
        match lines.as_slice() {
            [] => files::remove(&self.unconfirmed),
            lines => files::write(&self.unconfirmed, &(lines.join("\n") + "\n")),
        }
    }

    /// Makes the changes, and passes to dhcpd everything that it may not have loaded. Only one call at a time; the future must not be
    /// dropped before its end.
    ///
    /// # Errors
    /// `Invalid` with dhcpd's message if it rejects the text, and nothing has changed; `Unavailable` if it does not run or does not start
    /// again, `Permission`, and errors of the files.
    pub(super) async fn apply(self: Arc<Self>, changes: Vec<Change>) -> Result<()> {
        let runs = !matches!(self.service.state().await?, State::Stopped(_));
        // A stopped dhcpd has nothing to forget, except what its lease file has.
        if !runs && (self.omapi.is_some() || changes.iter().any(|change| change.block.is_some())) {
            return self.service.require_running().await;
        }
        let (disk, want) = self.blocking(move |this| this.begin(changes)).await?;
        if disk.unconfirmed.is_empty() && want == disk.checked {
            return Ok(());
        }
        if runs && let Err(e) = self.check().await {
            self.blocking(|this| this.look().and_then(|disk| this.put(&disk, &disk.checked))).await?;
            return Err(e);
        }
        let before = disk.checked.clone();
        let disk = self.blocking(move |this| this.accept(disk, want)).await?;
        match (&self.omapi, runs) {
            (Some(omapi), _) => self.send_changes(omapi, &disk).await?,
            (None, true) => {
                if let Err(e) = self.service.restart().await {
                    self.take_back(before).await;
                    return Err(e);
                }
            }
            (None, false) => {}
        }
        self.blocking(|this| this.all_confirmed(disk)).await
    }

    /// Writes the new `hosts`, and returns what dhcpd has not loaded then.
    fn begin(&self, changes: Vec<Change>) -> Result<(OnDisk, Blocks)> {
        let mut disk = self.look()?;
        let (hosts, checked) = (disk.hosts.clone(), disk.checked.clone());
        let mut want = checked.clone();
        for change in changes {
            match change.block {
                Some(block) => want.insert(change.id, block),
                None => want.remove(&change.id),
            };
        }
        disk.differ(&self.text, &hosts, &checked);
        disk.differ(&self.text, &checked, &want);
        self.put(&disk, &want)?;
        Ok((disk, want))
    }

    /// Makes the written text the checked one.
    fn accept(&self, disk: OnDisk, want: Blocks) -> Result<OnDisk> {
        self.note(&disk)?;
        files::write(&self.checked, &self.text.file(&want))?;
        Ok(OnDisk { checked: want, ..disk })
    }

    fn all_confirmed(&self, disk: OnDisk) -> Result<()> {
        self.note(&OnDisk { unconfirmed: BTreeSet::new(), ..disk })
    }

    /// Whether dhcpd accepts its current configuration.
    ///
    /// # Errors
    /// `Invalid` with the position and the reason from dhcpd; `Unavailable` if dhcpd is not installed.
    pub(super) async fn check(&self) -> Result<()> {
        let check = Invocation::new("dhcpd", INSTALL).args(["-4", "-t", "-cf"]).arg(&self.main_file);
        let refused = format!("dhcpd rejects its configuration {}", self.main_file.display());
        let done = self.runner.run(check).await?.require_success(ErrorKind::Invalid, &refused);
        let hint = format!("`dhcpd -4 -t -cf {}` shows the line", self.main_file.display());
        done.map(drop).map_err(|e| without_quotations(e).with_hint(hint))
    }

    /// Makes the unconfirmed declarations in the running dhcpd equal to those in `checked`.
    async fn send_changes(&self, omapi: &Omapi, disk: &OnDisk) -> Result<()> {
        let mut session = omapi.connect().await?;
        for name in &disk.unconfirmed {
            session.remove(name).await?;
        }
        for id in disk.unconfirmed(&self.text) {
            let Some(block) = disk.checked.get(&id) else { continue };
            let Some(host) = self.text.spec(&id, block) else { continue };
            for declaration in self.text.declarations(&host)? {
                session.add(&declaration).await?;
            }
        }
        Ok(())
    }

    /// dhcpd did not start again: restores the text with which it ran and retries. If this fails, the next change repairs it.
    async fn take_back(self: &Arc<Self>, before: Blocks) {
        let restored = self.blocking(move |this| {
            let disk = this.look()?;
            this.put(&disk, &before)?;
            this.accept(disk, before)
        });
        let back = async {
            let disk = restored.await?;
            self.service.restart().await?;
            self.blocking(|this| this.all_confirmed(disk)).await
        };
        if let Err(e) = back.await {
            tracing::error!(
                error = e.report(),
                "dhcpd does not start with its previous configuration either"
            );
        }
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = Arc::clone(self);
        files::blocking(move || work(&this)).await
    }
}

/// dhcpd quotes the line that it cannot parse, which may contain its OMAPI key: keeps only the position and the reason.
fn without_quotations(error: Error) -> Error {
    let Some(tool) = error.tool() else { return error };
    let said = tool.stderr_tail.lines().filter(|line| line.contains(" line "));
    let tool = ToolFailure { stderr_tail: said.collect::<Vec<_>>().join("\n"), ..tool.clone() };
    error.with_tool(tool)
}
