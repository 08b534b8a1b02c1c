//! [`Targets`]: how a target is served over its disks and taken away, and manual targets: an image version exported read-only by hand, which the
//! reconciler keeps.

mod served_versions;

use std::sync::Arc;

use serde_json::json;

use self::served_versions::ServedVersions;
use super::{shared::Shared, versions::Versions};
use crate::{
    authorization::{Command, authorize},
    block::DiskForm,
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, ImageVersion, ImageVersionId, Iqn, ManualTarget, Name,
        Principal, ResourceId, TargetId,
    },
    ports::{
        Access, Batch, Hold, LunDisks, LunSpec, OpenImage, Removal, SpecDigest, TargetEndpoint, TargetSpec,
        Write,
    },
};

/// A manual target to make.
#[derive(Clone, Debug)]
pub struct NewTarget {
    /// Its name.
    pub name: Name,
    /// The version to export.
    pub version: ImageVersionId,
    /// The only initiator that may log in; none: any.
    pub initiator: Option<Iqn>,
}

/// Targets: manual ones are its own; those of sessions are served and taken away through it.
pub struct Targets {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    served: ServedVersions,
}

impl Targets {
    pub(super) fn new(shared: Arc<Shared>, versions: Arc<Versions>) -> Self {
        Self { shared, versions, served: ServedVersions::default() }
    }

    /// Exports a version read-only. Errors: `NotFound` for the version, `Conflict` for a name in use or a version that is not
    /// ready, `Unsupported` where the target takes none of the forms in which the image store opens a version.
    pub async fn create(
        self: &Arc<Self>,
        new: NewTarget,
        by: &Principal,
    ) -> Result<(ManualTarget, TargetEndpoint)> {
        authorize(by, Command::TargetCreate)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let target = ManualTarget {
                    id: TargetId::generate(),
                    name: new.name,
                    version: new.version,
                    initiator: new.initiator,
                    created_at: this.shared.now(),
                };
                let _image = this.versions.hold().await;
                // Said before anything is recorded.
                this.versions.ready_version(target.version).await?;
                this.served_form()?;
                let subject = AuditSubject::Target(target.id);
                let row =
                    this.shared.audit(&by, AuditAction::TargetCreate, subject.clone()).after(json!(target));
                let event = this.shared.event(EventKind::TargetCreated);
                // The record first: an object that no record explains would be an orphan.
                this.shared
                    .record(Batch::new().write(Write::Target(target.clone())).event(event).audit(row))
                    .await?;
                match this.ensure_manual_target(&target).await {
                    Ok(endpoint) => Ok((target, endpoint)),
                    Err(e) => {
                        let row =
                            this.shared.audit(&by, AuditAction::TargetDelete, subject).before(json!(target));
                        let event = this.shared.event(EventKind::TargetDeleted);
                        let batch =
                            Batch::new().write(Write::DeleteTarget(target.id)).event(event).audit(row);
                        this.shared.record(batch.from_reserve()).await?;
                        Err(e)
                    }
                }
            })
            .await
    }

    /// Ends a manual target; `Busy` with a live initiator unless forced.
    pub async fn delete(self: &Arc<Self>, id: TargetId, force: bool, by: &Principal) -> Result<()> {
        authorize(by, Command::TargetDelete)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let store = this.shared.store();
                let target = store.target(id).await?.ok_or_else(|| Error::not_found("target", id))?;
                let how = if force { Removal::Force } else { Removal::IfIdle };
                this.remove_target(&ResourceId::manual(id), how).await?;
                let row = this
                    .shared
                    .audit(&by, AuditAction::TargetDelete, AuditSubject::Target(id))
                    .before(json!(target));
                let event = this.shared.event(EventKind::TargetDeleted);
                let batch = Batch::new().write(Write::DeleteTarget(id)).event(event).audit(row);
                this.shared.record(batch.from_reserve()).await.map(|_| ())
            })
            .await
    }

    /// The form in which a version is served as it is: one that the image store opens and the target takes.
    ///
    /// # Errors
    /// `Unsupported`, naming both: there is none.
    pub(in crate::orchestrator) fn served_form(&self) -> Result<DiskForm> {
        let (images, target) = (self.shared.ports.images(), self.shared.ports.target());
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
    pub(in crate::orchestrator) async fn open_version(
        &self,
        version: &ImageVersion,
        form: DiskForm,
    ) -> Result<OpenImage> {
        let opened = self.shared.ports.images().open(version.id, form).await;
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
    pub(in crate::orchestrator) async fn ensure_manual_target(
        &self,
        target: &ManualTarget,
    ) -> Result<TargetEndpoint> {
        let version = self.versions.ready_version(target.version).await?;
        let opened = self.open_version(&version, self.served_form()?).await?;
        let spec = self.manual_target_spec(target)?;
        let disks = LunDisks::from([(spec.boot_lun(), opened.disk)]);
        self.ensure_target(&spec, &disks, vec![opened.hold]).await
    }

    /// Makes a target exist; what keeps open the versions that it serves as they are is kept as long.
    pub(in crate::orchestrator) async fn ensure_target(
        &self,
        spec: &TargetSpec,
        disks: &LunDisks,
        holds: Vec<Hold>,
    ) -> Result<TargetEndpoint> {
        let endpoint = self.shared.ports.target().ensure(spec, disks).await?;
        self.served.keep(&spec.id, holds);
        Ok(endpoint)
    }

    /// Removes a target, and lets go of the versions that it served.
    pub(in crate::orchestrator) async fn remove_target(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.shared.ports.target().remove(id, how).await?;
        self.served.let_go(id);
        Ok(())
    }

    pub(in crate::orchestrator) fn manual_target_spec(&self, target: &ManualTarget) -> Result<TargetSpec> {
        let id = ResourceId::manual(target.id);
        Ok(TargetSpec {
            iqn: Iqn::target(&self.shared.config.iqn_prefix, &self.shared.config.instance, &id)?,
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

/// Names the bytes of a version that is served as it is.
pub(super) fn version_key(version: ImageVersionId) -> String {
    format!("version-{version}")
}

/// A version whose bytes are not there. Not the machine's fault, and no path for strangers to read.
pub(super) fn bytes_gone(version: ImageVersionId, e: Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => {
            Error::new(code::image_file_gone(version), format!("The file of image version {version} is gone"))
                .with_hint("Is the folder of the images mounted? Bring the file back, or delete the version")
                .with_source(e)
        }
        _ => e,
    }
}
