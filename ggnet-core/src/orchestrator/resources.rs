//! What a session should have in each backend, as specs: the one place that says so, used by start, generations and the reconciler.

use super::{Orchestrator, locked_machine::LockedMachine};
use crate::{
    block::DiskForm,
    boot_text::templates::ChainScript,
    error::{Error, ErrorKind, Result, code},
    nouns::{
        Generation, ImageVersion, ImageVersionId, Iqn, Machine, ManualTarget, ResourceId, Session,
        VersionState, WritebackPolicy,
    },
    ports::{
        Access, BootBundle, DhcpChange, DhcpHost, LunDisks, LunSpec, OpenImage, Removal, SpecDigest,
        TargetEndpoint, TargetSpec, WritebackSpec,
    },
};

impl Orchestrator {
    /// The name of the writeback of a generation.
    pub(super) fn writeback_id(machine: &Machine, policy: WritebackPolicy, generation: u32) -> ResourceId {
        match policy {
            WritebackPolicy::Discard => ResourceId::generation(machine.id, generation),
            WritebackPolicy::Keep => ResourceId::machine(machine.id),
        }
    }

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

    /// The form in which a version is served as it is, without a writeback.
    ///
    /// # Errors
    /// `Unsupported`: the target takes none of the forms in which the image store opens a version.
    pub(super) fn served_form(&self) -> Result<DiskForm> {
        let (images, target) = (self.inner.ports.images(), self.inner.ports.target());
        let (opens, accepts) = (images.capabilities().opens, target.capabilities().accepts);
        accepts.iter().copied().find(|form| opens.contains(form)).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "The image store {} opens versions as {opens:?}, but the target backend {} takes {accepts:?}",
                    images.name(),
                    target.name()
                ),
            )
            .with_hint("Manual targets need an image store and a target backend that fit each other")
        })
    }

    /// The IQN of a generation's target.
    pub fn target_iqn(&self, session: &Session, generation: &Generation) -> Result<Iqn> {
        Iqn::target(&self.inner.config.iqn_prefix, &self.inner.config.instance, &session.target(generation))
    }

    pub(super) fn target_spec(&self, session: &Session, generation: &Generation) -> Result<TargetSpec> {
        Ok(TargetSpec {
            id: session.target(generation),
            iqn: self.target_iqn(session, generation)?,
            luns: vec![LunSpec {
                number: 0,
                disk_key: generation.writeback.to_string(),
                // Of the machine and the LUN, never of the generation.
                serial: SpecDigest::of([session.machine.simple().as_bytes(), b"lun0"]).short(),
                read_only: false,
            }],
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

    /// Makes a manual target exist, over its version's own bytes.
    pub(super) async fn ensure_manual_target(&self, target: &ManualTarget) -> Result<TargetEndpoint> {
        let version = self.ready_version(target.version).await?;
        // The disk keeps itself open, and the target's record keeps its version from being deleted.
        let disk = self.open_version(&version, self.served_form()?).await?.disk;
        let spec = self.manual_target_spec(target)?;
        self.inner.ports.target().ensure(&spec, &LunDisks::from([(spec.boot_lun(), disk)])).await
    }

    pub(super) fn manual_target_spec(&self, target: &ManualTarget) -> Result<TargetSpec> {
        let id = ResourceId::manual(target.id);
        let key = format!("version-{}", target.version);
        Ok(TargetSpec {
            iqn: Iqn::target(&self.inner.config.iqn_prefix, &self.inner.config.instance, &id)?,
            luns: vec![LunSpec {
                number: 0,
                serial: SpecDigest::of([id.as_str().as_bytes()]).short(),
                disk_key: key,
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

    /// Makes a generation's writeback and target exist.
    pub(super) async fn ensure_generation(
        &self,
        session: &Session,
        generation: &Generation,
    ) -> Result<TargetEndpoint> {
        let version = self.ready_version(generation.version).await?;
        self.ensure_generation_over(session, generation, &version).await
    }

    /// The same where the generation's version was read already.
    pub(super) async fn ensure_generation_over(
        &self,
        session: &Session,
        generation: &Generation,
        version: &ImageVersion,
    ) -> Result<TargetEndpoint> {
        let spec = WritebackSpec {
            id: generation.writeback.clone(),
            version: version.id,
            size_bytes: version.size_bytes,
        };
        let written = match session.policy {
            // One disk for all generations of the session, and for the sessions before it.
            WritebackPolicy::Keep => session.current.committed_at,
            WritebackPolicy::Discard => generation.committed_at,
        };
        if written.is_some() {
            self.written_is_there(&spec.id).await?;
        }
        let writebacks = self.inner.ports.writeback();
        let base = self.open_version(version, writebacks.capabilities().base).await?;
        let disk = writebacks.ensure(&spec, &base).await.map_err(|e| bytes_gone(version.id, e))?;
        let spec = self.target_spec(session, generation)?;
        self.inner.ports.target().ensure(&spec, &LunDisks::from([(spec.boot_lun(), disk)])).await
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

    /// Removes a generation's target, and its writeback unless that is the machine's to keep or another generation's.
    pub(super) async fn remove_generation(
        &self,
        session: &Session,
        generation: &Generation,
        how: Removal,
    ) -> Result<()> {
        self.inner.ports.target().remove(&session.target(generation), how).await?;
        if session.policy == WritebackPolicy::Discard {
            self.inner.ports.writeback().remove(&generation.writeback, how).await?;
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
