//! Tests that the suites detect defects: backends with one defect each, and the case that must fail.

#![expect(clippy::unwrap_used, reason = "a fixture fails by panicking, as a test does")]

use std::{
    collections::HashSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ggnet_core::{
    Error, ErrorKind, Result,
    block::{BlockDevice, BlockInfo, Disk, DiskForm},
    nouns::{ImageVersionId, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpBackendExt as _, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal,
        Frozen, Health, ImageCapabilities, ImageListed, ImageSpec, ImageStore, Listed, Observer, OpenImage,
        Removal, Sink, WritebackCapabilities, WritebackListed, WritebackSpec, WritebackStore, apply_each,
    },
    testkit::{
        disk::FileDisk,
        memory::{DhcpWorld, ImageWorld, MemoryDhcp, MemoryImages, MemoryWritebacks, WritebackWorld},
        suite::{
            self, DhcpFixture, Fixture, ImageStoreFixture, WritebackFixture, dhcp, image_store, run,
            writeback,
        },
    },
};

/// Passes when the case fails.
fn caught(case: impl Future<Output = ()>) {
    assert!(catch_unwind(AssertUnwindSafe(|| run(case))).is_err(), "the case passes in spite of the defect");
}

// DHCP: the cases that every declarative port shares.

#[derive(Clone, Copy, PartialEq)]
enum Defect {
    ListsNothing,
    RemoveOfNothingFails,
    RemoveLies,
    IgnoresChanges,
    StaysPartial,
    LeavesDebris,
    BusyAtOnce,
    TakesPartialForWhole,
    GetsNothing,
    MakesOneOfASet,
}

struct Broken {
    inner: MemoryDhcp,
    defect: Defect,
    running: Mutex<HashSet<ResourceId>>,
}

#[async_trait]
impl DhcpBackend for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn capabilities(&self) -> DhcpCapabilities {
        self.inner.capabilities()
    }
    fn attach(&self, observer: Arc<dyn Observer>) {
        self.inner.attach(observer);
    }

    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        // With this defect only the first of a set is made.
        let changes =
            if self.defect == Defect::MakesOneOfASet { &changes[..changes.len().min(1)] } else { changes };
        let made = apply_each(changes, |change| async move {
            match change {
                DhcpChange::Ensure(host) => self.ensure_one(host).await,
                DhcpChange::Remove(id) => self.remove_one(id).await,
            }
        });
        Ok(made.await)
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        match self.defect {
            Defect::GetsNothing => Ok(None),
            _ => self.inner.get(id).await,
        }
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        match self.defect {
            Defect::ListsNothing => Ok(Vec::new()),
            _ => self.inner.list().await,
        }
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

impl Broken {
    async fn ensure_one(&self, host: &DhcpHost) -> Result<()> {
        let have = self.inner.list().await?.into_iter().find(|l| l.id == host.id);
        match self.defect {
            Defect::IgnoresChanges
                if have.as_ref().is_some_and(|l| l.completeness == Completeness::Whole) =>
            {
                return Ok(());
            }
            Defect::StaysPartial
                if have.as_ref().is_some_and(|l| l.completeness == Completeness::Partial) =>
            {
                return Err(Error::new(ErrorKind::Conflict, "It exists already"));
            }
            Defect::TakesPartialForWhole if have.is_some() => return Ok(()),
            Defect::LeavesDebris => {
                let id: ResourceId = format!("{}-x", host.id).parse().unwrap();
                let macs = vec!["52:ff:ff:ff:ff:ff".parse().unwrap()];
                self.inner.ensure(&DhcpHost { id, macs, ..host.clone() }).await?;
            }
            Defect::BusyAtOnce => {
                if !self.running.lock().unwrap().insert(host.id.clone()) {
                    return Err(Error::new(ErrorKind::Busy, "Somebody else makes it"));
                }
                // Long enough that calls that start together overlap.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let made = self.inner.ensure(host).await;
                self.running.lock().unwrap().remove(&host.id);
                return made;
            }
            _ => {}
        }
        self.inner.ensure(host).await
    }

    async fn remove_one(&self, id: &ResourceId) -> Result<()> {
        match self.defect {
            Defect::RemoveLies => Ok(()),
            Defect::RemoveOfNothingFails if !self.inner.list().await?.iter().any(|l| l.id == *id) => {
                Err(Error::not_found("entry", id))
            }
            _ => self.inner.remove(id).await,
        }
    }
}

struct BrokenDhcp(Defect, Mutex<DhcpWorld>);

#[async_trait]
impl Fixture<dyn DhcpBackend> for BrokenDhcp {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        *self.1.lock().unwrap() = DhcpWorld::default();
        self.reopen().await
    }
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        let inner = MemoryDhcp::over(&self.1.lock().unwrap());
        Arc::new(Broken { inner, defect: self.0, running: Mutex::default() })
    }
}

impl DhcpFixture for BrokenDhcp {}

macro_rules! dhcp_defects {
    ($($test:ident: $defect:ident fails $case:ident;)*) => {
        $(#[test]
        fn $test() {
            caught(async { dhcp::$case(&BrokenDhcp(Defect::$defect, Mutex::default())).await });
        })*
    };
}

dhcp_defects! {
    a_list_that_lists_nothing: ListsNothing fails list_shows_exactly_what_was_ensured;
    a_remove_of_nothing_that_fails: RemoveOfNothingFails fails remove_of_nothing_is_success;
    a_remove_that_does_nothing: RemoveLies fails what_was_removed_can_be_made_again;
    a_change_that_is_not_made: IgnoresChanges fails a_changed_spec_converges_or_is_busy;
    a_change_that_is_not_made_after_a_drop: TakesPartialForWhole fails a_dropped_change_is_completed_by_the_next;
    a_partial_object_that_stays: StaysPartial fails a_dropped_ensure_is_completed_by_the_next;
    a_partial_object_that_is_taken_for_whole: TakesPartialForWhole fails a_dropped_ensure_is_completed_by_the_next;
    a_partial_object_that_stays_after_a_crash: StaysPartial fails a_crash_within_a_call_is_mended;
    debris_beside_the_object: LeavesDebris fails ensure_twice_equals_once;
    calls_at_once_that_do_not_wait: BusyAtOnce fails fifty_ensures_at_once_of_one_name;
    a_get_that_differs_from_list: GetsNothing fails get_shows_what_list_shows;
    a_set_of_which_one_is_made: MakesOneOfASet fails a_set_of_changes_is_made_whole;
}

// Writebacks: what only the bytes show.

#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    WritesIntoTheBase,
    DiscardDoesNothing,
    IgnoresIfIdle,
    SwapsTheBase,
    LosesWritesInACrash,
    RemovedDiskLives,
    LosesTheLastSector,
    ThawsAtOnce,
}

struct FlawedStore(MemoryWritebacks, Flaw, PathBuf);

#[async_trait]
impl WritebackStore for FlawedStore {
    fn name(&self) -> &'static str {
        "flawed"
    }
    fn capabilities(&self) -> WritebackCapabilities {
        self.0.capabilities()
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        if self.1 == Flaw::SwapsTheBase
            && self.0.list().await?.iter().any(|l| l.id == spec.id && l.base != Some(spec.version))
        {
            self.0.remove(&spec.id, Removal::Force).await?;
        }
        let Disk::Blocks(device) = self.0.ensure(spec, base).await? else {
            unreachable!("the store in memory hands out blocks");
        };
        match self.1 {
            Flaw::WritesIntoTheBase => {
                // Where the suite has written it.
                let path = self.2.join(format!("{}.raw", spec.version.simple()));
                Ok(Disk::Blocks(Arc::new(FileDisk::open(&path, false).unwrap())))
            }
            Flaw::DiscardDoesNothing | Flaw::RemovedDiskLives | Flaw::LosesTheLastSector => {
                Ok(Disk::Blocks(Arc::new(FlawedDisk(device, self.1))))
            }
            _ => Ok(Disk::Blocks(device)),
        }
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        let frozen = self.0.freeze(id).await?;
        match self.1 {
            Flaw::ThawsAtOnce => Ok(Frozen { hold: ggnet_core::ports::Hold::nothing(), ..frozen }),
            _ => Ok(frozen),
        }
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let how = if self.1 == Flaw::IgnoresIfIdle { Removal::Force } else { how };
        self.0.remove(id, how).await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.0.list().await
    }
    async fn health(&self) -> Health {
        self.0.health().await
    }
    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

struct FlawedDisk(Arc<dyn BlockDevice>, Flaw);

impl BlockDevice for FlawedDisk {
    fn info(&self) -> BlockInfo {
        let info = self.0.info();
        match self.1 {
            Flaw::LosesTheLastSector => BlockInfo { size_bytes: info.size_bytes / 4096 * 4096, ..info },
            _ => info,
        }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.0.read_at(buf, offset) {
            Err(_) if self.1 == Flaw::RemovedDiskLives => {
                buf.fill(0);
                Ok(())
            }
            result => result,
        }
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.1 {
            Flaw::DiscardDoesNothing => Ok(()),
            _ => self.0.discard(offset, len),
        }
    }
}

struct Flawed(Flaw, Mutex<WritebackWorld>, tempfile::TempDir);

#[async_trait]
impl Fixture<dyn WritebackStore> for Flawed {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        let world = WritebackWorld::default();
        let store = MemoryWritebacks::over(&world);
        *self.1.lock().unwrap() = world;
        Arc::new(FlawedStore(store, self.0, self.folder()))
    }
    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        if self.0 == Flaw::LosesWritesInACrash {
            return self.fresh().await;
        }
        Arc::new(FlawedStore(MemoryWritebacks::over(&self.1.lock().unwrap()), self.0, self.folder()))
    }
}

impl WritebackFixture for Flawed {
    fn folder(&self) -> PathBuf {
        self.2.path().to_owned()
    }
}

macro_rules! writeback_flaws {
    ($($test:ident: $flaw:ident fails $case:ident;)*) => {
        $(#[test]
        fn $test() {
            caught(async {
                writeback::$case(&Flawed(Flaw::$flaw, Mutex::default(), tempfile::tempdir().unwrap())).await;
            });
        })*
    };
}

writeback_flaws! {
    writes_that_reach_the_base: WritesIntoTheBase fails the_base_is_never_changed;
    writes_that_reach_another_disk: WritesIntoTheBase fails two_disks_over_one_base_are_apart;
    a_removed_disk_that_is_not_clean: WritesIntoTheBase fails a_removed_disk_is_clean_when_made_again;
    a_discard_that_does_nothing: DiscardDoesNothing fails random_writes_and_discards_read_back;
    a_discard_that_is_forgotten: DiscardDoesNothing fails discarded_blocks_are_zeros_after_a_crash;
    a_disk_deleted_under_its_user: IgnoresIfIdle fails a_held_disk_is_busy_under_if_idle;
    a_base_swapped_under_the_writes: SwapsTheBase fails another_base_is_busy_and_changes_nothing;
    writes_lost_in_a_crash: LosesWritesInACrash fails writes_survive_a_crash;
    writebacks_lost_in_a_crash: LosesWritesInACrash fails what_exists_is_adopted_after_a_crash;
    a_removed_disk_that_lives_on: RemovedDiskLives fails a_held_disk_fails_after_force;
    a_disk_that_is_too_small: LosesTheLastSector fails the_disk_is_as_large_as_its_base;
    a_freeze_that_holds_nothing: ThawsAtOnce fails a_frozen_disk_is_busy_and_loses_nothing;
}

// Images.

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    TakesDraftsForWhole,
    SealsAnything,
    SealsOver,
    IgnoresWhoHasItOpen,
    ForgetsTheParent,
    CopiesOnAdoption,
}

struct FaultyImages(MemoryImages, Fault);

impl FaultyImages {
    fn shown(&self, mut listed: ImageListed) -> ImageListed {
        match self.1 {
            Fault::TakesDraftsForWhole => listed.completeness = Completeness::Whole,
            Fault::ForgetsTheParent => listed.parent = None,
            _ => {}
        }
        listed
    }
}

#[async_trait]
impl ImageStore for FaultyImages {
    fn name(&self) -> &'static str {
        "faulty"
    }
    fn capabilities(&self) -> ImageCapabilities {
        self.0.capabilities()
    }

    async fn draft(&self, spec: &ImageSpec) -> Result<Sink> {
        if self.1 == Fault::SealsOver
            && self.0.get(spec.id).await?.is_some_and(|v| v.completeness == Completeness::Whole)
        {
            self.0.remove(spec.id, Removal::Force).await?;
        }
        self.0.draft(spec).await
    }

    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed> {
        let spec = match self.0.get(spec.id).await? {
            Some(have) if self.1 == Fault::SealsAnything => ImageSpec::new(spec.id, have.size_bytes),
            _ => spec.clone(),
        };
        self.0.seal(&spec).await
    }

    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        if self.1 == Fault::CopiesOnAdoption {
            // Reports success, although the writeback still exists.
            return Ok(ImageListed::whole(spec.id, spec.size_bytes));
        }
        Ok(self.shown(self.0.adopt(spec, from).await?))
    }

    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage> {
        self.0.open(id, form).await
    }

    async fn list(&self) -> Result<Vec<ImageListed>> {
        Ok(self.0.list().await?.into_iter().map(|listed| self.shown(listed)).collect())
    }

    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()> {
        let how = if self.1 == Fault::IgnoresWhoHasItOpen { Removal::Force } else { how };
        self.0.remove(id, how).await
    }

    async fn health(&self) -> Health {
        self.0.health().await
    }
    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

struct Faulty(Fault, Mutex<(ImageWorld, WritebackWorld)>);

#[async_trait]
impl Fixture<dyn ImageStore> for Faulty {
    async fn fresh(&self) -> Arc<dyn ImageStore> {
        *self.1.lock().unwrap() = Default::default();
        self.reopen().await
    }
    async fn reopen(&self) -> Arc<dyn ImageStore> {
        let worlds = self.1.lock().unwrap();
        Arc::new(FaultyImages(MemoryImages::over(&worlds.0).adopting(&worlds.1), self.0))
    }
}

#[async_trait]
impl ImageStoreFixture for Faulty {
    async fn writebacks(&self) -> Option<Arc<dyn WritebackStore>> {
        Some(Arc::new(MemoryWritebacks::over(&self.1.lock().unwrap().1)))
    }
    fn has_writebacks(&self) -> bool {
        true
    }
}

macro_rules! image_faults {
    ($($test:ident: $fault:ident fails $case:ident;)*) => {
        $(#[test]
        fn $test() {
            caught(async { image_store::$case(&Faulty(Fault::$fault, Mutex::default())).await });
        })*
    };
}

image_faults! {
    a_draft_that_is_taken_for_a_version: TakesDraftsForWhole fails a_draft_is_partial_until_it_is_sealed;
    a_version_that_is_too_short: SealsAnything fails what_is_of_another_size_is_corrupt_and_stays_partial;
    a_version_that_is_written_over: SealsOver fails a_sealed_version_has_no_draft;
    a_version_deleted_under_its_reader: IgnoresWhoHasItOpen fails an_open_version_is_busy_under_if_idle;
    a_version_whose_base_is_forgotten: ForgetsTheParent fails an_adopted_writeback_is_a_version;
    an_adoption_that_only_says_so: CopiesOnAdoption fails an_adopted_writeback_is_a_version;
}

/// The report fails when other cases than the expected ones were not run.
#[test]
fn an_unexpected_gap_is_caught() {
    let gap = [("a_case", "no initiator".to_owned())];
    suite::report("a backend", &gap, None);
    suite::report("a backend", &gap, Some(&["a_case"]));
    caught(async { suite::report("a backend", &gap, Some(&[])) });
    caught(async { suite::report("a backend", &[], Some(&["a_case"])) });
}
