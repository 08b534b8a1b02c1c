//! The cases for every declarative port: `ensure`, `remove`, `list`, and interrupted calls.
//!
//! A port uses them with a marker type that implements [`Declarative`] (its calls), and with [`Specs`] for its fixtures (its specs).

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::Barrier;

use super::{
    Effort, Fixture,
    cut::{Cut, timed},
};
use crate::{
    error::{ErrorKind, Result},
    nouns::{MachineId, ResourceId},
    ports::{Completeness, Listed, Removal, SpecDigest},
};

/// The calls of a declarative port.
#[async_trait]
pub trait Declarative: Send + Sync + 'static {
    /// The port's trait object.
    type Port: ?Sized + Send + Sync + 'static;
    /// What `ensure` takes.
    type Spec: Clone + Send + Sync + 'static;

    fn attach(port: &Self::Port);
    fn digest(spec: &Self::Spec) -> SpecDigest;
    fn id(spec: &Self::Spec) -> ResourceId;
    /// Whether objects must still exist after a crash of our process, according to the backend's own declaration.
    fn survives(port: &Self::Port) -> bool;
    /// What `ensure` returns for clients, printed, for comparison.
    async fn ensure(port: &Self::Port, spec: &Self::Spec) -> Result<String>;
    async fn remove(port: &Self::Port, id: &ResourceId, how: Removal) -> Result<()>;
    async fn get(port: &Self::Port, id: &ResourceId) -> Result<Option<Listed>>;
    async fn list(port: &Self::Port) -> Result<Vec<Listed>>;
}

/// The specs for a fixture's backend.
#[async_trait]
pub trait Specs<K: Declarative>: Fixture<K::Port> {
    /// A spec for `id`; different variants differ in something that the backend has to change.
    async fn spec(&self, id: &ResourceId, variant: u8) -> K::Spec;
}

/// A new name.
pub fn id() -> ResourceId {
    ResourceId::generation(MachineId::generate(), 1)
}

pub async fn fresh<K: Declarative>(f: &impl Fixture<K::Port>) -> Arc<K::Port> {
    let port = f.fresh().await;
    K::attach(&port);
    port
}

pub async fn reopen<K: Declarative>(f: &impl Fixture<K::Port>, port: Arc<K::Port>) -> Arc<K::Port> {
    drop(port);
    let port = f.reopen().await;
    K::attach(&port);
    port
}

/// The list, by name. The names are unique.
pub async fn listed<K: Declarative>(port: &K::Port) -> BTreeMap<ResourceId, Listed> {
    let list = K::list(port).await.expect("list");
    let by_name: BTreeMap<_, _> = list.iter().map(|l| (l.id.clone(), l.clone())).collect();
    assert_eq!(by_name.len(), list.len(), "a name is listed twice: {list:?}");
    by_name
}

/// Asserts that exactly these are listed, whole, with these digests (where the backend can tell them).
pub async fn assert_whole<K: Declarative>(port: &K::Port, specs: &[K::Spec]) {
    let list = listed::<K>(port).await;
    let mut sorted: Vec<ResourceId> = specs.iter().map(|s| K::id(s)).collect();
    sorted.sort();
    assert_eq!(list.keys().cloned().collect::<Vec<_>>(), sorted, "exactly what was ensured is listed");
    for spec in specs {
        let have = &list[&K::id(spec)];
        assert_eq!(have.completeness, Completeness::Whole, "{have:?}");
        if let Some(digest) = have.digest {
            assert_eq!(digest, K::digest(spec), "the digest of {} is its spec's", have.id);
        }
    }
}

async fn ensure<K: Declarative>(port: &K::Port, spec: &K::Spec) -> String {
    K::ensure(port, spec).await.unwrap_or_else(|e| panic!("ensure {}: {}", K::id(spec), e.report()))
}

async fn remove<K: Declarative>(port: &K::Port, id: &ResourceId) {
    K::remove(port, id, Removal::Force).await.unwrap_or_else(|e| panic!("remove {id}: {}", e.report()));
}

pub async fn an_empty_backend_lists_nothing<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    assert!(listed::<K>(&port).await.is_empty());
}

pub async fn ensure_twice_equals_once<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let spec = f.spec(&id(), 0).await;
    let first = ensure::<K>(&port, &spec).await;
    assert_whole::<K>(&port, std::slice::from_ref(&spec)).await;
    assert_eq!(ensure::<K>(&port, &spec).await, first, "the second ensure tells the client the same");
    assert_whole::<K>(&port, &[spec]).await;
}

pub async fn list_shows_exactly_what_was_ensured<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let mut specs = Vec::new();
    for _ in 0..5 {
        let spec = f.spec(&id(), 0).await;
        ensure::<K>(&port, &spec).await;
        specs.push(spec);
        assert_whole::<K>(&port, &specs).await;
    }
    while let Some(spec) = specs.pop() {
        remove::<K>(&port, &K::id(&spec)).await;
        assert_whole::<K>(&port, &specs).await;
    }
}

pub async fn get_shows_what_list_shows<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let get = async |id: &ResourceId| K::get(&port, id).await.expect("get");
    let (first, second) = (f.spec(&id(), 0).await, f.spec(&id(), 1).await);
    assert_eq!(get(&K::id(&first)).await, None, "nothing was made");
    for spec in [&first, &second] {
        ensure::<K>(&port, spec).await;
    }
    for (id, listed) in listed::<K>(&port).await {
        assert_eq!(get(&id).await, Some(listed));
    }
    assert_eq!(get(&id()).await, None, "nothing of this name was made");
    remove::<K>(&port, &K::id(&first)).await;
    assert_eq!(get(&K::id(&first)).await, None, "it was removed");
    assert!(get(&K::id(&second)).await.is_some(), "this one was not");
}

pub async fn remove_of_nothing_is_success<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    for how in [Removal::IfIdle, Removal::Force] {
        K::remove(&port, &id(), how).await.expect("remove of what never was");
    }
    let spec = f.spec(&id(), 0).await;
    ensure::<K>(&port, &spec).await;
    K::remove(&port, &K::id(&spec), Removal::IfIdle).await.expect("nobody uses it");
    for how in [Removal::IfIdle, Removal::Force] {
        K::remove(&port, &K::id(&spec), how).await.expect("remove of what was removed");
    }
    assert!(listed::<K>(&port).await.is_empty());
}

pub async fn what_was_removed_can_be_made_again<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let id = id();
    for variant in [0, 1, 0] {
        let spec = f.spec(&id, variant).await;
        ensure::<K>(&port, &spec).await;
        assert_whole::<K>(&port, &[spec]).await;
        remove::<K>(&port, &id).await;
        assert!(listed::<K>(&port).await.is_empty());
    }
}

pub async fn a_changed_spec_converges_or_is_busy<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let id = id();
    let (old, new) = (f.spec(&id, 0).await, f.spec(&id, 1).await);
    assert_ne!(K::digest(&old), K::digest(&new), "the fixture's variants differ");
    ensure::<K>(&port, &old).await;
    match K::ensure(&port, &new).await {
        Ok(_) => assert_whole::<K>(&port, &[new]).await,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
            assert_whole::<K>(&port, std::slice::from_ref(&old)).await;
            ensure::<K>(&port, &old).await;
        }
    }
}

/// Runs `calls` in tasks of their own that all start at the same moment.
async fn at_once<T: Send + 'static, C: Future<Output = T> + Send + 'static>(calls: Vec<C>) -> Vec<T> {
    let begin = Arc::new(Barrier::new(calls.len()));
    let start = |call: C| {
        let begin = Arc::clone(&begin);
        tokio::spawn(async move {
            begin.wait().await;
            call.await
        })
    };
    let tasks: Vec<_> = calls.into_iter().map(start).collect();
    join_all(tasks).await.into_iter().map(|done| done.expect("every call succeeds")).collect()
}

fn ensuring<K: Declarative>(
    port: &Arc<K::Port>,
    spec: &K::Spec,
) -> impl Future<Output = String> + Send + use<K> {
    let (port, spec) = (Arc::clone(port), spec.clone());
    async move { ensure::<K>(&port, &spec).await }
}

fn removing<K: Declarative>(port: &Arc<K::Port>, id: ResourceId) -> impl Future<Output = ()> + Send + use<K> {
    let port = Arc::clone(port);
    async move { remove::<K>(&port, &id).await }
}

pub async fn fifty_ensures_at_once_of_different_names<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let mut specs = Vec::new();
    for _ in 0..f.effort().callers() {
        specs.push(f.spec(&id(), 0).await);
    }
    at_once(specs.iter().map(|spec| ensuring::<K>(&port, spec)).collect()).await;
    assert_whole::<K>(&port, &specs).await;
    at_once(specs.iter().map(|spec| removing::<K>(&port, K::id(spec))).collect()).await;
    assert!(listed::<K>(&port).await.is_empty());
}

pub async fn fifty_ensures_at_once_of_one_name<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let spec = f.spec(&id(), 0).await;
    let mut answers = at_once((0..f.effort().callers()).map(|_| ensuring::<K>(&port, &spec)).collect()).await;
    answers.dedup();
    assert_eq!(answers.len(), 1, "every caller is told the same: {answers:?}");
    assert_whole::<K>(&port, &[spec]).await;
}

pub async fn ensures_and_removes_at_once_of_one_name<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let spec = f.spec(&id(), 0).await;
    let call = |n: usize| {
        let (make, unmake) = (ensuring::<K>(&port, &spec), removing::<K>(&port, K::id(&spec)));
        async move {
            if n.is_multiple_of(2) {
                make.await;
            } else {
                unmake.await;
            }
        }
    };
    at_once((0..f.effort().callers()).map(call).collect()).await;
    // As if one ran after the other, in some order: present or absent, but never partial.
    if !listed::<K>(&port).await.is_empty() {
        assert_whole::<K>(&port, std::slice::from_ref(&spec)).await;
    }
    ensure::<K>(&port, &spec).await;
    assert_whole::<K>(&port, &[spec]).await;
}

/// After a cut the object is absent, whole or partial, and nothing else changed.
async fn assert_nothing_odd<K: Declarative>(port: &K::Port, bystander: &K::Spec, id: &ResourceId, cut: Cut) {
    let mut list = listed::<K>(port).await;
    list.remove(id);
    let rest: Vec<_> = list.into_values().collect();
    assert_eq!(rest.len(), 1, "{cut:?} left something else: {rest:?}");
    assert_eq!(rest[0].id, K::id(bystander), "{cut:?}");
    assert_eq!(rest[0].completeness, Completeness::Whole, "{cut:?}");
}

pub async fn a_dropped_ensure_is_completed_by_the_next<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let bystander = f.spec(&id(), 0).await;
    let (usual, _) = timed(ensure::<K>(&port, &bystander)).await;
    let mut through = false;
    for cut in f.effort().cuts(usual) {
        if through && cut.is_polls() {
            continue;
        }
        let spec = f.spec(&id(), 0).await;
        let done = cut.apply(K::ensure(&port, &spec)).await;
        through |= done.is_some();
        assert_nothing_odd::<K>(&port, &bystander, &K::id(&spec), cut).await;
        ensure::<K>(&port, &spec).await;
        assert_whole::<K>(&port, &[bystander.clone(), spec.clone()]).await;
        remove::<K>(&port, &K::id(&spec)).await;
        assert_whole::<K>(&port, std::slice::from_ref(&bystander)).await;
    }
}

pub async fn a_dropped_ensure_is_undone_by_remove<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let bystander = f.spec(&id(), 0).await;
    let (usual, _) = timed(ensure::<K>(&port, &bystander)).await;
    let mut through = false;
    for cut in f.effort().cuts(usual) {
        if through && cut.is_polls() {
            continue;
        }
        let spec = f.spec(&id(), 0).await;
        let done = cut.apply(K::ensure(&port, &spec)).await;
        through |= done.is_some();
        remove::<K>(&port, &K::id(&spec)).await;
        assert_whole::<K>(&port, std::slice::from_ref(&bystander)).await;
    }
}

pub async fn a_dropped_remove_is_completed_by_the_next<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let (bystander, probe) = (f.spec(&id(), 0).await, f.spec(&id(), 0).await);
    ensure::<K>(&port, &bystander).await;
    ensure::<K>(&port, &probe).await;
    let (usual, ()) = timed(remove::<K>(&port, &K::id(&probe))).await;
    let mut through = false;
    for (n, cut) in f.effort().cuts(usual).into_iter().enumerate() {
        if through && cut.is_polls() {
            continue;
        }
        let spec = f.spec(&id(), 0).await;
        ensure::<K>(&port, &spec).await;
        let how = if n.is_multiple_of(2) { Removal::Force } else { Removal::IfIdle };
        let done = cut.apply(K::remove(&port, &K::id(&spec), how)).await;
        through |= done.is_some();
        assert_nothing_odd::<K>(&port, &bystander, &K::id(&spec), cut).await;
        if n.is_multiple_of(3) {
            ensure::<K>(&port, &spec).await;
            assert_whole::<K>(&port, &[bystander.clone(), spec.clone()]).await;
        }
        remove::<K>(&port, &K::id(&spec)).await;
        assert_whole::<K>(&port, std::slice::from_ref(&bystander)).await;
    }
}

pub async fn a_dropped_change_is_completed_by_the_next<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let bystander = f.spec(&id(), 0).await;
    let (usual, _) = timed(ensure::<K>(&port, &bystander)).await;
    let mut through = false;
    for cut in f.effort().cuts(usual) {
        if through && cut.is_polls() {
            continue;
        }
        let id = id();
        let (old, new) = (f.spec(&id, 0).await, f.spec(&id, 1).await);
        ensure::<K>(&port, &old).await;
        let done = cut.apply(K::ensure(&port, &new)).await;
        through |= done.is_some();
        assert_nothing_odd::<K>(&port, &bystander, &id, cut).await;
        let settled = match K::ensure(&port, &new).await {
            Ok(_) => new,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Busy, "{cut:?}: {}", e.report());
                old
            }
        };
        assert_whole::<K>(&port, &[bystander.clone(), settled]).await;
        remove::<K>(&port, &id).await;
    }
}

pub async fn what_exists_is_adopted_after_a_crash<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let survives = K::survives(&port);
    let specs = [f.spec(&id(), 0).await, f.spec(&id(), 1).await, f.spec(&id(), 0).await];
    for spec in &specs {
        ensure::<K>(&port, spec).await;
    }
    let port = reopen::<K>(f, port).await;
    if survives {
        assert_whole::<K>(&port, &specs).await;
    } else {
        let names: Vec<ResourceId> = specs.iter().map(K::id).collect();
        let list = listed::<K>(&port).await;
        assert!(list.keys().all(|id| names.contains(id)), "nothing that never was: {list:?}");
    }
    for spec in &specs {
        ensure::<K>(&port, spec).await;
    }
    assert_whole::<K>(&port, &specs).await;
    remove::<K>(&port, &K::id(&specs[0])).await;
    assert_whole::<K>(&port, &specs[1..]).await;
    let port = reopen::<K>(f, port).await;
    let list = listed::<K>(&port).await;
    assert!(!list.contains_key(&K::id(&specs[0])), "what was removed stays removed: {list:?}");
    for spec in &specs {
        remove::<K>(&port, &K::id(spec)).await;
    }
    assert!(listed::<K>(&port).await.is_empty());
}

pub async fn a_crash_within_a_call_is_mended<K: Declarative>(f: &impl Specs<K>) {
    let mut port = fresh::<K>(f).await;
    let spec = f.spec(&id(), 0).await;
    let (usual, _) = timed(ensure::<K>(&port, &spec)).await;
    remove::<K>(&port, &K::id(&spec)).await;
    for (n, cut) in Effort::Less.cuts(usual).into_iter().enumerate() {
        let (a, b) = (f.spec(&id(), 0).await, f.spec(&id(), 0).await);
        ensure::<K>(&port, &b).await;
        // Their results do not matter: this tests the drop.
        let _ = cut.apply(K::ensure(&port, &a)).await;
        let _ = cut.apply(K::remove(&port, &K::id(&b), Removal::Force)).await;
        port = reopen::<K>(f, port).await;
        let list = listed::<K>(&port).await;
        let known = [K::id(&a), K::id(&b)];
        assert!(list.keys().all(|id| known.contains(id)), "{cut:?} left something else: {list:?}");
        if n.is_multiple_of(2) {
            ensure::<K>(&port, &a).await;
            ensure::<K>(&port, &b).await;
            assert_whole::<K>(&port, &[a.clone(), b.clone()]).await;
        }
        remove::<K>(&port, &K::id(&a)).await;
        remove::<K>(&port, &K::id(&b)).await;
        assert!(listed::<K>(&port).await.is_empty(), "{cut:?}");
    }
}

pub async fn what_is_not_ours_is_left_alone<K: Declarative>(f: &impl Specs<K>) {
    let port = fresh::<K>(f).await;
    let foreign = f.foreign().await.expect("has_foreign() promised one");
    assert!(listed::<K>(&port).await.is_empty(), "what is not ours is not listed");
    let spec = f.spec(&id(), 0).await;
    ensure::<K>(&port, &spec).await;
    assert_whole::<K>(&port, std::slice::from_ref(&spec)).await;
    let port = reopen::<K>(f, port).await;
    ensure::<K>(&port, &spec).await;
    remove::<K>(&port, &K::id(&spec)).await;
    assert!(listed::<K>(&port).await.is_empty());
    foreign.check().await.expect("what is not ours is as it was");
}

/// Makes the common cases of a port: functions of their names over its fixture's trait.
macro_rules! common_cases {
    ($kind:ty, $fixture:ident: $($(#[$doc:meta])* $case:ident),* $(,)?) => {
        $(
            $(#[$doc])*
            pub async fn $case(f: &impl $fixture) {
                $crate::testkit::suite::common::$case::<$kind>(f).await;
            }
        )*
    };
}
pub(super) use common_cases;
