//! Which disks a machine's next boot has: the system disk by its assignment, data disks as its session was asked to have them.
//!
//! Invariant: a kept writeback means something only over the version it was made for, so it decides the version of its disk; an image
//! that was assigned or asked for since is a conflict that the operator must solve.

use super::Sessions;
use crate::{
    error::{Error, ErrorKind, Result, code},
    nouns::{
        ChapPair, DataAccess, DataDisk, DiskAccess, Disks, Generation, Image, ImageId, ImageVersion,
        ImageVersionId, Machine, ResourceId, Session, SessionDisk, WritebackPolicy,
    },
    orchestrator::ChapPolicy,
    ports::WritebackListed,
};

/// What a disk of the next boot is over.
pub(super) struct Choice {
    pub(super) image: Image,
    pub(super) version: ImageVersion,
    /// The kept writeback that is there already, even one that was cut short.
    pub(super) kept: Option<ResourceId>,
}

/// A disk of the next boot, whose generation has no number yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskToBoot {
    lun: u8,
    image: ImageId,
    pub(super) version: ImageVersionId,
    access: DataAccess,
}

impl DiskToBoot {
    /// The system disk, over a version.
    pub(super) const fn system(version: &ImageVersion) -> Self {
        Self { lun: 0, image: version.image, version: version.id, access: DataAccess::CopyOnWrite }
    }

    /// A data disk, over a version.
    pub(super) const fn data(disk: &DataDisk, version: &ImageVersion) -> Self {
        Self { lun: disk.lun, image: version.image, version: version.id, access: disk.access }
    }

    /// A disk as a generation has it.
    fn again(disk: &SessionDisk) -> Self {
        let access = match disk.access {
            DiskAccess::CopyOnWrite { .. } => DataAccess::CopyOnWrite,
            DiskAccess::Shared => DataAccess::Shared,
        };
        Self { lun: disk.lun, image: disk.image, version: disk.version, access }
    }

    /// Whether a generation has these disks, and no others.
    pub(super) fn are_of(generation: &Generation, disks: &[Self]) -> bool {
        generation.disks.iter().map(Self::again).eq(disks.iter().copied())
    }
}

impl Sessions {
    /// A generation with these disks; each that takes writes has a writeback of the generation's own, or the machine's.
    pub(super) fn new_generation(
        &self,
        machine: &Machine,
        policy: WritebackPolicy,
        number: u32,
        disks: &[DiskToBoot],
    ) -> Result<Generation> {
        let asks =
            self.shared.config.chap == ChapPolicy::Required && self.shared.ports.target().capabilities().chap;
        let of_session = |disk: &DiskToBoot| SessionDisk {
            lun: disk.lun,
            image: disk.image,
            version: disk.version,
            access: match disk.access {
                DataAccess::CopyOnWrite => DiskAccess::CopyOnWrite {
                    writeback: Self::writeback_id(machine, policy, number, disk.lun),
                },
                DataAccess::Shared => DiskAccess::Shared,
            },
        };
        Ok(Generation {
            number,
            chap: asks.then(|| ChapPair::random(machine.name.as_str())).transpose()?,
            disks: Disks::new(disks.iter().map(of_session).collect())?,
            prepared_at: self.shared.now(),
            committed_at: None,
        })
    }

    /// The name of the writeback of a generation's disk.
    fn writeback_id(machine: &Machine, policy: WritebackPolicy, generation: u32, lun: u8) -> ResourceId {
        match policy {
            WritebackPolicy::Discard => ResourceId::generation(machine.id, generation).on_lun(lun),
            WritebackPolicy::Keep => ResourceId::machine(machine.id).on_lun(lun),
        }
    }

    /// The data disks of a session in the order of their LUNs, if they can be served at all.
    ///
    /// # Errors
    /// `Invalid` (field `data_disks`) for a LUN that is the system disk's, or is there twice; `Unsupported` for more LUNs than a target can
    /// have, and for a shared disk where the target takes no version as the image store opens it.
    pub(super) fn check_data_disks(&self, mut disks: Vec<DataDisk>) -> Result<Vec<DataDisk>> {
        disks.sort_by_key(|disk| disk.lun);
        let mut last = 0;
        for disk in &disks {
            if disk.lun == 0 {
                let message = "LUN 0 is the system disk: data disks are LUN 1 and above";
                return Err(Error::invalid("data_disks", message));
            }
            if disk.lun == last {
                return Err(Error::invalid("data_disks", format!("Two data disks are LUN {last}"))
                    .with_hint("Give each data disk a LUN of its own"));
            }
            last = disk.lun;
        }
        let target = self.shared.ports.target();
        let most = target.capabilities().max_luns;
        if disks.len() >= usize::from(most) && !disks.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "A target of the backend {} has at most {most} LUNs, and {} are wanted",
                    target.name(),
                    disks.len() + 1
                ),
            )
            .with_hint("Ask for fewer data disks"));
        }
        if disks.iter().any(|disk| disk.access == DataAccess::Shared) {
            self.targets.served_form()?;
        }
        Ok(disks)
    }

    /// The version that a machine boots next.
    pub(super) async fn version_to_boot(
        &self,
        machine: &Machine,
        wanted: Option<ImageId>,
        policy: WritebackPolicy,
    ) -> Result<Choice> {
        let image = wanted.or(machine.image).ok_or_else(|| {
            Error::new(
                code::machine_without_image(&machine.name),
                format!("Machine {} has no image", machine.name),
            )
            .with_hint("Assign one, or name one in the request")
        })?;
        let pinned = machine.pinned_version.filter(|_| machine.image == Some(image));
        let kept = (policy == WritebackPolicy::Keep).then(|| ResourceId::machine(machine.id));
        self.choose(machine, image, pinned, kept).await
    }

    /// The version that a data disk of the machine's next boot is over.
    pub(super) async fn data_to_boot(
        &self,
        machine: &Machine,
        disk: &DataDisk,
        policy: WritebackPolicy,
    ) -> Result<Choice> {
        let is_kept = policy == WritebackPolicy::Keep && disk.access == DataAccess::CopyOnWrite;
        let kept = is_kept.then(|| ResourceId::machine(machine.id).on_lun(disk.lun));
        let choice = self.choose(machine, disk.image, disk.version, kept).await?;
        if choice.version.image == disk.image {
            return Ok(choice);
        }
        let message = format!(
            "{} is no version of image {}, which LUN {} is of",
            choice.version.id, disk.image, disk.lun
        );
        Err(Error::invalid("data_disks", message).with_hint("Name a version of that image, or none"))
    }

    /// The disks of the next boot of a session that runs.
    pub(super) async fn disks_to_boot(
        &self,
        machine: &Machine,
        session: &Session,
    ) -> Result<Vec<DiskToBoot>> {
        let mut disks = Vec::with_capacity(session.current.disks.len());
        for ran in session.current.disks.iter() {
            // What is kept is of the version that it was made over.
            if session.policy == WritebackPolicy::Keep {
                disks.push(DiskToBoot::again(ran));
                continue;
            }
            let choice = match session.data_disks.iter().find(|disk| disk.lun == ran.lun) {
                Some(disk) => self.data_to_boot(machine, disk, session.policy).await,
                None => self.version_to_boot(machine, session.chosen_image, session.policy).await,
            };
            disks.push(match choice {
                Ok(found) => {
                    DiskToBoot { image: found.image.id, version: found.version.id, ..DiskToBoot::again(ran) }
                }
                // Nothing else can be booted (the machine's image was taken from it, or has no version that is ready): what it ran so far.
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                    DiskToBoot::again(ran)
                }
                Err(e) => return Err(e),
            });
        }
        Ok(disks)
    }

    /// The version below what is kept as `kept`, if anything is; else `version`, or the image's current one.
    async fn choose(
        &self,
        machine: &Machine,
        image: ImageId,
        version: Option<ImageVersionId>,
        kept: Option<ResourceId>,
    ) -> Result<Choice> {
        let record = self.shared.store().image(image).await?;
        let record = record.ok_or_else(|| Error::not_found("image", image))?;
        let listed = match &kept {
            Some(id) => self.kept(id).await?,
            None => None,
        };
        let kept = kept.filter(|_| listed.is_some());
        if let Some(below) = listed.and_then(|listed| listed.base) {
            let version = self.below_kept(machine, image, below).await?;
            return Ok(Choice { image: record, version, kept });
        }
        let version = version.or(record.current).ok_or_else(|| {
            Error::new(
                code::image_without_version(&record.name),
                format!("Image {} has no version that is ready", record.name),
            )
            .with_hint("Wait until its import has ended, or import a version")
        })?;
        let version = self.versions.ready_version(version).await?;
        Ok(Choice { image: record, version, kept })
    }

    /// A kept writeback; also one that was cut short.
    async fn kept(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.shared.ports.writeback().get(id).await
    }

    /// That none of a machine's kept writebacks, of which `get` says that they are not there, is listed.
    pub(super) async fn check_not_kept(&self, machine: &Machine, ids: &[&ResourceId]) -> Result<()> {
        let writebacks = self.shared.ports.writeback();
        if writebacks.list().await?.iter().all(|listed| !ids.contains(&&listed.id)) {
            return Ok(());
        }
        let message =
            format!("The kept disk of machine {} is listed, and said not to be there", machine.name);
        Err(Error::new(ErrorKind::Corrupt, message)
            .with_backend(writebacks.name())
            .with_hint("The backend's get and list disagree: nothing is started, so that nothing kept is lost. Mend the backend"))
    }

    /// That what the machine has kept of its system disk is over a version of `image`, if it has kept anything. `Conflict` when it is of
    /// another image.
    pub(in crate::orchestrator) async fn check_kept(&self, machine: &Machine, image: ImageId) -> Result<()> {
        match self.kept(&ResourceId::machine(machine.id)).await?.and_then(|kept| kept.base) {
            Some(below) => self.below_kept(machine, image, below).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// The version below kept writes, which must be of `image`.
    async fn below_kept(
        &self,
        machine: &Machine,
        image: ImageId,
        below: ImageVersionId,
    ) -> Result<ImageVersion> {
        let below = self.shared.store().version(below).await?.ok_or_else(|| {
            Error::new(
                code::kept_writes_without_version(&machine.name),
                format!("Machine {} keeps writes over a lost version", machine.name),
            )
        })?;
        if below.image == image {
            return Ok(below);
        }
        Err(Error::new(
            code::kept_writes_of_other_image(&machine.name, below.number),
            format!("Machine {} keeps writes over version {} of another image", machine.name, below.number),
        )
        .with_hint("Discard its kept writeback first, or assign that image again"))
    }
}
