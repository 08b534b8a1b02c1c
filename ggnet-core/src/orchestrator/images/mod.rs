//! [`Images`]: current versions, deletion. How a version comes to be is in [`imports`] and [`publish`].

mod imports;
mod publish;

use std::sync::Arc;

use serde_json::json;

pub use self::{imports::ImportRequest, publish::PublishRequest};
use super::{job_runner::JobRunner, sessions::Sessions, shared::Shared, versions::Versions};
use crate::{
    authorization::{Command, authorize},
    error::{Error, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, Image, ImageId, ImageVersion, ImageVersionId, Principal,
        VersionSource, VersionState,
    },
    ports::{Batch, Completeness, Write},
};

/// What a deletion freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedVersion {
    /// The version.
    pub id: ImageVersionId,
}

/// Images and their versions: imported, published, made current, deleted.
pub struct Images {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    runner: Arc<JobRunner>,
    sessions: Arc<Sessions>,
}

impl Images {
    pub(super) fn new(
        shared: Arc<Shared>,
        versions: Arc<Versions>,
        runner: Arc<JobRunner>,
        sessions: Arc<Sessions>,
    ) -> Self {
        Self { shared, versions, runner, sessions }
    }

    /// Makes a ready version the one that machines boot from their next boot on.
    pub async fn set_current(
        self: &Arc<Self>,
        image: ImageId,
        version: ImageVersionId,
        by: &Principal,
    ) -> Result<Image> {
        authorize(by, Command::ImageSetCurrent)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let _image = this.versions.lock().await;
                let store = this.shared.store();
                let mut record = store.image(image).await?.ok_or_else(|| Error::not_found("image", image))?;
                let found = store.version(version).await?.filter(|v| v.image == image);
                let found = found.ok_or_else(|| Error::not_found("version of this image", version))?;
                if found.state != VersionState::Ready {
                    return Err(Error::new(
                        code::version_not_ready(version),
                        format!("Version {} is not ready", found.number),
                    ));
                }
                let row = this.shared.audit(&by, AuditAction::ImageSetCurrent, AuditSubject::Image(image));
                let row =
                    row.before(json!({ "current": record.current })).after(json!({ "current": version }));
                record.current = Some(version);
                record.updated_at = this.shared.now();
                let event = this.shared.event(EventKind::ImageUpdated).image(image);
                this.shared
                    .record(Batch::new().write(Write::Image(record.clone())).event(event).audit(row))
                    .await?;
                record.revision += 1;
                Ok(record)
            })
            .await
    }

    /// Deletes a version and its bytes. `Conflict` while it is current, in use, or a writeback or another version stands on it.
    pub async fn delete_version(
        self: &Arc<Self>,
        id: ImageVersionId,
        by: &Principal,
    ) -> Result<DeletedVersion> {
        authorize(by, Command::VersionDelete)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                // Write: no session may choose this version from here on.
                let image_lock = this.versions.lock().await;
                let store = this.shared.store();
                let version =
                    store.version(id).await?.ok_or_else(|| Error::not_found("image version", id))?;
                if this.is_importing(&version) {
                    return Err(Error::new(
                        code::version_importing(id),
                        format!("Version {} is being imported", version.number),
                    )
                    .with_hint("Cancel the import first"));
                }
                if store.image(version.image).await?.is_some_and(|i| i.current == Some(id)) {
                    return Err(Error::new(
                        code::version_is_current(id),
                        format!("Version {} is the current one", version.number),
                    )
                    .with_hint("Make another version current first, or delete the whole image"));
                }
                this.refuse_if_stood_on(&store.versions(version.image).await?, &[id]).await?;
                let row = this.shared.audit(&by, AuditAction::VersionDelete, AuditSubject::Version(id));
                let row = row.before(json!(version));
                let event = this.shared.event(EventKind::VersionDeleted).image(version.image);
                let batch = Batch::new().write(Write::DeleteVersion(id)).event(event).audit(row);
                this.shared.record(batch.from_reserve()).await?;
                drop(image_lock);
                this.versions.remove_bytes(id).await;
                Ok(DeletedVersion { id })
            })
            .await
    }

    /// Deletes an image with all its versions. `Conflict` while a machine is assigned to it or a version is in use.
    pub async fn delete(self: &Arc<Self>, id: ImageId, by: &Principal) -> Result<()> {
        authorize(by, Command::ImageDelete)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let image_lock = this.versions.lock().await;
                let store = this.shared.store();
                let image = store.image(id).await?.ok_or_else(|| Error::not_found("image", id))?;
                let versions = store.versions(id).await?;
                if let Some(v) = versions.iter().find(|v| this.is_importing(v)) {
                    return Err(Error::new(
                        code::version_importing(v.id),
                        format!("Version {} is being imported", v.number),
                    )
                    .with_hint("Cancel the import first"));
                }
                let ids: Vec<_> = versions.iter().map(|v| v.id).collect();
                this.refuse_if_stood_on(&versions, &ids).await?;
                let row = this
                    .shared
                    .audit(&by, AuditAction::ImageDelete, AuditSubject::Image(id))
                    .before(json!(image));
                let event = this.shared.event(EventKind::ImageDeleted).image(id);
                let mut batch = Batch::new().write(Write::DeleteImage(id)).event(event).audit(row);
                // They go with it.
                batch.audit.extend(versions.iter().map(|version| {
                    let subject = AuditSubject::Version(version.id);
                    this.shared.audit(&by, AuditAction::VersionDelete, subject).before(json!(version))
                }));
                this.shared.record(batch.from_reserve()).await?;
                drop(image_lock);
                // The newest first: what stands on another is younger.
                for version in ids.into_iter().rev() {
                    this.versions.remove_bytes(version).await;
                }
                Ok(())
            })
            .await
    }

    /// Refuses while a writeback, or a version that is not among `versions`, stands on one of them. `of_image`: all versions of their image.
    async fn refuse_if_stood_on(&self, of_image: &[ImageVersion], versions: &[ImageVersionId]) -> Result<()> {
        let listed = self.shared.ports.writeback().list().await?;
        let Some(found) = listed.iter().find(|w| w.base.is_some_and(|b| versions.contains(&b))) else {
            return self.refuse_if_below(of_image, versions).await;
        };
        let who = match found.id.owner() {
            Some((machine, _)) => format!("machine {machine}"),
            None => found.id.to_string(),
        };
        let version = found.base.map(|base| base.to_string()).unwrap_or_default();
        Err(Error::new(
            code::version_in_use(version, &who),
            format!("A writeback of {who} stands on this version"),
        )
        .with_hint("Stop its session, or discard its kept writeback, first"))
    }

    async fn refuse_if_below(&self, of_image: &[ImageVersion], versions: &[ImageVersionId]) -> Result<()> {
        let listed = self.shared.ports.images().list().await?;
        let stands = listed.iter().find_map(|above| {
            let below = above.parent.filter(|below| versions.contains(below))?;
            (!versions.contains(&above.id)).then_some((above.id, below))
        });
        // Of one whose bytes are not whole the record says what it is to stand on.
        let whole =
            |id: ImageVersionId| listed.iter().any(|v| v.id == id && v.completeness == Completeness::Whole);
        let recorded = || {
            of_image.iter().find_map(|above| match above.source {
                VersionSource::Writeback { base, .. }
                    if versions.contains(&base)
                        && !versions.contains(&above.id)
                        && above.state != VersionState::Failed
                        && !whole(above.id) =>
                {
                    Some((above.id, base))
                }
                _ => None,
            })
        };
        let Some((above, below)) = stands.or_else(recorded) else { return Ok(()) };
        let number = of_image.iter().find(|v| v.id == above).map(|v| format!("Version {}", v.number));
        let above_name = number.unwrap_or_else(|| format!("Version {above}"));
        let hint = if self.shared.store().version(above).await?.is_some() {
            "Delete that version first"
        } else {
            "That version was deleted, and its bytes could not be removed: the next start of the server removes them"
        };
        Err(Error::new(
            code::version_below_another(below, above),
            format!("{above_name} stands on this version: it has only what differs"),
        )
        .with_hint(hint))
    }
}
