//! [`Versions`]: the records of image versions (which may be booted, the number of the next one, how one fails or becomes current), and the
//! image lock over them.
//!
//! The image lock serialises operations on images that must not race. The start and end of an import, the retry of a job, the deletion of a
//! version and a publication take its write side; the choice of a version for a new session takes its read side.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::shared::Shared;
use crate::{
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, Image, ImageVersion, ImageVersionId, Name, Principal,
        ResourceId, VersionSource, VersionState,
    },
    ports::{Batch, Removal, Write},
};

/// The records of image versions.
pub(super) struct Versions {
    shared: Arc<Shared>,
    lock: RwLock<()>,
}

impl Versions {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, lock: RwLock::default() }
    }

    /// While it is held, no ready version is deleted.
    pub(super) async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read().await
    }

    /// While it is held, nothing else creates, ends or deletes a version, and no session chooses one.
    pub(super) async fn lock(&self) -> RwLockWriteGuard<'_, ()> {
        self.lock.write().await
    }

    /// A version that can be booted.
    pub(super) async fn ready_version(&self, id: ImageVersionId) -> Result<ImageVersion> {
        let version = self.shared.store().version(id).await?;
        let version = version.ok_or_else(|| Error::not_found("image version", id))?;
        if version.state != VersionState::Ready {
            return Err(Error::new(code::version_not_ready(id), format!("Image version {id} is not ready"))
                .with_hint("Wait until its import has ended, or boot another version"));
        }
        Ok(version)
    }

    /// Adds to the batch that this version becomes the image's current one, if that is wanted or the image has none. The caller holds the
    /// image lock.
    pub(super) async fn with_current(
        &self,
        batch: Batch,
        version: &ImageVersion,
        is_wanted: bool,
        by: &Principal,
    ) -> Result<Batch> {
        let image = self.shared.store().image(version.image).await?;
        let Some(mut image) = image.filter(|image| is_wanted || image.current.is_none()) else {
            return Ok(batch);
        };
        let row = self.shared.audit(by, AuditAction::ImageSetCurrent, AuditSubject::Image(image.id));
        let row = row.before(json!({ "current": image.current })).after(json!({ "current": version.id }));
        let event = self.shared.event(EventKind::ImageUpdated).image(image.id);
        image.current = Some(version.id);
        image.updated_at = self.shared.now();
        Ok(batch.write(Write::Image(image)).event(event).audit(row))
    }

    /// The next version of an image, to be created, with its number set in the image's record; neither is recorded yet. The caller holds
    /// the image lock, so that no two versions take the same number.
    pub(super) async fn next_version(
        &self,
        image: &mut Image,
        source: VersionSource,
        comment: &str,
    ) -> Result<ImageVersion> {
        let there = self.shared.store().versions(image.id).await?;
        // Old records of images have no counter, only the numbers of their versions.
        let number = there.iter().map(|v| v.number).fold(image.last_version, u32::max).saturating_add(1);
        image.last_version = number;
        Ok(ImageVersion {
            id: ImageVersionId::generate(),
            image: image.id,
            number,
            state: VersionState::Importing,
            comment: comment.to_owned(),
            source,
            size_bytes: 0,
            sha256: None,
            error: None,
            failure: None,
            created_at: self.shared.now(),
            finished_at: None,
        })
    }

    /// Removes the bytes of a version without a record; what cannot be removed is found again at the next start.
    pub(super) async fn remove_bytes(&self, version: ImageVersionId) {
        if let Err(e) = self.shared.ports.images().remove(version, Removal::Force).await {
            tracing::warn!(%version, error = %e.report(), "the bytes of an image version are left to the next start");
        }
    }

    /// A version that is no longer imported and has failed.
    pub(super) fn failed_version(&self, mut version: ImageVersion, why: &Error) -> Batch {
        let (reason, failure) = (why.report(), Some(why.into()));
        version.state = VersionState::Failed;
        version.error = Some(reason.clone());
        version.failure.clone_from(&failure);
        version.finished_at = Some(self.shared.now());
        let event = self.shared.event(EventKind::VersionFailed { reason, failure }).image(version.image);
        Batch::new().write(Write::Version(version)).event(event).from_reserve()
    }

    /// Whether an unfinished version may be made from this writeback: then it must not be removed.
    pub(super) async fn is_being_published(&self, writeback: &ResourceId) -> Result<bool> {
        let store = self.shared.store();
        for version in store.importing_versions().await? {
            let VersionSource::Writeback { session, .. } = version.source else { continue };
            // If the session has been pruned, it could be any machine's writeback.
            let machine = store.session(session).await?.map(|session| ResourceId::machine(session.machine));
            if machine.is_none_or(|id| id == *writeback) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The error that kept writes are about to become a version.
pub(super) fn being_published(machine: &Name) -> Error {
    Error::new(ErrorKind::Busy, format!("The kept writes of machine {machine} are already being published"))
        .with_hint("Wait until that version is ready or failed")
}
