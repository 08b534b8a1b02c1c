//! Publishing: the kept writes of a machine become the next version of its image, without a copy.
//!
//! ```text
//!   kept writeback ──freeze──▶ record importing ──▶ adopt ──▶ record ready
//!         ▲                                           │
//!         └──────────────── record failed ────────────┘ (it is the writeback still)
//! ```
//! The version is recorded before its bytes move, with the session and the version below as its source. So a crash between any two steps
//! leaves a record of what is wanted, and the bytes complete in one place: the next start, or the reconciler, makes the version ready if it
//! finds them adopted, and failed if they still belong to the writeback. A lost response is handled in the same way.
//!
//! Invariants: the machine's lock is held throughout, and the image lock from the record on. The freeze comes before the image lock,
//! because a flush takes time in proportion to the unwritten data, and every start waits for that lock. From the freeze on no session
//! writes to the writeback, and it is not removed while an unfinished version needs it. A published version has no SHA-256, because it was
//! never read as a whole.

use std::{collections::HashMap, sync::Arc};

use serde_json::json;

use super::Images;
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, Image, ImageVersion, ImageVersionId, Machine, MachineId,
        Principal, ResourceId, SessionId, SessionState, SystemPart, VersionSource, VersionState,
    },
    orchestrator::{sessions::LockedMachine, versions::being_published},
    ports::{Batch, Completeness, Frozen, ImageListed, ImageSpec, Write},
};

/// The maximum length of a chain of versions: each version is one more open file, and one more file to search for blocks that later
/// versions did not write.
const DEEPEST: usize = 16;

/// What to publish.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The machine, without a live session, whose kept writes become a version.
    pub machine: MachineId,
    /// The operator's comment on this version.
    pub comment: String,
    /// Whether machines boot it from their next boot on. A publication that is finished only after a restart is not made current.
    pub make_current: bool,
    /// Who requests it.
    pub by: Principal,
}

impl Images {
    /// Makes the kept writes of a machine the next version of its image. The machine then has no kept writes, and boots the image's current
    /// version. If anything fails, the kept writes are unchanged.
    ///
    /// Errors: `NotFound` (machine, or it keeps nothing); `Conflict` while it has a live session; `Unsupported` if the image store cannot
    /// take over what the writeback store freezes; any error of a backend. After `Timeout` it may still be completed later: the version is
    /// `importing` until the reconciler knows the outcome. Cancellation: it continues without its caller.
    pub async fn publish(self: &Arc<Self>, request: PublishRequest) -> Result<(Image, ImageVersion)> {
        authorize(&request.by, Command::ImagePublish)?;
        let this = Arc::clone(self);
        self.shared
            .run(async move {
                this.runner.wait_for_sweep().await?;
                // Held to the end: no session may start to write.
                let locked = this.sessions.lock_machine(request.machine).await;
                this.publish_kept(&locked, &request).await
            })
            .await
    }

    /// Rejects a pair of stores that cannot hand over a frozen disk.
    fn check_hands_over(&self) -> Result<()> {
        let (images, writebacks) = (self.shared.ports.images(), self.shared.ports.writeback());
        let (adopts, freezes) = (images.capabilities().adopts, writebacks.capabilities().freezes);
        if freezes.as_ref().is_some_and(|family| adopts.contains(family)) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "The image store {} cannot take over the disks of the writeback store {}",
                images.name(),
                writebacks.name()
            ),
        )
        .with_hint("Choose two that work together: `ggnet-server backends` lists them"))
    }

    /// Where the bytes of an unfinished publication are: adopted, or still in the writeback (`None`). An error means that it cannot be
    /// determined now.
    ///
    /// A call to `adopt` without a caller keeps the writeback frozen until it ends; so if the writeback can be frozen, no such call is in
    /// flight.
    async fn adopted(&self, version: ImageVersionId, writeback: &ResourceId) -> Result<Option<ImageListed>> {
        let (images, writebacks) = (self.shared.ports.images(), self.shared.ports.writeback());
        let whole = |listed: &ImageListed| listed.completeness == Completeness::Whole;
        if let Some(listed) = images.get(version).await?.filter(whole) {
            return Ok(Some(listed));
        }
        if writebacks.get(writeback).await?.is_some() {
            match writebacks.freeze(writeback).await {
                // It may have been adopted between the two checks.
                Ok(_frozen) => return Ok(images.get(version).await?.filter(whole)),
                Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
                // Adopted between the two checks, or gone.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(listed) = images.get(version).await?.filter(whole) {
            return Ok(Some(listed));
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("The bytes of image version {version} are neither in the image store nor in writeback {writeback}"),
        )
        .with_hint("Check that the folders of images and writebacks are mounted, and restore them; or delete the version"))
    }

    /// Records a published version as ready, and as current if that was requested or the image has no current version.
    pub(super) async fn record_published(
        &self,
        mut version: ImageVersion,
        listed: &ImageListed,
        make_current: bool,
        by: &Principal,
    ) -> Result<ImageVersion> {
        version.state = VersionState::Ready;
        version.size_bytes = listed.size_bytes;
        (version.error, version.failure) = (None, None);
        version.finished_at = Some(self.shared.now());
        let event = self.shared.event(EventKind::VersionReady).image(version.image);
        let batch = Batch::new().write(Write::Version(version.clone())).event(event);
        let batch = self.versions.with_current(batch, &version, make_current, by).await?;
        // The batch records how something ended.
        self.shared.record(batch.from_reserve()).await?;
        Ok(version)
    }

    /// Ends a publication without a task. The caller holds the image lock, or no other operation has started yet.
    ///
    /// # Errors
    /// It cannot be determined now where its bytes are: the version stays as it is.
    pub(super) async fn end_abandoned_publication(
        &self,
        version: ImageVersion,
        session: SessionId,
    ) -> Result<()> {
        let store = self.shared.store();
        let Some(session) = store.session(session).await? else {
            // The session was pruned, or deleted with its machine: its writeback is no longer known.
            let listed = self.shared.ports.images().get(version.id).await?;
            let whole = listed.filter(|listed| listed.completeness == Completeness::Whole);
            return self.record_abandoned_publication(version, whole).await;
        };
        // Does not wait: the holder of this lock may be waiting for the image lock.
        let Some(_locked) = self.sessions.try_lock_machine(session.machine) else {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "Another operation on machine {} is in progress; version {} is checked later",
                    session.machine, version.id
                ),
            ));
        };
        let writeback = ResourceId::machine(session.machine);
        // A session that writes to it could not have started while the bytes were about to move.
        let is_written = self.is_written(session.machine, &writeback).await?;
        let adopted = match self.adopted(version.id, &writeback).await {
            Ok(adopted) => adopted,
            Err(e) if e.kind() == ErrorKind::Busy && is_written => None,
            Err(e) => return Err(e),
        };
        self.record_abandoned_publication(version, adopted).await
    }

    /// Records it as ready if its bytes were adopted, otherwise as failed.
    async fn record_abandoned_publication(
        &self,
        version: ImageVersion,
        adopted: Option<ImageListed>,
    ) -> Result<()> {
        match adopted {
            Some(listed) => {
                let by = Principal::system(SystemPart::Reconciler);
                self.record_published(version, &listed, false, &by).await.map(|_| ())
            }
            None => {
                let why = Error::new(
                    code::publish_interrupted(),
                    "The server was interrupted while it published a machine's kept writes",
                )
                .with_hint("The machine still keeps them: publish them again");
                self.shared.record(self.versions.failed_version(version, &why)).await.map(|_| ())
            }
        }
    }

    /// Whether the machine runs on this writeback. If it runs on its session's own disk (`discard`), that says nothing about this
    /// writeback: an adoption may be in flight.
    async fn is_written(&self, machine: MachineId, writeback: &ResourceId) -> Result<bool> {
        let live = self.shared.store().live_session(machine).await?;
        Ok(live.is_some_and(|session| {
            session.state == SessionState::Active && session.writebacks().any(|id| id == writeback)
        }))
    }

    async fn publish_kept(
        &self,
        locked: &LockedMachine<'_>,
        request: &PublishRequest,
    ) -> Result<(Image, ImageVersion)> {
        let (p, id) = (&self.shared.ports, locked.id());
        let machine = p.store().machine(id).await?.ok_or_else(|| Error::not_found("machine", id))?;
        if let Some(live) = p.store().live_session(id).await? {
            return Err(Error::new(
                code::machine_has_session(&machine.name),
                format!("Machine {} has session {} ({})", machine.name, live.id, live.state.as_str()),
            )
            .with_hint("Stop that session first: the writes of a running machine are not complete"));
        }
        self.check_hands_over()?;
        let writeback = ResourceId::machine(id);
        let base = self.kept_over(&machine, &writeback).await?;
        let last = p.store().last_session(id).await?.ok_or_else(|| nothing_kept(&machine))?;
        if self.versions.is_being_published(&writeback).await? {
            return Err(being_published(&machine.name));
        }
        self.check_depth(base).await?;
        // Before the image lock, because every start waits for that lock, and a flush takes time in proportion to the unwritten data.
        let frozen = self.freeze_kept(&writeback, base).await?;
        // Held to the end: the number stays reserved, the version below stays, and this version is not considered abandoned.
        let _image = self.versions.lock().await;
        let (image, version) = self.record_publishing(&machine, last.id, base, request).await?;
        match self.hand_over(&version, frozen).await {
            Ok(listed) => {
                let version =
                    self.record_published(version, &listed, request.make_current, &request.by).await?;
                Ok((p.store().image(image.id).await?.unwrap_or(image), version))
            }
            Err((e, is_as_it_was)) => {
                tracing::warn!(version = %version.id, error = %e.report(), "publication failed");
                if is_as_it_was {
                    self.shared.record(self.versions.failed_version(version, &e)).await?;
                }
                Err(e)
            }
        }
    }

    /// The version that the machine's kept writes are based on.
    async fn kept_over(&self, machine: &Machine, writeback: &ResourceId) -> Result<ImageVersionId> {
        let kept = self.shared.ports.writeback().get(writeback).await?;
        let kept = kept.filter(|kept| kept.completeness == Completeness::Whole);
        kept.and_then(|kept| kept.base).ok_or_else(|| nothing_kept(machine))
    }

    /// Rejects a version that would make the chain too long.
    async fn check_depth(&self, base: ImageVersionId) -> Result<()> {
        let listed = self.shared.ports.images().list().await?;
        let parents: HashMap<_, _> =
            listed.into_iter().filter_map(|version| Some((version.id, version.parent?))).collect();
        let below = std::iter::successors(Some(base), |version| parents.get(version).copied());
        if below.take(DEEPEST).count() < DEEPEST {
            return Ok(());
        }
        Err(Error::new(
            code::versions_too_deep(base, DEEPEST),
            format!("Version {base} is based on a chain of {} others, and a chain may have at most {DEEPEST} versions", DEEPEST - 1),
        )
        .with_hint("Import the present disk as a version of its own: read it with an initiator from its manual target"))
    }

    /// Records the version to be created. The caller holds the image lock.
    async fn record_publishing(
        &self,
        machine: &Machine,
        session: SessionId,
        base: ImageVersionId,
        request: &PublishRequest,
    ) -> Result<(Image, ImageVersion)> {
        let store = self.shared.store();
        let below = store.version(base).await?.ok_or_else(|| {
            Error::new(
                code::kept_writes_without_version(&machine.name),
                format!("Machine {} keeps writes over a version that no longer exists", machine.name),
            )
        })?;
        let mut image =
            store.image(below.image).await?.ok_or_else(|| Error::not_found("image", below.image))?;
        let source = VersionSource::Writeback { session, base };
        let version = self.versions.next_version(&mut image, source, &request.comment).await?;
        let row = self.shared.audit(&request.by, AuditAction::ImagePublish, AuditSubject::Image(image.id));
        let row = row
            .after(json!({ "machine": machine.id, "session": session, "base": base, "version": version.id }));
        let event = self.shared.event(EventKind::VersionImporting).machine(machine.id).image(image.id);
        let batch = Batch::new().write(Write::Image(image.clone())).write(Write::Version(version.clone()));
        self.shared.record(batch.event(event).audit(row)).await?;
        image.revision += 1;
        Ok((image, version))
    }

    /// Freezes the kept writeback, which must be based on `base`.
    async fn freeze_kept(&self, writeback: &ResourceId, base: ImageVersionId) -> Result<Frozen> {
        let writebacks = self.shared.ports.writeback();
        let frozen = writebacks.freeze(writeback).await?;
        if frozen.base == base {
            return Ok(frozen);
        }
        let message = format!(
            "Writeback {writeback} is based on version {}, but was listed as based on {base}",
            frozen.base
        );
        Err(Error::new(ErrorKind::Corrupt, message).with_backend(writebacks.name()))
    }

    /// Adopts. An error also says whether the writeback is known to be unchanged.
    async fn hand_over(
        &self,
        version: &ImageVersion,
        frozen: Frozen,
    ) -> std::result::Result<ImageListed, (Error, bool)> {
        let spec = ImageSpec::new(version.id, frozen.size_bytes);
        let failure = match self.shared.ports.images().adopt(&spec, &frozen).await {
            Ok(listed) => return Ok(listed),
            Err(e) => e,
        };
        let writeback = frozen.writeback.clone();
        drop(frozen);
        // The response may be lost, or come later.
        match self.adopted(version.id, &writeback).await {
            Ok(Some(listed)) => Ok(listed),
            Ok(None) => Err((failure, true)),
            Err(unknown) => {
                tracing::warn!(version = %version.id, error = %unknown.report(), "it is not yet known whether the version was published");
                Err((failure, false))
            }
        }
    }
}

fn nothing_kept(machine: &Machine) -> Error {
    Error::new(code::nothing_kept(&machine.name), format!("Machine {} keeps no writes", machine.name))
        .with_hint("Set its writeback to keep, and let it boot and write first")
}
