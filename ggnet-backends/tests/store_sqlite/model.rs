//! The SQLite store against the store in memory: the same batches, good and bad, give the same answers and the same content.

use ggnet_core::{
    ErrorKind,
    nouns::*,
    ports::{Batch, MachineFilter, PageRequest, SessionCounts, SessionFilter, Store, Write},
    testkit::{
        memory::MemoryStore,
        suite::store::{
            at, event, generation, image, mac, machine, seen, session, target, version, with_data,
        },
    },
};
use proptest::{prelude::*, test_runner::TestRunner};

/// A change over small pools, so that changes meet.
#[derive(Clone, Debug)]
enum Op {
    Machine {
        which: usize,
        name: u32,
        macs: Vec<u32>,
        image: Option<usize>,
        pin: Option<usize>,
        over: Over,
    },
    DeleteMachine(usize),
    Image {
        which: usize,
        name: u32,
        current: Option<usize>,
        over: Over,
    },
    DeleteImage(usize),
    Version {
        which: usize,
        number: u32,
    },
    DeleteVersion(usize),
    Session {
        which: usize,
        machine: usize,
        version: usize,
        data: Option<usize>,
        next: Option<usize>,
        state: usize,
        over: Over,
    },
    Target {
        which: usize,
        name: u32,
        version: usize,
    },
    DeleteTarget(usize),
    Seen(u32),
    Prune(i64),
}

/// The revision that a change is made over.
#[derive(Clone, Copy, Debug)]
enum Over {
    Stored,
    New,
    Wrong(u64),
}

fn over() -> impl Strategy<Value = Over> {
    prop_oneof![6 => Just(Over::Stored), 1 => Just(Over::New), 1 => (1u64..9).prop_map(Over::Wrong)]
}

fn op() -> impl Strategy<Value = Op> {
    let some = |n: usize| proptest::option::of(0..n);
    prop_oneof![
        5 => (0..4usize, 0..4u32, proptest::collection::vec(0..5u32, 0..3), some(2), some(4), over()).prop_map(
            |(which, name, macs, image, pin, over)| Op::Machine { which, name, macs, image, pin, over }
        ),
        1 => (0..4usize).prop_map(Op::DeleteMachine),
        4 => (0..2usize, 0..2u32, some(4), over())
            .prop_map(|(which, name, current, over)| Op::Image { which, name, current, over }),
        1 => (0..2usize).prop_map(Op::DeleteImage),
        4 => (0..4usize, 1..4u32).prop_map(|(which, number)| Op::Version { which, number }),
        1 => (0..4usize).prop_map(Op::DeleteVersion),
        6 => (0..5usize, 0..4usize, 0..4usize, some(4), some(4), 0..5usize, over()).prop_map(
            |(which, machine, version, data, next, state, over)| {
                Op::Session { which, machine, version, data, next, state, over }
            }
        ),
        2 => (0..2usize, 0..2u32, 0..4usize).prop_map(|(which, name, version)| Op::Target { which, name, version }),
        1 => (0..2usize).prop_map(Op::DeleteTarget),
        1 => (0..3u32).prop_map(Op::Seen),
        1 => (0i64..80).prop_map(Op::Prune),
    ]
}

/// The records that the changes are about: ids stay, content is what the change says.
struct Pool {
    machines: Vec<Machine>,
    images: Vec<Image>,
    versions: Vec<ImageVersion>,
    sessions: Vec<SessionId>,
    targets: Vec<TargetId>,
}

impl Pool {
    fn new() -> Self {
        let images: Vec<_> = (0..2).map(|_| image("any")).collect();
        Self {
            machines: (0..4).map(machine).collect(),
            versions: (0..4usize).map(|n| version(images[n / 2].id, 1)).collect(),
            images,
            sessions: (0..5).map(|_| SessionId::generate()).collect(),
            targets: (0..2).map(|_| TargetId::generate()).collect(),
        }
    }

    async fn write(&self, op: Op, model: &MemoryStore) -> Write {
        let pick = |over, stored: Option<u64>| match over {
            Over::Stored => stored.unwrap_or(0),
            Over::New => 0,
            Over::Wrong(n) => n,
        };
        match op {
            Op::Machine { which, name, macs, image, pin, over } => {
                let mut m = self.machines[which].clone();
                m.name = format!("m{name}").parse().unwrap();
                m.macs = macs.into_iter().map(mac).collect();
                m.image = image.map(|i| self.images[i].id);
                m.pinned_version = pin.map(|v| self.versions[v].id);
                m.revision = pick(over, model.machine(m.id).await.unwrap().map(|m| m.revision));
                Write::Machine(m)
            }
            Op::DeleteMachine(which) => Write::DeleteMachine(self.machines[which].id),
            Op::Image { which, name, current, over } => {
                let mut i = self.images[which].clone();
                i.name = format!("i{name}").parse().unwrap();
                i.current = current.map(|v| self.versions[v].id);
                i.revision = pick(over, model.image(i.id).await.unwrap().map(|i| i.revision));
                Write::Image(i)
            }
            Op::DeleteImage(which) => Write::DeleteImage(self.images[which].id),
            Op::Version { which, number } => {
                Write::Version(ImageVersion { number, ..self.versions[which].clone() })
            }
            Op::DeleteVersion(which) => Write::DeleteVersion(self.versions[which].id),
            Op::Session { which, machine, version, data, next, state, over } => {
                let machine = self.machines[machine].id;
                let mut s = session(machine, &self.versions[version], SessionState::ALL[state]);
                s.id = self.sessions[which];
                let of = |v: usize| &self.versions[v];
                if let Some(data) = data {
                    s.current.disks = with_data(&s.current.disks, &[of(data)]);
                }
                s.next = next.map(|v| {
                    let mut next = Generation { number: 2, ..generation(machine, of(v), 1) };
                    // The same disk twice is one use of its version.
                    next.disks = with_data(&next.disks, &[of(version), of(version)]);
                    next
                });
                s.revision = pick(over, model.session(s.id).await.unwrap().map(|s| s.revision));
                Write::Session(Box::new(s))
            }
            Op::Target { which, name, version } => {
                let t = target(&format!("t{name}"), self.versions[version].id);
                Write::Target(ManualTarget { id: self.targets[which], ..t })
            }
            Op::DeleteTarget(which) => Write::DeleteTarget(self.targets[which]),
            Op::Seen(n) => Write::Seen(seen(n)),
            Op::Prune(_) => unreachable!("a pruning is no change of a batch"),
        }
    }
}

/// Everything a store says it has.
#[derive(Debug, PartialEq)]
struct Content {
    machines: Vec<Machine>,
    images: Vec<Image>,
    versions: Vec<Vec<ImageVersion>>,
    sessions: Vec<Session>,
    live: Vec<Session>,
    last: Vec<Option<Session>>,
    by_mac: Vec<Option<Machine>>,
    counts: SessionCounts,
    targets: Vec<ManualTarget>,
    seen: Vec<SeenMachine>,
    events: Vec<NewEvent>,
}

async fn content(s: &dyn Store, pool: &Pool) -> Content {
    let all = PageRequest { page: 1, per_page: 1000 };
    let (mut versions, mut last, mut by_mac) = (vec![], vec![], vec![]);
    for i in &pool.images {
        versions.push(s.versions(i.id).await.unwrap());
    }
    for m in &pool.machines {
        last.push(s.last_session(m.id).await.unwrap());
    }
    for n in 0..5 {
        by_mac.push(s.machine_by_mac(mac(n)).await.unwrap());
    }
    Content {
        machines: s.machines(&MachineFilter::default(), all).await.unwrap().items,
        images: s.images(all).await.unwrap().items,
        versions,
        sessions: s.sessions(&SessionFilter::default(), all).await.unwrap().items,
        live: s.live_sessions().await.unwrap(),
        last,
        by_mac,
        counts: s.session_counts().await.unwrap(),
        targets: s.targets().await.unwrap(),
        seen: s.seen(all).await.unwrap().items,
        events: s.events(None, 1000, None).await.unwrap().into_iter().map(|e| e.event).collect(),
    }
}

fn counted(sessions: &[Session]) -> SessionCounts {
    let of = |state| sessions.iter().filter(|s| s.state == state).count() as u64;
    SessionCounts {
        starting: of(SessionState::Starting),
        active: of(SessionState::Active),
        stopping: of(SessionState::Stopping),
        stopped: of(SessionState::Stopped),
        failed: of(SessionState::Failed),
    }
}

async fn same_answers(batches: Vec<Vec<Op>>) -> Result<u32, TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let (store, model, pool) = (super::open(folder.path()).await, MemoryStore::new(), Pool::new());
    let mut applied = 0;
    for (n, ops) in batches.into_iter().enumerate() {
        let mut batch = Batch::new().event(event(n as i64));
        let mut prune = None;
        for op in ops {
            match op {
                Op::Prune(t) => prune = Some(at(t)),
                op => batch = batch.write(pool.write(op, &model).await),
            }
        }
        let (got, want) = (store.commit(batch.clone()).await, model.commit(batch.clone()).await);
        applied += u32::from(got.is_ok());
        let kind = |r: &Result<Vec<Event>, ggnet_core::Error>| r.as_ref().err().map(ggnet_core::Error::kind);
        prop_assert_eq!(kind(&got), kind(&want), "{:?}\n sqlite {:?}\n memory {:?}", batch, got, want);
        let expected = [None, Some(ErrorKind::Conflict), Some(ErrorKind::NotFound), Some(ErrorKind::Invalid)];
        prop_assert!(expected.contains(&kind(&got)));
        if let Some(before) = prune {
            prop_assert_eq!(store.prune(before).await.unwrap(), model.prune(before).await.unwrap());
        }
        let (got, want) = (content(&store, &pool).await, content(&model, &pool).await);
        prop_assert_eq!(got.counts, counted(&got.sessions));
        prop_assert_eq!(got, want);
    }
    store.shutdown().await;
    Ok(applied)
}

#[test]
fn any_batches_give_the_same_as_the_store_in_memory() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() });
    let batches = proptest::collection::vec(proptest::collection::vec(op(), 1..4), 20..60);
    let applied = std::cell::Cell::new(0);
    runner
        .run(&batches, |batches| {
            applied.set(applied.get() + runtime.block_on(same_answers(batches))?);
            Ok(())
        })
        .unwrap();
    assert!(applied.get() > 100, "only {} batches were good: the changes hardly meet", applied.get());
}
