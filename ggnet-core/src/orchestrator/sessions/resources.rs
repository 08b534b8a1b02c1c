//! What a session should have in each backend, as specs: the one place that says so, used by start, generations and the reconciler.

use super::{Sessions, locked_machine::LockedMachine};
use crate::{
    block::Disk,
    boot_text::templates::ChainScript,
    error::{Error, Result, code},
    nouns::{
        DiskAccess, Generation, ImageVersion, Iqn, Machine, ResourceId, Session, SessionDisk, WritebackPolicy,
    },
    orchestrator::targets::{bytes_gone, version_key},
    ports::{
        Access, BootBundle, DhcpChange, DhcpHost, LunDisks, LunSpec, Removal, SpecDigest, TargetEndpoint,
        TargetSpec, WritebackSpec,
    },
};

impl Sessions {
    /// The IQN of a generation's target.
    pub fn target_iqn(&self, session: &Session, generation: &Generation) -> Result<Iqn> {
        Iqn::target(&self.shared.config.iqn_prefix, &self.shared.config.instance, &session.target(generation))
    }

    pub(in crate::orchestrator) fn target_spec(
        &self,
        session: &Session,
        generation: &Generation,
    ) -> Result<TargetSpec> {
        let lun = |disk: &SessionDisk| LunSpec {
            number: disk.lun,
            disk_key: disk.writeback().map_or_else(|| version_key(disk.version), ToString::to_string),
            // Of the machine and the LUN, never of the generation.
            serial: SpecDigest::of([
                session.machine.simple().as_bytes(),
                format!("lun{}", disk.lun).as_bytes(),
            ])
            .short(),
            read_only: disk.access == DiskAccess::Shared,
        };
        Ok(TargetSpec {
            id: session.target(generation),
            iqn: self.target_iqn(session, generation)?,
            luns: generation.disks.iter().map(lun).collect(),
            access: Access::Initiator {
                name: session.initiator.clone(),
                chap: generation.chap.clone(),
                mutual: None,
            },
        })
    }

    pub(in crate::orchestrator) fn dhcp_host(machine: &Machine) -> DhcpHost {
        DhcpHost {
            id: ResourceId::machine(machine.id),
            name: machine.name.clone(),
            macs: machine.macs.clone(),
            fixed_address: machine.fixed_address,
            device_type: machine.device_type,
        }
    }

    /// A machine's boot files: for each card a script without secrets that chains to the HTTP server.
    pub(in crate::orchestrator) fn boot_bundle(&self, machine: &Machine) -> Result<BootBundle> {
        let mut files = std::collections::BTreeMap::new();
        for (mac, server) in machine.macs.iter().zip(self.shared.config.chain_url.iter().cycle()) {
            let script_url = server.join(&format!("boot/{}.ipxe", mac.hyphenated()))?;
            let text = self.templates.chain(&ChainScript { machine: machine.name.clone(), script_url })?;
            files.insert(format!("machines/{}.ipxe", mac.hyphenated()).parse()?, text.into());
        }
        Ok(BootBundle { id: ResourceId::machine(machine.id), files })
    }

    /// Whether DHCP and the boot files should know a machine: while it is in service and has, or will get, a session.
    pub(in crate::orchestrator) fn wants_boot(machine: &Machine, live: bool) -> bool {
        machine.state == crate::nouns::MachineState::Active
            && (live || (machine.auto_start && machine.image.is_some()))
    }
}

impl LockedMachine<'_> {
    /// How a generation's target is reached. What is there is not touched; what is lacking is made.
    pub(super) async fn endpoint_of(
        &self,
        session: &Session,
        generation: &Generation,
    ) -> Result<TargetEndpoint> {
        match self.shared.ports.target().endpoint(&session.target(generation)).await? {
            Some(endpoint) => Ok(endpoint),
            None => self.ensure_generation(session, generation).await,
        }
    }

    /// Makes a generation's writebacks and target exist.
    pub(in crate::orchestrator) async fn ensure_generation(
        &self,
        session: &Session,
        generation: &Generation,
    ) -> Result<TargetEndpoint> {
        self.ensure_generation_over(session, generation, &[]).await
    }

    /// The same where some of the generation's versions were read already.
    pub(super) async fn ensure_generation_over(
        &self,
        session: &Session,
        generation: &Generation,
        read: &[ImageVersion],
    ) -> Result<TargetEndpoint> {
        let (mut disks, mut holds) = (LunDisks::new(), Vec::new());
        for disk in generation.disks.iter() {
            let version = match read.iter().find(|version| version.id == disk.version) {
                Some(version) => version.clone(),
                None => self.versions.ready_version(disk.version).await?,
            };
            let bytes = match disk.writeback() {
                Some(id) => self.ensure_writeback(session, generation, id, &version).await?,
                None => {
                    let opened = self.targets.open_version(&version, self.targets.served_form()?).await?;
                    holds.push(opened.hold);
                    opened.disk
                }
            };
            disks.insert(disk.lun, bytes);
        }
        let spec = self.target_spec(session, generation)?;
        self.targets.ensure_target(&spec, &disks, holds).await
    }

    async fn ensure_writeback(
        &self,
        session: &Session,
        generation: &Generation,
        id: &ResourceId,
        version: &ImageVersion,
    ) -> Result<Disk> {
        let written = match session.policy {
            // One disk for all generations of the session, and for the sessions before it.
            WritebackPolicy::Keep => session.current.committed_at,
            WritebackPolicy::Discard => generation.committed_at,
        };
        if written.is_some() {
            self.written_is_there(id).await?;
        }
        let spec = WritebackSpec { id: id.clone(), version: version.id, size_bytes: version.size_bytes };
        let writebacks = self.shared.ports.writeback();
        let base = self.targets.open_version(version, writebacks.capabilities().base).await?;
        writebacks.ensure(&spec, &base).await.map_err(|e| bytes_gone(version.id, e))
    }

    /// A machine has booted from this disk: what it wrote must be there. An empty disk in its place, made without a word, would be the loss
    /// of all of it under a running machine.
    async fn written_is_there(&self, id: &ResourceId) -> Result<()> {
        if self.shared.ports.writeback().get(id).await?.is_some() {
            return Ok(());
        }
        Err(Error::new(code::written_disk_gone(id), format!("The written disk {id} is gone: no empty one is put in its place"))
            .with_hint(
                "Is the folder or disk of the writebacks mounted? Bring it back; or stop the session, which gives the machine an empty \
                 disk at its next start",
            ))
    }

    /// Removes a generation's target, and its writebacks unless they are the machine's to keep.
    pub(in crate::orchestrator) async fn remove_generation(
        &self,
        session: &Session,
        generation: &Generation,
        how: Removal,
    ) -> Result<()> {
        self.targets.remove_target(&session.target(generation), how).await?;
        if session.policy == WritebackPolicy::Discard {
            let mut how = how;
            for writeback in generation.disks.writebacks() {
                self.shared.ports.writeback().remove(writeback, how).await?;
                // Once one is gone there is no way back: a stop that spared the others would leave a machine with some of its disks.
                how = Removal::Force;
            }
        }
        Ok(())
    }

    /// Brings DHCP and the boot files to what [`Sessions::wants_boot`] says.
    pub(in crate::orchestrator) async fn settle_boot(&self, machine: &Machine, live: bool) -> Result<()> {
        let (id, p) = (ResourceId::machine(machine.id), &self.shared.ports);
        if Sessions::wants_boot(machine, live) {
            p.boot_files().ensure(&self.boot_bundle(machine)?).await?;
            self.change_dhcp(DhcpChange::Ensure(Sessions::dhcp_host(machine))).await
        } else {
            self.change_dhcp(DhcpChange::Remove(id.clone())).await?;
            p.boot_files().remove(&id).await
        }
    }
}
