//! What a session should have in each backend, as specs: the one place that says so, used by start, generations and the reconciler.

use super::{Orchestrator, locked_machine::LockedMachine};
use crate::{
    block::{Disk, DiskForm},
    boot_text::templates::ChainScript,
    error::{Error, ErrorKind, Result, code},
    nouns::{
        DiskAccess, Generation, ImageVersion, ImageVersionId, Iqn, Machine, ManualTarget, ResourceId,
        Session, SessionDisk, VersionState, WritebackPolicy,
    },
    ports::{
        Access, BootBundle, DhcpChange, DhcpHost, Hold, LunDisks, LunSpec, OpenImage, Removal, SpecDigest,
        TargetEndpoint, TargetSpec, WritebackSpec,
    },
};

/// Names the bytes of a version that is served as it is.
fn version_key(version: ImageVersionId) -> String {
    format!("version-{version}")
}

impl Orchestrator {
    /// A version that can be booted.
    pub(super) async fn ready_version(&self, id: ImageVersionId) -> Result<ImageVersion> {
        let version = self.inner.ports.store().version(id).await?;
        let version = version.ok_or_else(|| Error::not_found("image version", id))?;
        if version.state != VersionState::Ready {
            return Err(Error::new(code::version_not_ready(id), format!("Image version {id} is not ready"))
                .with_hint("Wait until its import has ended, or boot another version"));
        }
        Ok(version)
    }

    /// The IQN of a generation's target.
    pub fn target_iqn(&self, session: &Session, generation: &Generation) -> Result<Iqn> {
        Iqn::target(&self.inner.config.iqn_prefix, &self.inner.config.instance, &session.target(generation))
    }

    pub(super) fn target_spec(&self, session: &Session, generation: &Generation) -> Result<TargetSpec> {
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

    pub(super) fn dhcp_host(machine: &Machine) -> DhcpHost {
        DhcpHost {
            id: ResourceId::machine(machine.id),
            name: machine.name.clone(),
            macs: machine.macs.clone(),
            fixed_address: machine.fixed_address,
            device_type: machine.device_type,
        }
    }

    /// A machine's boot files: for each card a script without secrets that chains to the HTTP server.
    pub(super) fn boot_bundle(&self, machine: &Machine) -> Result<BootBundle> {
        let mut files = std::collections::BTreeMap::new();
        for (mac, server) in machine.macs.iter().zip(self.inner.config.chain_url.iter().cycle()) {
            let script_url = server.join(&format!("boot/{}.ipxe", mac.hyphenated()))?;
            let text =
                self.inner.templates.chain(&ChainScript { machine: machine.name.clone(), script_url })?;
            files.insert(format!("machines/{}.ipxe", mac.hyphenated()).parse()?, text.into());
        }
        Ok(BootBundle { id: ResourceId::machine(machine.id), files })
    }

    /// Whether DHCP and the boot files should know a machine: while it is in service and has, or will get, a session.
    pub(super) fn wants_boot(machine: &Machine, live: bool) -> bool {
        machine.state == crate::nouns::MachineState::Active
            && (live || (machine.auto_start && machine.image.is_some()))
    }

    /// The form in which a version is served as it is: one that the image store opens and the target takes.
    ///
    /// # Errors
    /// `Unsupported`, naming both: there is none.
    pub(super) fn served_form(&self) -> Result<DiskForm> {
        let (images, target) = (self.inner.ports.images(), self.inner.ports.target());
        let (opens, accepts) = (images.capabilities().opens, target.capabilities().accepts);
        if let Some(form) = opens.iter().find(|form| accepts.contains(form)) {
            return Ok(*form);
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "The image store {} opens versions as {opens:?}, but the target backend {} takes {accepts:?}: a version cannot be served \
                 as it is",
                images.name(),
                target.name(),
            ),
        )
        .with_hint("Give each session a writable disk over the version instead, or choose backends that fit each other"))
    }

    /// Opens a version for reading, in this form.
    async fn open_version(&self, version: &ImageVersion, form: DiskForm) -> Result<OpenImage> {
        let opened = self.inner.ports.images().open(version.id, form).await;
        let opened = opened.map_err(|e| bytes_gone(version.id, e))?;
        if opened.size_bytes == version.size_bytes {
            return Ok(opened);
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "Image version {} has {} bytes, and had {} when it was made",
                version.id, opened.size_bytes, version.size_bytes
            ),
        )
        .with_hint("Bring back its bytes as they were, or import it again and delete this version"))
    }

    /// Makes a manual target exist, over its version's own bytes.
    pub(super) async fn ensure_manual_target(&self, target: &ManualTarget) -> Result<TargetEndpoint> {
        let version = self.ready_version(target.version).await?;
        let opened = self.open_version(&version, self.served_form()?).await?;
        let spec = self.manual_target_spec(target)?;
        let disks = LunDisks::from([(spec.boot_lun(), opened.disk)]);
        self.ensure_target(&spec, &disks, vec![opened.hold]).await
    }

    /// Makes a target exist; what keeps open the versions that it serves as they are is kept as long.
    async fn ensure_target(
        &self,
        spec: &TargetSpec,
        disks: &LunDisks,
        holds: Vec<Hold>,
    ) -> Result<TargetEndpoint> {
        let endpoint = self.inner.ports.target().ensure(spec, disks).await?;
        self.inner.served_versions.keep(&spec.id, holds);
        Ok(endpoint)
    }

    /// Removes a target, and lets go of the versions that it served.
    pub(super) async fn remove_target(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.inner.ports.target().remove(id, how).await?;
        self.inner.served_versions.let_go(id);
        Ok(())
    }

    pub(super) fn manual_target_spec(&self, target: &ManualTarget) -> Result<TargetSpec> {
        let id = ResourceId::manual(target.id);
        Ok(TargetSpec {
            iqn: Iqn::target(&self.inner.config.iqn_prefix, &self.inner.config.instance, &id)?,
            luns: vec![LunSpec {
                number: 0,
                serial: SpecDigest::of([id.as_str().as_bytes()]).short(),
                disk_key: version_key(target.version),
                read_only: true,
            }],
            access: match &target.initiator {
                Some(name) => Access::Initiator { name: name.clone(), chap: None, mutual: None },
                None => Access::Shared,
            },
            id,
        })
    }
}

/// A version whose bytes are not there. Not the machine's fault, and no path for strangers to read.
fn bytes_gone(version: ImageVersionId, e: Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => {
            Error::new(code::image_file_gone(version), format!("The file of image version {version} is gone"))
                .with_hint("Is the folder of the images mounted? Bring the file back, or delete the version")
                .with_source(e)
        }
        _ => e,
    }
}

impl LockedMachine<'_> {
    /// How a generation's target is reached. What is there is not touched; what is lacking is made.
    pub(super) async fn endpoint_of(
        &self,
        session: &Session,
        generation: &Generation,
    ) -> Result<TargetEndpoint> {
        match self.inner.ports.target().endpoint(&session.target(generation)).await? {
            Some(endpoint) => Ok(endpoint),
            None => self.ensure_generation(session, generation).await,
        }
    }

    /// Makes a generation's writebacks and target exist.
    pub(super) async fn ensure_generation(
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
                None => self.ready_version(disk.version).await?,
            };
            let bytes = match disk.writeback() {
                Some(id) => self.ensure_writeback(session, generation, id, &version).await?,
                None => {
                    let opened = self.open_version(&version, self.served_form()?).await?;
                    holds.push(opened.hold);
                    opened.disk
                }
            };
            disks.insert(disk.lun, bytes);
        }
        let spec = self.target_spec(session, generation)?;
        self.ensure_target(&spec, &disks, holds).await
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
        let writebacks = self.inner.ports.writeback();
        let base = self.open_version(version, writebacks.capabilities().base).await?;
        writebacks.ensure(&spec, &base).await.map_err(|e| bytes_gone(version.id, e))
    }

    /// A machine has booted from this disk: what it wrote must be there. An empty disk in its place, made without a word, would be the loss
    /// of all of it under a running machine.
    async fn written_is_there(&self, id: &ResourceId) -> Result<()> {
        if self.inner.ports.writeback().get(id).await?.is_some() {
            return Ok(());
        }
        Err(Error::new(code::written_disk_gone(id), format!("The written disk {id} is gone: no empty one is put in its place"))
            .with_hint(
                "Is the folder or disk of the writebacks mounted? Bring it back; or stop the session, which gives the machine an empty \
                 disk at its next start",
            ))
    }

    /// Removes a generation's target, and its writebacks unless they are the machine's to keep.
    pub(super) async fn remove_generation(
        &self,
        session: &Session,
        generation: &Generation,
        how: Removal,
    ) -> Result<()> {
        self.remove_target(&session.target(generation), how).await?;
        if session.policy == WritebackPolicy::Discard {
            let mut how = how;
            for writeback in generation.disks.writebacks() {
                self.inner.ports.writeback().remove(writeback, how).await?;
                // Once one is gone there is no way back: a stop that spared the others would leave a machine with some of its disks.
                how = Removal::Force;
            }
        }
        Ok(())
    }

    /// Brings DHCP and the boot files to what [`Orchestrator::wants_boot`] says.
    pub(super) async fn settle_boot(&self, machine: &Machine, live: bool) -> Result<()> {
        let (id, p) = (ResourceId::machine(machine.id), &self.inner.ports);
        if Orchestrator::wants_boot(machine, live) {
            p.boot_files().ensure(&self.boot_bundle(machine)?).await?;
            self.change_dhcp(DhcpChange::Ensure(Orchestrator::dhcp_host(machine))).await
        } else {
            self.change_dhcp(DhcpChange::Remove(id.clone())).await?;
            p.boot_files().remove(&id).await
        }
    }
}
