//! Group commit: batches that wait at the same time share a transaction, each has its own answer, and a kill or a power cut leaves all of a
//! group or none of it.
//!
//! On a single-threaded runtime, everything that is queued at once waits for the first turn, so groups have the same batches in every run.

use std::{
    fs,
    future::poll_fn,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    path::Path,
    pin::Pin,
    process::Stdio,
    task::Poll,
    time::{Duration, Instant},
};

use ggnet_backends::store::sqlite::SqliteStore;
use ggnet_core::{
    ErrorKind,
    nouns::{Event, Session, SessionState, TargetId},
    ports::{Batch, Health, MachineFilter, PageRequest, Store, Write},
    testkit::{
        suite::store::{at, audit, event, image, mac, machine, session, version},
        tier::rounds,
    },
};
use tokio::runtime::{Builder, Runtime};

use super::{
    config,
    crash::{self, batch},
    files::raw,
    open,
};

pub type Answer = ggnet_core::Result<Vec<Event>>;

/// A commit that waits for its answer.
pub type Committing = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Queues these batches in this order, with nothing between them.
pub async fn queue(store: &SqliteStore, batches: impl IntoIterator<Item = Batch>) -> Vec<Committing> {
    let commit = |batch| -> Committing {
        let store = store.clone();
        Box::pin(async move { store.commit(batch).await })
    };
    let mut waiting: Vec<Committing> = batches.into_iter().map(commit).collect();
    // Without tokio's budget for a task, which would suspend it after some of the commits.
    let polled = poll_fn(|cx| {
        for commit in &mut waiting {
            assert!(commit.as_mut().poll(cx).is_pending(), "answered before its turn");
        }
        Poll::Ready(())
    });
    tokio::task::unconstrained(polled).await;
    waiting
}

pub async fn answers(waiting: Vec<Committing>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(waiting.len());
    for commit in waiting {
        answers.push(commit.await);
    }
    answers
}

/// The kind of each refusal; none for a batch that was applied.
pub fn kinds(answers: &[Answer]) -> Vec<Option<ErrorKind>> {
    answers.iter().map(|answer| answer.as_ref().err().map(ggnet_core::Error::kind)).collect()
}

fn synced(store: &SqliteStore) -> u64 {
    store.synced_commits().unwrap()
}

fn add(n: u32) -> Batch {
    Batch::new().write(Write::Machine(machine(n))).event(event(i64::from(n)))
}

fn set(key: &str) -> Write {
    Write::Setting { key: key.to_owned(), value: "set".to_owned() }
}

#[tokio::test]
async fn a_thousand_commits_that_wait_together_are_eight_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let before = synced(&store);
    let answers = answers(queue(&store, (0..1000).map(|n| add(n).audit(audit("x", 1)))).await).await;
    assert_eq!(synced(&store) - before, 8, "groups of 128");
    let told: Vec<Event> = answers.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(told.len(), 1000);
    assert_eq!(store.events(None, 2000, None).await.unwrap(), told, "in the order of the queue");
    assert_eq!(store.machines(&MachineFilter::default(), PageRequest::default()).await.unwrap().total, 1000);
}

#[tokio::test]
async fn a_commit_that_comes_alone_is_a_transaction_and_what_changes_nothing_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let before = synced(&store);
    for n in 0..3 {
        store.commit(add(n)).await.unwrap();
    }
    assert_eq!(synced(&store) - before, 3);
    store.commit(Batch::new()).await.unwrap();
    store.commit(add(1)).await.unwrap_err();
    assert_eq!(store.prune(at(-1000)).await.unwrap(), 0);
    let refused = answers(queue(&store, [add(0), add(1), Batch::new()]).await).await;
    assert_eq!(kinds(&refused), [Some(ErrorKind::Conflict), Some(ErrorKind::Conflict), None]);
    assert_eq!(synced(&store) - before, 3);
}

#[tokio::test]
async fn a_batch_that_is_refused_in_the_middle_of_a_group_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (i, m) = (image("win11"), machine(1));
    let v = version(i.id, 1);
    let live = session(m.id, &v, SessionState::Active);
    let room =
        Batch::new().write(Write::Image(i)).write(Write::Version(v.clone())).write(Write::Machine(m.clone()));
    store.commit(room.write(Write::Session(Box::new(live.clone())))).await.unwrap();
    let live = store.session(live.id).await.unwrap().unwrap();
    let taken_over = Session { epoch: live.epoch + 1, ..live.clone() };

    let new = machine(2);
    let mut namesake = machine(6);
    namesake.name = new.name.clone();
    let mut changed = new.clone();
    (changed.revision, changed.description) = (1, "changed".to_owned());
    let mut without_cards = machine(7);
    without_cards.macs.clear();
    let second = session(m.id, &v, SessionState::Starting);
    let before = synced(&store);
    let group = [
        Batch::new().write(Write::Machine(new.clone())),
        // Its second change conflicts with the batch before it.
        Batch::new().write(Write::Machine(machine(5))).write(Write::Machine(namesake)),
        Batch::new().write(set("stale")).fenced(&taken_over),
        Batch::new().write(set("fenced")).fenced(&live),
        Batch::new().write(Write::Machine(changed.clone())),
        Batch::new().write(Write::Machine(changed)),
        Batch::new().write(set("second")).write(Write::Session(Box::new(second))),
        Batch::new().write(set("gone")).write(Write::DeleteTarget(TargetId::generate())),
        Batch::new().write(set("cards")).write(Write::Machine(without_cards)),
        Batch::new().write(set("last")),
    ];
    let group =
        group.into_iter().enumerate().map(|(n, batch)| batch.event(event(n as i64)).audit(audit("x", 1)));
    let answers = answers(queue(&store, group).await).await;
    assert_eq!(synced(&store) - before, 1);
    let (conflict, not_found, invalid) =
        (Some(ErrorKind::Conflict), Some(ErrorKind::NotFound), Some(ErrorKind::Invalid));
    assert_eq!(
        kinds(&answers),
        [None, conflict, conflict, None, None, conflict, conflict, not_found, invalid, None]
    );
    let told: Vec<Event> = answers.into_iter().filter_map(Result::ok).flatten().collect();
    let times: Vec<_> = told.iter().map(|event| event.event.at).collect();
    assert_eq!(times, [0, 3, 4, 9].map(at));
    assert_eq!(store.events(None, 100, None).await.unwrap(), told);
    assert_eq!(store.audit(PageRequest::default()).await.unwrap().total, 4);
    assert_eq!(store.machine(new.id).await.unwrap().unwrap().description, "changed");
    assert_eq!(store.machine_by_mac(mac(5)).await.unwrap(), None);
    assert_eq!(store.live_session(m.id).await.unwrap().unwrap(), live);
    for (key, there) in [
        ("stale", false),
        ("fenced", true),
        ("second", false),
        ("gone", false),
        ("cards", false),
        ("last", true),
    ] {
        assert_eq!(store.setting(key).await.unwrap().is_some(), there, "{key}");
    }
    assert_eq!(store.health().await, Health::Up, "refusals are answers, no trouble");
}

#[tokio::test]
async fn a_group_has_a_limited_number_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let many = |rows: usize| Batch { events: vec![event(1); rows], ..Batch::new() };
    let before = synced(&store);
    // 1500 and 1500 exceed the limit of a group; 9000 exceeds that of the queue and is committed alone.
    let sizes = [1500, 1500, 500, 40, 9000, 1];
    for (size, answer) in sizes.iter().zip(answers(queue(&store, sizes.map(many)).await).await) {
        assert_eq!(answer.unwrap().len(), *size);
    }
    assert_eq!(synced(&store) - before, 4, "1500; 1500, 500 and 40; 9000; 1");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_its_batch_whole_once_it_is_queued_and_undone_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut waiting = queue(&store, (0..3).map(add)).await;
    drop(waiting.remove(1));
    assert_eq!(kinds(&answers(waiting).await), [None, None]);
    for n in 0..3 {
        assert!(store.machine_by_mac(mac(n)).await.unwrap().is_some(), "machine {n}");
    }
    // The first batch takes all the room in the queue, so the second waits for room.
    let large = Batch { events: vec![event(1); 9000], ..Batch::new() };
    let mut waiting = queue(&store, [large, add(10), add(11)]).await;
    drop(waiting.remove(1));
    assert_eq!(kinds(&answers(waiting).await), [None, None]);
    assert_eq!(store.machine_by_mac(mac(10)).await.unwrap(), None);
    assert!(store.machine_by_mac(mac(11)).await.unwrap().is_some());
    assert_eq!(store.events(None, 10_000, None).await.unwrap().len(), 3 + 9000 + 1);
}

/// A turn runs on the runtime of the caller that spawned it, so it dies with that runtime.
#[test]
fn if_the_writers_task_dies_only_the_callers_of_its_group_get_an_error() {
    let runtime = || -> Runtime { Builder::new_current_thread().enable_all().build().unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (runtime(), runtime());
    let (store, mut other) =
        ours.block_on(async { (open(folder.path()).await, raw(&config(folder.path()).path).await) });
    ours.block_on(async { sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap() });
    // Their task takes the first turn with both batches, and waits for the lock.
    let of_theirs = theirs.block_on(queue(&store, [add(1)]));
    let of_ours = ours.block_on(queue(&store, [add(2)]));
    theirs.block_on(async { tokio::time::sleep(Duration::from_millis(200)).await });
    drop(of_theirs);
    drop(theirs);
    ours.block_on(async {
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        let later = queue(&store, [add(3)]).await;
        let died = answers(of_ours).await.remove(0).unwrap_err();
        assert!(died.kind() == ErrorKind::Internal && died.message().contains("before its time"), "{died}");
        assert_eq!(kinds(&answers(later).await), [None]);
        store.commit(add(4)).await.unwrap();
        for (n, there) in [(1, false), (2, false), (3, true), (4, true)] {
            assert_eq!(store.machine_by_mac(mac(n)).await.unwrap().is_some(), there, "machine {n}");
        }
        store.shutdown().await;
    });
}

#[tokio::test]
async fn commits_go_between_the_steps_of_a_pruning() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for _ in 0..3 {
        store.commit(Batch { events: vec![event(1); 2000], ..Batch::new() }).await.unwrap();
    }
    let before = synced(&store);
    let pruning = tokio::spawn({
        let store = store.clone();
        async move { store.prune(at(50)).await }
    });
    while synced(&store) == before {
        tokio::task::yield_now().await;
    }
    store.commit(add(1).event(event(100))).await.unwrap();
    assert!(!pruning.is_finished(), "the commit waited for the whole pruning");
    assert_eq!(pruning.await.unwrap().unwrap(), 6001);
    assert!(synced(&store) - before >= 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_does_not_wait_for_lists() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.commit(add(1)).await.unwrap();
    for _ in 0..4 {
        store.commit(Batch { events: vec![event(1); 2000], ..Batch::new() }).await.unwrap();
    }
    let lists: Vec<_> = (0..24)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.events(None, 10_000, None).await.unwrap().len() })
        })
        .collect();
    while lists.iter().all(|list| !list.is_finished()) {
        tokio::task::yield_now().await;
    }
    assert!(store.machine_by_mac(mac(1)).await.unwrap().is_some());
    let ended = lists.iter().filter(|list| list.is_finished()).count();
    assert!(ended < 12, "{ended} of 24 lists were read before the lookup");
    for list in lists {
        assert_eq!(list.await.unwrap(), 8001);
    }
}

/// Concurrent writers. Writer w commits the batches w, w + WRITERS, w + 2 × WRITERS, …
const WRITERS: u32 = 12;

/// How many batches of each writer are stored. Each must be whole, and there must be nothing else.
async fn whole_batches_of_each(store: &SqliteStore) -> Vec<u32> {
    let mut each = Vec::new();
    for writer in 0..WRITERS {
        let mut n = writer;
        while let Some(m) = store.machine_by_mac(mac(n)).await.unwrap() {
            let live = store.live_session(m.id).await.unwrap().unwrap();
            assert!(live.current.chap.is_some());
            assert_eq!(store.versions(m.image.unwrap()).await.unwrap().len(), 1);
            assert_eq!(store.setting(&format!("k{n}")).await.unwrap(), Some(n.to_string()));
            n += WRITERS;
        }
        each.push(n / WRITERS);
    }
    let (total, one) = (each.iter().sum::<u32>(), PageRequest { page: 1, per_page: 1 });
    assert_eq!(store.events(None, u32::MAX, None).await.unwrap().len(), total as usize);
    assert_eq!(store.audit(one).await.unwrap().total, u64::from(total));
    assert_eq!(store.images(one).await.unwrap().total, u64::from(total));
    assert_eq!(store.machines(&MachineFilter::default(), one).await.unwrap().total, u64::from(total));
    assert_eq!(store.session_counts().await.unwrap().starting, u64::from(total));
    let seen = store.seen(PageRequest { page: 1, per_page: 1000 }).await.unwrap().items;
    assert_eq!(seen.iter().map(|s| s.count).sum::<u64>(), u64::from(total), "sights of strangers");
    each
}

#[test]
fn a_kill_in_the_middle_of_groups_loses_nothing_that_was_answered_and_halves_nothing() {
    const NAME: &str = "killed in groups";
    const TEST: &str =
        "group::a_kill_in_the_middle_of_groups_loses_nothing_that_was_answered_and_halves_nothing";
    if let Some(folder) = crash::role(NAME) {
        crash::block_on(async {
            let store = open(&folder).await;
            let there = whole_batches_of_each(&store).await;
            let writers = (0..WRITERS).zip(there).map(|(writer, there)| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in there.. {
                        store.commit(batch(writer + n * WRITERS)).await.unwrap();
                        eprintln!("committed {writer} {} {}", n + 1, synced(&store));
                    }
                })
            });
            for writer in writers.collect::<Vec<_>>() {
                writer.await.unwrap();
            }
        });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut said = vec![0; WRITERS as usize];
    let (mut commits, mut syncs, mut unsaid, mut checked) = (0, 0, 0, 0);
    let rounds = rounds(40, 300);
    for round in 0..rounds {
        let mut child = crash::command(std::env::current_exe().unwrap().to_str().unwrap());
        crash::as_role(&mut child, NAME, TEST, folder.path());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut last = 0;
        let mut hear = |line: &str| -> bool {
            let Some(numbers) = line.strip_prefix("committed ") else { return false };
            let Ok(numbers) = numbers.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>() else {
                return false;
            };
            let [writer, count, synced] = numbers[..] else { return false };
            said[writer as usize] = count;
            commits += 1;
            last = synced.max(last);
            true
        };
        for _ in 0..=rand::random_range(0..3 * WRITERS) {
            let line = lines.next().unwrap_or_else(|| panic!("round {round}: the child ended by itself"));
            assert!(hear(&line), "round {round}: {line}");
        }
        let kill_at = Instant::now() + Duration::from_micros(rand::random_range(0..8000));
        while Instant::now() < kill_at {
            std::hint::spin_loop(); // Finer than a timer.
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            hear(&line);
        }
        syncs += last;
        if round % 4 == 3 || round + 1 == rounds {
            crash::block_on(async {
                let store = open(folder.path()).await;
                for (writer, (there, said)) in
                    whole_batches_of_each(&store).await.into_iter().zip(&mut said).enumerate()
                {
                    assert!(
                        there == *said || there == *said + 1,
                        "round {round}, writer {writer}: {said} were answered, {there} are there"
                    );
                    unsaid += there - *said;
                    *said = there;
                }
                checked += 1;
                store.shutdown().await;
            });
        }
    }
    println!("{rounds} kills, {commits} answers in {syncs} syncs, {checked} whole checks, {unsaid} unsaid");
    assert!(syncs < commits, "nothing was grouped");
}

/// A power cut during a sync can leave any part of the log, in any order of sectors.
#[tokio::test]
async fn a_power_cut_in_a_groups_sync_leaves_all_of_the_group_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.commit(batch(0)).await.unwrap();
    let log = folder.path().join("ggnet.db-wal");
    let before = fs::metadata(&log).unwrap().len();
    let synced_before = synced(&store);
    let answers = answers(queue(&store, (1..6).map(batch)).await).await;
    assert_eq!(kinds(&answers), [None; 5]);
    assert_eq!(synced(&store) - synced_before, 1);
    let after = fs::metadata(&log).unwrap().len();
    assert!(after > before + 8192, "the group is in the log, from {before} to {after}");

    // How many batches are there after the restart.
    let left = async |change: &dyn Fn(&Path)| {
        let copy = tempfile::tempdir().unwrap();
        for name in ["ggnet.db", "ggnet.db-wal", "ggnet.key"] {
            fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        change(&copy.path().join("ggnet.db-wal"));
        let store = open(copy.path()).await;
        let there = crash::whole_batches(&store).await;
        store.shutdown().await;
        there
    };
    assert_eq!(left(&|_| {}).await, 6);
    let step = usize::try_from((after - before) / 24).unwrap();
    for at in (before..after).step_by(step).chain([after - 1]) {
        let cut = left(&|log| fs::File::options().write(true).open(log).unwrap().set_len(at).unwrap()).await;
        assert_eq!(cut, 1, "cut at {at} of {after}");
        let tear = |log: &Path| {
            let mut log = fs::File::options().write(true).open(log).unwrap();
            let sector = at / 512 * 512;
            log.seek(SeekFrom::Start(sector.max(before))).unwrap();
            log.write_all(&[0x5a; 512]).unwrap();
        };
        assert_eq!(left(&tear).await, 1, "torn at {at} of {after}");
    }
    store.shutdown().await;
}
