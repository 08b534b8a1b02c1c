//! [`Process::assert_whole`]: the backends and the folder contain exactly what the store has, and nothing is left to repair.

use std::{collections::BTreeSet, fs, path::Path};

use ggnet_core::{
    nouns::{Machine, MachineState, ResourceId, SessionState, VersionState},
    orchestrator::ReconcileReport,
    ports::{
        BootFileStore as _, Completeness, DhcpBackend as _, ImageStore as _, Listed, MachineFilter,
        PageRequest, Store as _, TargetBackend as _, WritebackStore as _,
    },
};

use crate::host::Process;

const ALL: PageRequest = PageRequest { page: 1, per_page: 1000 };

/// The ids of a backend's objects, all of which must be whole.
fn whole(listed: Vec<Listed>, why: &str) -> BTreeSet<ResourceId> {
    let id = |listed: Listed| {
        assert_eq!(listed.completeness, Completeness::Whole, "{why}: {listed:?}");
        listed.id
    };
    listed.into_iter().map(id).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(folder).unwrap().map(name).collect()
}

impl Process {
    /// Nothing is orphaned, lost or incomplete: holds whenever the first reconcile has ended and no call is in flight.
    pub fn assert_whole(&self, why: &str) {
        self.run(async {
            let report = self.o.reconcile().await;
            assert_eq!(report, ReconcileReport::default(), "{why}: one round was not enough");
            self.assert_sessions(why).await;
            self.assert_versions(why).await;
        });
    }

    async fn assert_sessions(&self, why: &str) {
        let sessions = self.store.live_sessions().await.unwrap();
        let machines = self.store.machines(&MachineFilter::default(), ALL).await.unwrap().items;
        let (mut targets, mut disks) = (BTreeSet::new(), BTreeSet::new());
        for session in &sessions {
            assert_eq!(session.state, SessionState::Active, "{why}: {session:?}");
            targets.extend(session.generations().map(|generation| session.target(generation)));
            disks.extend(session.writebacks().cloned());
        }
        let live = |m: &Machine| sessions.iter().any(|session| session.machine == m.id);
        let wants = |m: &&Machine| {
            m.state == MachineState::Active && (live(m) || (m.auto_start && m.image.is_some()))
        };
        let wanted: BTreeSet<_> = machines.iter().filter(wants).map(|m| ResourceId::machine(m.id)).collect();
        assert_eq!(whole(self.targets.list().await.unwrap(), why), targets, "{why}: targets");
        assert_eq!(whole(self.dhcp.list().await.unwrap(), why), wanted, "{why}: DHCP entries");
        assert_eq!(whole(self.boot_files.list().await.unwrap(), why), wanted, "{why}: boot files");

        // A machine's kept disk may exist without a session.
        let kept: BTreeSet<_> = machines.iter().map(|m| ResourceId::machine(m.id)).collect();
        let mut folders = BTreeSet::new();
        let mut lost = disks.clone();
        for writeback in self.writebacks.list().await.unwrap() {
            let id = &writeback.id;
            assert_eq!(writeback.completeness, Completeness::Whole, "{why}: {writeback:?}");
            assert!(disks.contains(id) || kept.contains(id), "{why}: an orphan: {writeback:?}");
            assert_eq!(self.writebacks.get(id).await.unwrap().as_ref(), Some(&writeback), "{why}");
            lost.remove(id);
            folders.insert(format!("{}-{id}", self.o.config().instance));
        }
        assert!(lost.is_empty(), "{why}: the disks of live sessions are lost: {lost:?}");
        assert_eq!(names(&self.folder.join("writebacks")), folders, "{why}: writebacks in their folder");
    }

    async fn assert_versions(&self, why: &str) {
        let (mut ready, mut files) = (BTreeSet::new(), BTreeSet::new());
        for image in self.store.images(ALL).await.unwrap().items {
            for version in self.store.versions(image.id).await.unwrap() {
                match version.state {
                    VersionState::Ready => _ = ready.insert((version.id, version.size_bytes)),
                    VersionState::Failed => assert!(version.failure.is_some(), "{why}: {version:?}"),
                    VersionState::Importing => panic!("{why}: nobody ended {version:?}"),
                }
            }
        }
        let mut have = BTreeSet::new();
        for listed in self.images.list().await.unwrap() {
            assert_eq!(listed.completeness, Completeness::Whole, "{why}: {listed:?}");
            assert_eq!(self.images.get(listed.id).await.unwrap().as_ref(), Some(&listed), "{why}");
            have.insert((listed.id, listed.size_bytes));
            let is_layer = listed.parent.is_some();
            files.insert(if is_layer { listed.id.to_string() } else { format!("{}.raw", listed.id) });
        }
        assert_eq!(have, ready, "{why}: bytes of versions");
        assert_eq!(names(&self.folder.join("images")), files, "{why}: versions in their folder");
        let jobs = self.store.live_jobs().await.unwrap();
        assert!(jobs.is_empty(), "{why}: nobody works on {jobs:?}");
    }
}
