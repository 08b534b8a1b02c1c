//! Images: current versions, deletion. How a version comes to be is in [`imports`](super::imports).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::Orchestrator;
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{AuditAction, AuditSubject, EventKind, Image, ImageId, ImageVersionId, Principal, VersionState},
    ports::{Batch, Write},
};

/// What a deletion freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedVersion {
    /// The version.
    pub id: ImageVersionId,
}

impl Orchestrator {
    /// Makes a ready version the one that machines boot from their next boot on.
    pub async fn set_current_version(
        &self,
        image: ImageId,
        version: ImageVersionId,
        by: &Principal,
    ) -> Result<Image> {
        authorize(by, Command::ImageSetCurrent)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            let _image = this.inner.image_lock.write().await;
            let store = this.inner.ports.store();
            let mut record = store.image(image).await?.ok_or_else(|| Error::not_found("image", image))?;
            let found = store.version(version).await?.filter(|v| v.image == image);
            let found = found.ok_or_else(|| Error::not_found("version of this image", version))?;
            if found.state != VersionState::Ready {
                return Err(Error::new(
                    code::version_not_ready(version),
                    format!("Version {} is not ready", found.number),
                ));
            }
            let row = this.audit(&by, AuditAction::ImageSetCurrent, AuditSubject::Image(image));
            let row = row.before(json!({ "current": record.current })).after(json!({ "current": version }));
            record.current = Some(version);
            record.updated_at = this.now();
            let event = this.event(EventKind::ImageUpdated).image(image);
            this.record(Batch::new().write(Write::Image(record.clone())).event(event).audit(row)).await?;
            record.revision += 1;
            Ok(record)
        })
        .await
    }

    /// Deletes a version and its file. `Conflict` while it is current, in use, or a writeback stands on it.
    pub async fn delete_version(&self, id: ImageVersionId, by: &Principal) -> Result<DeletedVersion> {
        authorize(by, Command::VersionDelete)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            // Write: no session may choose this version from here on.
            let image_lock = this.inner.image_lock.write().await;
            let store = this.inner.ports.store();
            let version = store.version(id).await?.ok_or_else(|| Error::not_found("image version", id))?;
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
            this.refuse_if_stood_on(&[id]).await?;
            let row = this.audit(&by, AuditAction::VersionDelete, AuditSubject::Version(id));
            let row = row.before(json!(version));
            let event = this.event(EventKind::VersionDeleted).image(version.image);
            let batch = Batch::new().write(Write::DeleteVersion(id)).event(event).audit(row);
            this.record(batch.from_reserve()).await?;
            drop(image_lock);
            remove_file(&this.version_path(id)).await;
            Ok(DeletedVersion { id })
        })
        .await
    }

    /// Deletes an image with all its versions. `Conflict` while a machine is assigned to it or a version is in use.
    pub async fn delete_image(&self, id: ImageId, by: &Principal) -> Result<()> {
        authorize(by, Command::ImageDelete)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            let image_lock = this.inner.image_lock.write().await;
            let store = this.inner.ports.store();
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
            this.refuse_if_stood_on(&ids).await?;
            let row = this.audit(&by, AuditAction::ImageDelete, AuditSubject::Image(id)).before(json!(image));
            let event = this.event(EventKind::ImageDeleted).image(id);
            let mut batch = Batch::new().write(Write::DeleteImage(id)).event(event).audit(row);
            // They go with it.
            batch.audit.extend(versions.iter().map(|version| {
                let subject = AuditSubject::Version(version.id);
                this.audit(&by, AuditAction::VersionDelete, subject).before(json!(version))
            }));
            this.record(batch.from_reserve()).await?;
            drop(image_lock);
            for version in ids {
                remove_file(&this.version_path(version)).await;
            }
            Ok(())
        })
        .await
    }

    async fn refuse_if_stood_on(&self, versions: &[ImageVersionId]) -> Result<()> {
        let listed = self.inner.ports.writeback().list().await?;
        let Some(found) = listed.iter().find(|w| w.base.is_some_and(|b| versions.contains(&b))) else {
            return Ok(());
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
}

/// How long a look at the folder of images, or the removal of a file there, may take.
const FILE_WORK: Duration = Duration::from_secs(30);

/// The files of image versions in a folder; none if it is not there.
pub(super) async fn version_files(dir: &Path) -> Result<Vec<(PathBuf, ImageVersionId)>> {
    tokio::time::timeout(FILE_WORK, read_version_files(dir)).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("Reading {} did not end within {FILE_WORK:?}", dir.display()),
        )
        .with_hint("Look at the disk or the mount of the data folder: it hangs"))
    })
}

async fn read_version_files(dir: &Path) -> Result<Vec<(PathBuf, ImageVersionId)>> {
    let failed = |e| Error::io(format!("reading {}", dir.display()), e);
    let mut entries = match tokio::fs::read_dir(dir).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name();
        let id = name.to_str().and_then(|n| n.strip_suffix(".raw")).and_then(|n| n.parse().ok());
        found.extend(id.map(|id| (entry.path(), id)));
    }
    Ok(found)
}

/// Removes a file that nothing refers to any more; one that cannot be removed is found again at the next start.
pub(super) async fn remove_file(path: &Path) {
    match tokio::time::timeout(FILE_WORK, tokio::fs::remove_file(path)).await {
        Ok(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "could not remove");
        }
        Err(_) => tracing::warn!(path = %path.display(), "removing did not end within {FILE_WORK:?}"),
        Ok(_) => {}
    }
}
