//! Publishing: what a machine has kept becomes the next version of its image, without a copy.
//!
//! ```text
//!   kept writeback ──freeze──▶ record importing ──▶ adopt ──▶ record ready
//!         ▲                                           │
//!         └──────────────── record failed ────────────┘ (it is the writeback still)
//! ```
//! The version is recorded before its bytes move, with the session and the version below as its source. So a crash between any two steps
//! leaves a record that says what is wanted, and the bytes in one place, whole: the next start, or the reconciler, makes the version ready
//! where it finds them adopted, and failed where they are the writeback's still. An answer that was lost is treated alike.
//!
//! Invariants: the machine's lock is held throughout, and the image lock from the record on. The freeze comes before it, because a flush takes
//! as long as there is to write, and every start waits for that lock. From the freeze on no session writes to the writeback; nobody removes it
//! while an unfinished version wants it. A version that was published has no SHA-256: nobody has read it.

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

/// Most versions that stand on each other: each is one more file that is open, and one more place to look for what was not written.
const DEEPEST: usize = 16;

/// What to publish.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The machine, without a live session, whose kept writes become a version.
    pub machine: MachineId,
    /// What the operator says of this version.
    pub comment: String,
    /// Whether machines boot it from their next boot on. A publication that only a restart could finish is not made current.
    pub make_current: bool,
    /// Who wants it.
    pub by: Principal,
}

impl Images {
    /// Makes the kept writes of a machine the next version of its image. The machine then keeps nothing, and boots the image's current
    /// version. Whatever fails, what it kept is as it was.
    ///
    /// Errors: `NotFound` (machine, or it keeps nothing); `Conflict` while it has a live session; `Unsupported` where the image store cannot
    /// take over what the writeback store freezes; any error of a backend. `Timeout` may mean that it is done later: then the version is
    /// `importing` until the reconciler has found out. Cancellation: it goes on without its caller.
    pub async fn publish(self: &Arc<Self>, request: PublishRequest) -> Result<(Image, ImageVersion)> {
        authorize(&request.by, Command::ImagePublish)?;
        let this = Arc::clone(self);
        self.shared
            .run(async move {
                this.runner.wait_for_sweep().await?;
                // Held to the end: no session may begin to write.
                let locked = this.sessions.lock_machine(request.machine).await;
                this.publish_kept(&locked, &request).await
            })
            .await
    }

    /// Refuses stores between which nothing can be handed over.
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
        .with_hint("Choose two that fit each other: `ggnet-server backends` lists them"))
    }

    /// Where the bytes of an unfinished publication are: adopted, or still the writeback's (none). An error: that cannot be said now.
    ///
    /// A call to adopt that nobody waits for any more holds the writeback frozen until it ends; so whoever can freeze it knows that none is
    /// under way.
    async fn adopted(&self, version: ImageVersionId, writeback: &ResourceId) -> Result<Option<ImageListed>> {
        let (images, writebacks) = (self.shared.ports.images(), self.shared.ports.writeback());
        let whole = |listed: &ImageListed| listed.completeness == Completeness::Whole;
        if let Some(listed) = images.get(version).await?.filter(whole) {
            return Ok(Some(listed));
        }
        if writebacks.get(writeback).await?.is_some() {
            match writebacks.freeze(writeback).await {
                // It may have been adopted between the two looks.
                Ok(_frozen) => return Ok(images.get(version).await?.filter(whole)),
                Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
                // Adopted between the two looks, or gone.
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
        .with_hint("Are the folders of images and writebacks mounted? Bring them back; or delete the version"))
    }

    /// Records a published version as ready, and as current if that is wanted or there is none.
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
        // It says how something ended.
        self.shared.record(batch.from_reserve()).await?;
        Ok(version)
    }

    /// Ends a publication that nobody works on. The caller holds the image lock, or nothing else is under way yet.
    ///
    /// # Errors
    /// It cannot be said now where its bytes are: the version stays as it is.
    pub(super) async fn end_abandoned_publication(
        &self,
        version: ImageVersion,
        session: SessionId,
    ) -> Result<()> {
        let store = self.shared.store();
        let Some(session) = store.session(session).await? else {
            // Forgotten long after, or with its machine: nobody can say any more whose writeback it was to be made of.
            let listed = self.shared.ports.images().get(version.id).await?;
            let whole = listed.filter(|listed| listed.completeness == Completeness::Whole);
            return self.record_abandoned_publication(version, whole).await;
        };
        // Not waited for: whoever waits for the image lock may hold it.
        let Some(_locked) = self.sessions.try_lock_machine(session.machine) else {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "Machine {} is being worked on; version {} is looked at later",
                    session.machine, version.id
                ),
            ));
        };
        let writeback = ResourceId::machine(session.machine);
        // A session that writes to it could not have begun while the bytes were about to move.
        let is_written = self.is_written(session.machine, &writeback).await?;
        let adopted = match self.adopted(version.id, &writeback).await {
            Ok(adopted) => adopted,
            Err(e) if e.kind() == ErrorKind::Busy && is_written => None,
            Err(e) => return Err(e),
        };
        self.record_abandoned_publication(version, adopted).await
    }

    /// Ready where its bytes were adopted, else failed.
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
                    "The server was interrupted while it published what a machine has kept",
                )
                .with_hint("The machine keeps it still: publish it again");
                self.shared.record(self.versions.failed_version(version, &why)).await.map(|_| ())
            }
        }
    }

    /// Whether the machine runs on this writeback. One that runs on a disk of its session's own (`discard`) says nothing of it: an adoption
    /// may be under way.
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
            .with_hint("Stop that session first: what a running machine writes has no end"));
        }
        self.check_hands_over()?;
        let writeback = ResourceId::machine(id);
        let base = self.kept_over(&machine, &writeback).await?;
        let last = p.store().last_session(id).await?.ok_or_else(|| nothing_kept(&machine))?;
        if self.versions.is_being_published(&writeback).await? {
            return Err(being_published(&machine.name));
        }
        self.check_depth(base).await?;
        // Before the image lock, for which every start waits: a flush takes as long as there is to write.
        let frozen = self.freeze_kept(&writeback, base).await?;
        // Held to the end: the number is taken, the version below stays, and nobody takes this version for abandoned.
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

    /// The version below what the machine keeps.
    async fn kept_over(&self, machine: &Machine, writeback: &ResourceId) -> Result<ImageVersionId> {
        let kept = self.shared.ports.writeback().get(writeback).await?;
        let kept = kept.filter(|kept| kept.completeness == Completeness::Whole);
        kept.and_then(|kept| kept.base).ok_or_else(|| nothing_kept(machine))
    }

    /// Refuses a version that would stand on too many others.
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
            format!("Version {base} stands on {} others, and no more than {DEEPEST} may stand on each other", DEEPEST - 1),
        )
        .with_hint("Import the disk as it is now as a version of its own: read it by an initiator of its manual target"))
    }

    /// Records the version to be made. The caller holds the image lock.
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
                format!("Machine {} keeps writes over a lost version", machine.name),
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

    /// Ends the writing to what is kept, which must be over `base`.
    async fn freeze_kept(&self, writeback: &ResourceId, base: ImageVersionId) -> Result<Frozen> {
        let writebacks = self.shared.ports.writeback();
        let frozen = writebacks.freeze(writeback).await?;
        if frozen.base == base {
            return Ok(frozen);
        }
        let message =
            format!("Writeback {writeback} is over version {}, and was listed over {base}", frozen.base);
        Err(Error::new(ErrorKind::Corrupt, message).with_backend(writebacks.name()))
    }

    /// Adopts. An error says also whether the writeback is known to be as it was.
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
        // The answer may be lost, or come later.
        match self.adopted(version.id, &writeback).await {
            Ok(Some(listed)) => Ok(listed),
            Ok(None) => Err((failure, true)),
            Err(unknown) => {
                tracing::warn!(version = %version.id, error = %unknown.report(), "it is not known yet whether it was published");
                Err((failure, false))
            }
        }
    }
}

fn nothing_kept(machine: &Machine) -> Error {
    Error::new(code::nothing_kept(&machine.name), format!("Machine {} keeps no writes", machine.name))
        .with_hint("Set its writeback to keep, and let it boot and write first")
}
