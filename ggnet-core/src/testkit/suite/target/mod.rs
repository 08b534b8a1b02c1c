//! The suite of [`TargetBackend`]: see [`crate::target_behaviour`].

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    Fixture,
    attached::{Gate, Witness, eventually},
    common::{self, Declarative, Specs, assert_whole, common_cases, id, listed},
    instance, iqn_prefix,
};
use crate::{
    block::{BlockDevice, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ChapPair, ImageFormat, Iqn, ResourceId, Secret},
    ports::{
        Access, Listed, LoginVerdict, LoginVisibility, LunDisks, LunSpec, NullObserver, Observation, Removal,
        SpecDigest, TargetBackend, TargetEndpoint, TargetSpec,
    },
    testkit::{disk, memory::RamDisk},
};

const SIZE: u64 = 4 << 20;

/// Runs the behaviour suite of [`TargetBackend`] on the backend of a [`TargetFixture`](crate::testkit::suite::TargetFixture).
///
/// ```text
/// ggnet_core::target_behaviour!(my_targets, MyFixture::new());
/// // or, failing when another set of cases cannot run:
/// ggnet_core::target_behaviour!(my_targets, MyFixture::new(), not_run: [a_wrong_secret_is_refused]);
/// ```
#[macro_export]
macro_rules! target_behaviour {
    ($module:ident, $fixture:expr) => { $crate::target_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::target_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::__behaviour!($module, $fixture, target, $expected, [
            an_empty_backend_lists_nothing,
            ensure_twice_equals_once,
            list_shows_exactly_what_was_ensured,
            get_shows_what_list_shows,
            remove_of_nothing_is_success,
            what_was_removed_can_be_made_again,
            a_changed_spec_converges_or_is_busy,
            fifty_ensures_at_once_of_different_names,
            fifty_ensures_at_once_of_one_name,
            ensures_and_removes_at_once_of_one_name,
            a_dropped_ensure_is_completed_by_the_next,
            a_dropped_ensure_is_undone_by_remove,
            a_dropped_remove_is_completed_by_the_next,
            a_dropped_change_is_completed_by_the_next,
            what_exists_is_adopted_after_a_crash,
            a_crash_within_a_call_is_mended,
            what_is_not_ours_is_left_alone,
            the_endpoint_names_the_target_and_its_first_lun,
            the_endpoint_can_be_read,
            each_lun_has_one_disk,
            a_disk_form_it_does_not_take_is_unsupported,
            chap_it_cannot_demand_is_unsupported,
            mutual_chap_it_cannot_do_is_unsupported,
            too_many_luns_are_refused,
            remove_lets_go_of_the_disks,
            what_is_written_reaches_the_disk,
            each_target_serves_its_own_disk,
            a_read_only_lun_stands_beside_a_writable_one,
            a_disk_that_grew_is_served_to_its_end,
            if_idle_is_busy_under_a_live_initiator,
            force_removes_under_a_live_initiator,
            changed_luns_under_a_live_initiator_are_busy,
            changed_access_holds_for_new_logins,
            another_initiator_is_refused,
            a_wrong_secret_is_refused,
            the_target_proves_itself,
            the_newest_login_of_a_name_wins,
            a_shared_target_serves_many_and_refuses_writes,
            connections_are_listed_while_they_live,
            the_gate_is_asked_after_authentication,
            the_gate_can_put_off_and_refuse,
            no_login_is_served_before_the_gate_serves,
            logins_and_first_accesses_are_observed,
            shutdown_closes_connections,
        ]);
    };
}

/// Creates target backends, the disks that they serve, and initiators that reach them.
///
/// A backend that recognises its objects by name is made with [`instance`] and [`iqn_prefix`]: target names are
/// `Iqn::target(&iqn_prefix(), &instance(), id)`.
#[async_trait]
pub trait TargetFixture: Fixture<dyn TargetBackend> {
    /// A disk of `size` zeros in one of the forms that the backend accepts; writable. The same `key` gives the same disk, also
    /// after `reopen`.
    async fn disk(&self, key: &str, size: u64) -> Disk;

    /// Whether initiators can run here. If not, the cases that need one are not run.
    fn can_connect(&self) -> bool {
        false
    }

    /// Logs an initiator in, with the name and the secret that `access` states (any name under [`Access::Shared`]), to the LUN that the
    /// endpoint names. It must not retry by itself.
    ///
    /// Errors: `Unavailable` for status 0301, `Permission` for 0201 and 0202, `NotFound` for 0203.
    async fn connect(&self, endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
        let _ = (endpoint, access);
        Err(Error::new(ErrorKind::Unsupported, "No initiator can run here"))
    }
}

/// An initiator that is logged in. Dropping it breaks the connection. It does not treat a unit attention as an error: it sends the command
/// again.
#[async_trait]
pub trait TargetClient: Send + Sync {
    /// Reads `len` bytes at `offset`, both in whole sectors. Any error once the target has closed the connection; it must not
    /// log in again by itself.
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// Writes at `offset`, in whole sectors; an error when the target refuses it.
    async fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// SYNCHRONIZE CACHE.
    async fn flush(&self) -> Result<()>;

    /// Logs out, and returns when the target has answered.
    async fn logout(self: Box<Self>) -> Result<()>;
}

mod logins;
mod specs;

pub use logins::*;
pub use specs::*;

/// The marker of this port.
pub struct Targets;

/// A target to create: its spec and its disks.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its spec.
    pub spec: TargetSpec,
    /// Its disks.
    pub disks: LunDisks,
}

impl Deref for Wanted {
    type Target = TargetSpec;

    fn deref(&self) -> &TargetSpec {
        &self.spec
    }
}

impl DerefMut for Wanted {
    fn deref_mut(&mut self) -> &mut TargetSpec {
        &mut self.spec
    }
}

#[async_trait]
impl Declarative for Targets {
    type Port = dyn TargetBackend;
    type Spec = Wanted;

    fn attach(port: &dyn TargetBackend) {
        port.attach(Gate::new(), Arc::new(NullObserver));
    }

    fn digest(spec: &Wanted) -> SpecDigest {
        spec.digest()
    }

    fn id(spec: &Wanted) -> ResourceId {
        spec.id.clone()
    }

    fn survives(port: &dyn TargetBackend) -> bool {
        port.capabilities().survives_restart
    }

    async fn ensure(port: &dyn TargetBackend, wanted: &Wanted) -> Result<String> {
        port.ensure(&wanted.spec, &wanted.disks).await.map(|endpoint| format!("{endpoint:?}"))
    }

    async fn remove(port: &dyn TargetBackend, id: &ResourceId, how: Removal) -> Result<()> {
        port.remove(id, how).await
    }

    async fn get(port: &dyn TargetBackend, id: &ResourceId) -> Result<Option<Listed>> {
        port.get(id).await
    }

    async fn list(port: &dyn TargetBackend) -> Result<Vec<Listed>> {
        port.list().await
    }
}

fn initiator(n: u32) -> Iqn {
    format!("iqn.2026-11.local.ggnet:initiator-{n}").parse().expect("a valid IQN")
}

/// A pair with one way to say it wrong.
fn chap(wrong: bool) -> ChapPair {
    let secret = if wrong { "WrongWrong123456" } else { "RightRight123456" };
    ChapPair { user: "pc-1".into(), secret: Secret::new(secret) }
}

fn only(n: u32) -> Access {
    Access::Initiator { name: initiator(n), chap: None, mutual: None }
}

async fn spec(f: &impl TargetFixture, id: &ResourceId, access: Access) -> Wanted {
    let iqn = Iqn::target(&iqn_prefix(), &instance(), id).expect("a resource name fits into an IQN");
    let read_only = access == Access::Shared;
    let lun = LunSpec { number: 0, disk_key: id.to_string(), serial: "SERIAL-0".into(), read_only };
    let spec = TargetSpec { id: id.clone(), iqn, luns: vec![lun], access };
    Wanted { spec, disks: LunDisks::from([(0, f.disk(id.as_str(), SIZE).await)]) }
}

#[async_trait]
impl<F: TargetFixture> Specs<Targets> for F {
    async fn spec(&self, id: &ResourceId, variant: u8) -> Wanted {
        let mut spec = spec(self, id, only(1)).await;
        if variant == 1 {
            spec.access = only(2);
            spec.luns[0].serial = "SERIAL-1".into();
        }
        spec
    }
}

/// Why a case cannot run on this fixture's backend; `None`: it can.
pub async fn not_run(f: &impl TargetFixture, case: &str) -> Option<String> {
    let can = f.fresh().await.capabilities();
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    let client = || lacks(f.can_connect(), "the fixture has no initiator");
    let gated = || lacks(can.logins == LoginVisibility::Gated, "logins are polled, not gated");
    match case {
        "what_is_not_ours_is_left_alone" => lacks(f.has_foreign(), "the fixture makes no foreign object"),
        "a_disk_form_it_does_not_take_is_unsupported" => {
            lacks(can.accepts.len() < 3, "it accepts every form of disk")
        }
        "chap_it_cannot_demand_is_unsupported" => lacks(!can.chap, "it can demand CHAP"),
        "too_many_luns_are_refused" => {
            lacks(can.max_luns < 255, "it accepts as many LUNs as a spec can have")
        }
        "remove_lets_go_of_the_disks" => {
            lacks(can.accepts.contains(&DiskForm::Blocks), "it takes no disk of our process")
        }
        "mutual_chap_it_cannot_do_is_unsupported" => lacks(!can.mutual_chap, "it supports mutual CHAP"),
        "the_target_proves_itself" => {
            client().or_else(|| lacks(can.mutual_chap, "it does not support mutual CHAP"))
        }
        "a_wrong_secret_is_refused" => client().or_else(|| lacks(can.chap, "it cannot demand CHAP")),
        "the_gate_is_asked_after_authentication" => {
            client().or_else(gated).or_else(|| lacks(can.chap, "it cannot demand CHAP"))
        }
        "the_gate_can_put_off_and_refuse"
        | "no_login_is_served_before_the_gate_serves"
        | "logins_and_first_accesses_are_observed" => client().or_else(gated),
        "the_newest_login_of_a_name_wins" => {
            client().or_else(|| gated().map(|why| format!("{why}, so it cannot close the older session")))
        }
        "a_disk_that_grew_is_served_to_its_end" => client()
            .or_else(|| {
                lacks(can.follows_growth, "it serves the size that a disk had when its target was made")
            })
            .or_else(|| lacks(can.accepts.contains(&DiskForm::Blocks), "it takes no disk of our process")),
        "a_read_only_lun_stands_beside_a_writable_one" => {
            client().or_else(|| lacks(can.max_luns > 1, "its targets have one LUN"))
        }
        "what_is_written_reaches_the_disk"
        | "each_target_serves_its_own_disk"
        | "if_idle_is_busy_under_a_live_initiator"
        | "force_removes_under_a_live_initiator"
        | "changed_luns_under_a_live_initiator_are_busy"
        | "changed_access_holds_for_new_logins"
        | "another_initiator_is_refused"
        | "a_shared_target_serves_many_and_refuses_writes"
        | "connections_are_listed_while_they_live" => client(),
        "shutdown_closes_connections" => {
            client().or_else(|| lacks(!can.survives_restart, "its targets outlive our process"))
        }
        _ => None,
    }
}

common_cases!(Targets, TargetFixture:
    /// Nothing is listed at first.
    an_empty_backend_lists_nothing,
    /// The same `ensure` again changes nothing and answers the same.
    ensure_twice_equals_once,
    /// `list` is what was ensured and not removed.
    list_shows_exactly_what_was_ensured,
    /// `get` is `list` for one name.
    get_shows_what_list_shows,
    /// Removing an absent object succeeds, for every `how`.
    remove_of_nothing_is_success,
    /// A name can be used again.
    what_was_removed_can_be_made_again,
    /// A changed spec is applied completely, or it is refused and nothing changes.
    a_changed_spec_converges_or_is_busy,
    /// Concurrent calls for different names.
    fifty_ensures_at_once_of_different_names,
    /// The same call from many callers at once.
    fifty_ensures_at_once_of_one_name,
    /// Concurrent creation and removal of one object.
    ensures_and_removes_at_once_of_one_name,
    /// `ensure` dropped at every place, then again.
    a_dropped_ensure_is_completed_by_the_next,
    /// `ensure` dropped at every place, then removed.
    a_dropped_ensure_is_undone_by_remove,
    /// `remove` dropped at every place, then again.
    a_dropped_remove_is_completed_by_the_next,
    /// `ensure` of a changed spec dropped at every place, then again.
    a_dropped_change_is_completed_by_the_next,
    /// A new process finds, completes and removes the objects of the old one.
    what_exists_is_adopted_after_a_crash,
    /// A process that dies within a call leaves nothing that the next one cannot repair.
    a_crash_within_a_call_is_mended,
    /// Objects of others are not listed and not touched.
    what_is_not_ours_is_left_alone,
);

struct Served {
    port: Arc<dyn TargetBackend>,
    gate: Arc<Gate>,
    witness: Arc<Witness>,
}

async fn serve(f: &impl TargetFixture) -> Served {
    let served = Served { port: f.fresh().await, gate: Gate::new(), witness: Arc::default() };
    served.port.attach(Arc::clone(&served.gate) as _, Arc::clone(&served.witness) as _);
    served
}

impl Served {
    async fn ensure(&self, wanted: &Wanted) -> Result<TargetEndpoint> {
        self.port.ensure(&wanted.spec, &wanted.disks).await
    }
}

async fn connect(
    f: &impl TargetFixture,
    endpoint: &TargetEndpoint,
    access: &Access,
) -> Box<dyn TargetClient> {
    f.connect(endpoint, access).await.unwrap_or_else(|e| panic!("login to {}: {}", endpoint.iqn, e.report()))
}

async fn refused(f: &impl TargetFixture, endpoint: &TargetEndpoint, access: &Access) -> ErrorKind {
    match f.connect(endpoint, access).await {
        Ok(_) => panic!("the login to {} should have been refused", endpoint.iqn),
        Err(e) => e.kind(),
    }
}

async fn connected(port: &dyn TargetBackend, id: &ResourceId) -> usize {
    let connections = port.connections().await.expect("connections");
    connections.iter().filter(|c| c.target == *id).count()
}

async fn until_connected(port: &dyn TargetBackend, id: &ResourceId, count: usize) {
    let what = format!("{count} connections to {id}");
    eventually(&what, || async { connected(port, id).await == count }).await;
}

/// A pattern that no other offset has.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add(u8::try_from(n / 512 % 251).unwrap_or(0))).collect()
}

/// When `remove` returns, the writeback below can be deleted.
pub async fn remove_lets_go_of_the_disks(f: &impl TargetFixture) {
    let served = serve(f).await;
    for how in [Removal::IfIdle, Removal::Force] {
        let mut spec = spec(f, &id(), only(1)).await;
        let device: Arc<dyn BlockDevice> = Arc::new(RamDisk::zeros(1 << 20));
        spec.disks.insert(0, Disk::Blocks(Arc::clone(&device)));
        let endpoint = served.ensure(&spec).await.expect("ensure");
        let client = match how {
            Removal::Force if f.can_connect() => Some(connect(f, &endpoint, &spec.access).await),
            _ => None,
        };
        if let Some(client) = &client {
            client.write(0, &pattern(1, 4096)).await.expect("write");
        }
        served.port.remove(&spec.id, how).await.expect("remove");
        drop(spec);
        assert_eq!(Arc::strong_count(&device), 1, "the backend still holds the disk");
    }
}

/// The initiator's bytes, through the target, are the disk's.
pub async fn what_is_written_reaches_the_disk(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    assert_eq!(client.read(0, 4096).await.expect("read"), vec![0; 4096], "a new disk is zeros");
    let last = SIZE - 512;
    let writes = [(0, 4096), (4096 + 512, 512), (1 << 20, 256 << 10), (last, 512)];
    for (n, (at, len)) in (1_u8..).zip(writes) {
        client.write(at, &pattern(n, len)).await.expect("write");
    }
    client.flush().await.expect("flush");
    for (n, (at, len)) in (1_u8..).zip(writes) {
        assert!(client.read(at, len).await.expect("read") == pattern(n, len), "{len} bytes at {at}");
    }
    client.logout().await.expect("logout");
    let disk = spec.disks[&0].clone();
    let read = move || {
        let disk = disk::open(&disk, true).expect("the fixture's disk can be opened");
        for (n, (at, len)) in (1_u8..).zip(writes) {
            let mut have = vec![0; len];
            disk.read_at(&mut have, at).expect("read");
            assert!(have == pattern(n, len), "{len} bytes at {at} of the disk itself");
        }
    };
    tokio::task::spawn_blocking(read).await.expect("what was written is on the disk");
}

/// Two LUNs of one target, as a session with a shared data disk has them: each is its own disk, and only one takes writes.
pub async fn a_read_only_lun_stands_beside_a_writable_one(f: &impl TargetFixture) {
    let served = serve(f).await;
    let mut spec = spec(f, &id(), only(1)).await;
    let key = format!("{}-shared", spec.id);
    let shared = f.disk(&key, SIZE).await;
    spec.disks.insert(2, shared);
    spec.luns.push(LunSpec { number: 2, disk_key: key, serial: "SERIAL-2".into(), read_only: true });
    let endpoint = served.ensure(&spec).await.expect("ensure");
    assert_eq!(endpoint.lun, 0, "it boots from the lowest LUN");
    let client = connect(f, &endpoint, &spec.access).await;
    client.write(0, &pattern(1, 4096)).await.expect("write");
    client.logout().await.expect("logout");

    let client = connect(f, &TargetEndpoint { lun: 2, ..endpoint.clone() }, &spec.access).await;
    assert_eq!(client.read(0, 4096).await.expect("read"), vec![0; 4096], "another disk");
    client.write(0, &pattern(2, 4096)).await.expect_err("the LUN is read-only");
    assert_eq!(client.read(0, 4096).await.expect("read"), vec![0; 4096], "it was written to");
    client.logout().await.expect("logout");

    let client = connect(f, &endpoint, &spec.access).await;
    assert_eq!(client.read(0, 4096).await.expect("read"), pattern(1, 4096));
}

/// Two targets, two disks.
pub async fn each_target_serves_its_own_disk(f: &impl TargetFixture) {
    let served = serve(f).await;
    let mut clients = Vec::new();
    for n in 1..=3 {
        let spec = spec(f, &id(), only(n)).await;
        let endpoint = served.ensure(&spec).await.expect("ensure");
        clients.push(connect(f, &endpoint, &spec.access).await);
    }
    for (n, client) in (1..).zip(&clients) {
        client.write(0, &pattern(n, 8192)).await.expect("write");
    }
    for (n, client) in (1..).zip(&clients) {
        assert!(client.read(0, 8192).await.expect("read") == pattern(n, 8192), "target {n}");
    }
    for client in clients {
        client.logout().await.expect("logout");
    }
}

/// The new size counts at once, for the initiator that is there and for the next one.
pub async fn a_disk_that_grew_is_served_to_its_end(f: &impl TargetFixture) {
    let served = serve(f).await;
    let disk = Arc::new(RamDisk::zeros(1 << 20));
    let mut spec = spec(f, &id(), only(1)).await;
    spec.disks.insert(0, Disk::Blocks(Arc::clone(&disk) as _));
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    let size = 2 << 20;
    let last = size as u64 - 512;
    client.read(last, 512).await.expect_err("the disk ends before");
    disk.grow(size);
    assert_eq!(client.read(last, 512).await.expect("what is new can be read"), vec![0; 512]);
    client.write(last, &pattern(4, 512)).await.expect("and written");
    assert_eq!(disk.to_vec()[size - 512..], pattern(4, 512));
    client.logout().await.expect("logout");
    let next = connect(f, &endpoint, &spec.access).await;
    assert_eq!(next.read(last, 512).await.expect("by the next one, too"), pattern(4, 512));
    served.ensure(&spec).await.expect("nothing has to change for it");
}

/// `IfIdle` spares a live initiator, and works once it has gone.
pub async fn if_idle_is_busy_under_a_live_initiator(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    client.write(0, &pattern(7, 512)).await.expect("write");
    let e = served.port.remove(&spec.id, Removal::IfIdle).await.expect_err("an initiator is logged in");
    assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
    assert_whole::<Targets>(served.port.as_ref(), std::slice::from_ref(&spec)).await;
    assert_eq!(client.read(0, 512).await.expect("it is still served"), pattern(7, 512));
    client.logout().await.expect("logout");
    until_connected(served.port.as_ref(), &spec.id, 0).await;
    served.port.remove(&spec.id, Removal::IfIdle).await.expect("nobody uses it");
    assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
}

/// `Force` closes the connection; its writes are on the disk.
pub async fn force_removes_under_a_live_initiator(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    client.write(0, &pattern(9, 4096)).await.expect("write");
    served.port.remove(&spec.id, Removal::Force).await.expect("force");
    assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
    assert_eq!(connected(served.port.as_ref(), &spec.id).await, 0);
    client.read(0, 512).await.expect_err("the connection is closed");
    assert_ne!(refused(f, &endpoint, &spec.access).await, ErrorKind::Unsupported);
    let again = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &again, &spec.access).await;
    assert!(client.read(0, 4096).await.expect("read") == pattern(9, 4096), "what was written is there");
}

/// A disk is never swapped under an initiator.
pub async fn changed_luns_under_a_live_initiator_are_busy(f: &impl TargetFixture) {
    let served = serve(f).await;
    let old = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&old).await.expect("ensure");
    let client = connect(f, &endpoint, &old.access).await;
    client.write(0, &pattern(3, 512)).await.expect("write");
    let mut new = old.clone();
    let key = format!("{}-other", old.id);
    new.disks.insert(0, f.disk(&key, SIZE).await);
    new.luns[0].disk_key = key;
    let e = served.ensure(&new).await.expect_err("an initiator is logged in");
    assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
    assert_whole::<Targets>(served.port.as_ref(), std::slice::from_ref(&old)).await;
    assert_eq!(client.read(0, 512).await.expect("it is still served"), pattern(3, 512));
    client.logout().await.expect("logout");
    until_connected(served.port.as_ref(), &old.id, 0).await;
    let endpoint = served.ensure(&new).await.expect("nobody is logged in");
    assert_whole::<Targets>(served.port.as_ref(), std::slice::from_ref(&new)).await;
    let client = connect(f, &endpoint, &new.access).await;
    assert_eq!(client.read(0, 512).await.expect("read"), vec![0; 512], "it is the other disk");
}
