//! Manual targets: an image version exported read-only by hand; the reconciler keeps it.

use serde_json::json;

use super::Orchestrator;
use crate::{
    authorization::{Command, authorize},
    error::{Error, Result},
    nouns::{
        AuditAction, AuditSubject, EventKind, ImageVersionId, Iqn, ManualTarget, Name, Principal, ResourceId,
        TargetId,
    },
    ports::{Batch, Removal, TargetEndpoint, Write},
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

impl Orchestrator {
    /// Exports a version read-only. Errors: `NotFound` for the version, `Conflict` for a name in use or a version that is not
    /// ready, `Unsupported` where the target takes none of the forms in which the image store opens a version.
    pub async fn create_target(
        &self,
        new: NewTarget,
        by: &Principal,
    ) -> Result<(ManualTarget, TargetEndpoint)> {
        authorize(by, Command::TargetCreate)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            let target = ManualTarget {
                id: TargetId::generate(),
                name: new.name,
                version: new.version,
                initiator: new.initiator,
                created_at: this.now(),
            };
            let _image = this.inner.image_lock.read().await;
            // Said before anything is recorded.
            this.ready_version(target.version).await?;
            this.served_form()?;
            let subject = AuditSubject::Target(target.id);
            let row = this.audit(&by, AuditAction::TargetCreate, subject.clone()).after(json!(target));
            let event = this.event(EventKind::TargetCreated);
            // The record first: an object that no record explains would be an orphan.
            this.record(Batch::new().write(Write::Target(target.clone())).event(event).audit(row)).await?;
            match this.ensure_manual_target(&target).await {
                Ok(endpoint) => Ok((target, endpoint)),
                Err(e) => {
                    let row = this.audit(&by, AuditAction::TargetDelete, subject).before(json!(target));
                    let event = this.event(EventKind::TargetDeleted);
                    let batch = Batch::new().write(Write::DeleteTarget(target.id)).event(event).audit(row);
                    this.record(batch.from_reserve()).await?;
                    Err(e)
                }
            }
        })
        .await
    }

    /// Ends a manual target; `Busy` with a live initiator unless forced.
    pub async fn delete_target(&self, id: TargetId, force: bool, by: &Principal) -> Result<()> {
        authorize(by, Command::TargetDelete)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            let store = this.inner.ports.store();
            let target = store.target(id).await?.ok_or_else(|| Error::not_found("target", id))?;
            let how = if force { Removal::Force } else { Removal::IfIdle };
            this.remove_target(&ResourceId::manual(id), how).await?;
            let row =
                this.audit(&by, AuditAction::TargetDelete, AuditSubject::Target(id)).before(json!(target));
            let event = this.event(EventKind::TargetDeleted);
            let batch = Batch::new().write(Write::DeleteTarget(id)).event(event).audit(row);
            this.record(batch.from_reserve()).await.map(|_| ())
        })
        .await
    }
}
