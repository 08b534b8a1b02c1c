//! What the world does to a store: its process is killed in the middle of commits, its disk fills up, its file system turns
//! read-only. Such a test runs itself again in another process, which finds its part in an environment variable.
#![expect(
    clippy::disallowed_methods,
    reason = "these processes are the test's subject and are waited for here"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ggnet_backends::store::sqlite::SqliteStore;
use ggnet_core::{
    ErrorKind,
    nouns::SessionState,
    ports::{Batch, Health, PageRequest, Store, Write},
    testkit::{
        suite::store::{audit, event, image, mac, machine, seen, session, version},
        tier::rounds,
    },
};

use super::{
    config,
    group::{answers, kinds, queue},
    open,
};

const ROLE: &str = "GGNET_STORE_TEST_ROLE";
const FOLDER: &str = "GGNET_STORE_TEST_FOLDER";

/// The folder to work in, when this process was started to play `role`.
pub fn role(role: &str) -> Option<PathBuf> {
    (std::env::var(ROLE).ok()? == role).then(|| std::env::var_os(FOLDER).unwrap().into())
}

/// A program that this machine must have.
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// Lets a command that ends in this test program play `role`, which is part of `test`.
pub fn as_role(command: &mut Command, role: &str, test: &str, folder: &Path) {
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role).env(FOLDER, folder);
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// The same on one thread: nothing is answered while the test is at work, such as when it queues a group.
fn block_on_alone<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The batches tell of so many unknown machines, again and again: a store keeps only the latest thousand.
const STRANGERS: u32 = 100;

/// Batch `n`: seven traces, all or none of them.
pub fn batch(n: u32) -> Batch {
    let (i, mut m) = (image(&format!("i{n}")), machine(n));
    let v = version(i.id, 1);
    m.image = Some(i.id);
    let live = session(m.id, &v, SessionState::Starting);
    Batch::new()
        .write(Write::Image(i))
        .write(Write::Version(v))
        .write(Write::Machine(m))
        .write(Write::Session(Box::new(live)))
        .write(Write::Seen(seen(n % STRANGERS)))
        .write(Write::Setting { key: format!("k{n}"), value: n.to_string() })
        .event(event(i64::from(n)))
        .audit(audit(&n.to_string(), 1))
}

/// How many of the batches 0, 1, 2 … are there; each must be there whole, and nothing beside them.
pub async fn whole_batches(store: &SqliteStore) -> u32 {
    let mut n = 0;
    while let Some(m) = store.machine_by_mac(mac(n)).await.unwrap() {
        let live = store.live_session(m.id).await.unwrap().unwrap();
        assert!(live.current.chap.is_some());
        assert_eq!(store.versions(m.image.unwrap()).await.unwrap().len(), 1);
        assert_eq!(store.setting(&format!("k{n}")).await.unwrap(), Some(n.to_string()));
        n += 1;
    }
    let one = PageRequest { page: 1, per_page: 1 };
    let events = store.events(None, u32::MAX, None).await.unwrap();
    assert_eq!(events.len(), n as usize);
    assert_eq!(store.audit(one).await.unwrap().total, u64::from(n));
    assert_eq!(store.images(one).await.unwrap().total, u64::from(n));
    assert_eq!(store.seen(one).await.unwrap().total, u64::from(n.min(STRANGERS)));
    for stranger in 0..n.min(STRANGERS) {
        let times = store.seen_machine(mac(stranger)).await.unwrap().unwrap().count;
        assert_eq!(
            times,
            u64::from((n - stranger).div_ceil(STRANGERS)),
            "stranger {stranger} of {n} batches"
        );
    }
    assert_eq!(store.session_counts().await.unwrap().starting, u64::from(n));
    assert_eq!(store.setting(&format!("k{n}")).await.unwrap(), None);
    n
}

#[test]
fn a_kill_in_the_middle_of_commits_loses_nothing() {
    const NAME: &str = "killed";
    if let Some(folder) = role(NAME) {
        block_on(async {
            let store = open(&folder).await;
            let first = whole_count(&store).await;
            for n in first.. {
                store.commit(batch(n)).await.unwrap();
                eprintln!("committed {n}");
            }
        });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut kept, mut unsaid, mut checked) = (0, 0, 0);
    let rounds = rounds(220, 1000);
    for round in 0..rounds {
        let mut child = command(std::env::current_exe().unwrap().to_str().unwrap());
        as_role(&mut child, NAME, "crash::a_kill_in_the_middle_of_commits_loses_nothing", folder.path());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        // So many commits, and then a part of one.
        for _ in 0..=rand::random_range(0..4) {
            let line = lines.next().unwrap_or_else(|| panic!("round {round}: the child ended by itself"));
            kept = said(&line).unwrap_or_else(|| panic!("round {round}: {line}"));
        }
        let kill_at = Instant::now() + Duration::from_micros(rand::random_range(0..4000));
        while Instant::now() < kill_at {
            std::hint::spin_loop(); // Finer than a timer.
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            kept = said(&line).unwrap_or(kept);
        }
        // Every few rounds by a store that is then closed properly; in the others the next child finds what the kill left.
        if round % 4 == 3 || round + 1 == rounds {
            block_on(async {
                let store = open(folder.path()).await;
                let there = whole_batches(&store).await;
                assert!(
                    there == kept + 1 || there == kept + 2,
                    "round {round}: {kept} was committed, {there} are there"
                );
                unsaid += u32::from(there == kept + 2);
                checked += 1;
                store.shutdown().await;
            });
        }
    }
    println!(
        "{rounds} kills, {} batches, {checked} whole checks, {unsaid} times one more than was said",
        kept + 1
    );
}

fn said(line: &str) -> Option<u32> {
    line.strip_prefix("committed ")?.parse().ok()
}

/// How many batches there are, by the counters alone: every one made one event, one audit row and one session.
async fn whole_count(store: &SqliteStore) -> u32 {
    let one = PageRequest { page: 1, per_page: 1 };
    let total = store.audit(one).await.unwrap().total;
    assert_eq!(store.session_counts().await.unwrap().starting, total);
    assert_eq!(store.images(one).await.unwrap().total, total);
    u32::try_from(total).unwrap()
}

/// Runs `role` of `test` as root of a new mount namespace, where it can mount file systems of its own.
fn in_a_mount_namespace(role: &str, test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command("unshare");
    child.args(["-Urm", "--"]).arg(std::env::current_exe().unwrap());
    as_role(&mut child, role, test, folder.path());
    let output = child.output().expect("unshare is missing: apt-get install util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "failed in a mount namespace; if unshare was refused, allow user namespaces (sysctl \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces>0) \
         or run the tests as root:\n{said}\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn mount(options: &str, folder: &Path) {
    let output = command("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).output();
    let output = output.expect("mount is missing: apt-get install mount");
    assert!(output.status.success(), "mount -o {options}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes until nothing more goes in.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [65536, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_is_full_and_nothing_else() {
    const NAME: &str = "full";
    let Some(folder) = role(NAME) else {
        return in_a_mount_namespace(NAME, "crash::a_full_disk_is_full_and_nothing_else");
    };
    mount("size=16m", &folder);
    block_on(async {
        let store = open(&folder).await;
        let ballast = folder.join("ballast");
        let mut n = 0;
        for round in 0..5 {
            for _ in 0..3 {
                store.commit(batch(n)).await.unwrap();
                n += 1;
            }
            fill(&ballast);
            // The log may have room left within its file; soon it has not.
            let e = loop {
                match store.commit(batch(n)).await {
                    Ok(_) => n += 1,
                    Err(e) => break e,
                }
            };
            assert_eq!(e.kind(), ErrorKind::Full, "round {round}: {}", e.report());
            assert!(e.hint().unwrap().contains("Free space") && !e.is_retryable());
            assert!(matches!(store.health().await, Health::Blocked(why) if why.contains("No space")));
            let group = answers(queue(&store, (n..n + 5).map(batch)).await).await;
            assert_eq!(kinds(&group), [Some(ErrorKind::Full); 5]);
            // Everything that was acknowledged reads, and nothing of what was not.
            assert_eq!(whole_batches(&store).await, n);
            if round == 2 {
                // A start on the full disk reads everything; what was logged stays logged.
                assert_eq!(whole_batches(&open(&folder).await).await, n);
            }
            fs::remove_file(&ballast).unwrap();
            store.commit(batch(n)).await.unwrap();
            n += 1;
            assert_eq!(store.health().await, Health::Up);
            assert_eq!(whole_batches(&store).await, n);
        }
        store.shutdown().await;
        assert_eq!(whole_batches(&open(&folder).await).await, n);

        // A first start without any space.
        let empty = folder.join("empty");
        fs::create_dir(&empty).unwrap();
        fill(&ballast);
        let e = SqliteStore::open(config(&empty)).await.err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Full, "{}", e.report());
        fs::remove_file(&ballast).unwrap();
        assert_eq!(whole_batches(&open(&empty).await).await, 0);
    });
}

/// The end of batch `n`'s session: what a stop records.
async fn end_of(store: &SqliteStore, n: u32) -> Batch {
    let machine = store.machine_by_mac(mac(n)).await.unwrap().unwrap();
    let mut session = store.live_session(machine.id).await.unwrap().unwrap();
    session.state = SessionState::Stopped;
    session.ended_at = Some(session.started_at);
    let ends = Batch::new().write(Write::Session(Box::new(session))).event(event(i64::from(n)));
    ends.audit(audit("end", 1)).from_reserve()
}

async fn end(store: &SqliteStore, n: u32) -> ggnet_core::Result<()> {
    store.commit(end_of(store, n).await).await.map(|_| ())
}

#[test]
fn on_a_full_disk_what_frees_space_is_recorded_and_strangers_use_none_of_the_reserve() {
    const NAME: &str = "reserve";
    let Some(folder) = role(NAME) else {
        return in_a_mount_namespace(
            NAME,
            "crash::on_a_full_disk_what_frees_space_is_recorded_and_strangers_use_none_of_the_reserve",
        );
    };
    mount("size=32m", &folder);
    block_on_alone(async {
        let (store, ballast) = (open(&folder).await, folder.join("ballast"));
        for n in 0..200 {
            store.commit(batch(n)).await.unwrap();
        }
        fill(&ballast);
        let sight = |n: u32| Batch::new().write(Write::Seen(seen(1000 + n)));
        let mut strangers = 0;
        while store.commit(sight(strangers)).await.is_ok() {
            strangers += 1;
        }
        for n in 0..200 {
            end(&store, n).await.unwrap_or_else(|e| panic!("end {n}: {}", e.report()));
            assert_eq!(store.commit(sight(strangers)).await.unwrap_err().kind(), ErrorKind::Full);
            if n == 100 {
                // Also after a kill, on the full disk.
                end(&open(&folder).await, 150).await.unwrap();
                break;
            }
        }
        // Also together: what frees space does not go with what does not, nor the other way round.
        let full = Some(ErrorKind::Full);
        for n in (160..190).step_by(3) {
            let (first, second) = (end_of(&store, n).await, end_of(&store, n + 1).await);
            let group = [sight(strangers), first, sight(strangers), second, end_of(&store, n).await];
            let kinds = kinds(&answers(queue(&store, group).await).await);
            // The last one comes too late.
            assert_eq!(kinds, [full, None, full, None, Some(ErrorKind::Conflict)], "ends {n}");
        }
        assert!(matches!(store.health().await, Health::Blocked(why) if why.contains("No space")));
        fs::remove_file(&ballast).unwrap();
        assert_eq!(store.health().await, Health::Up, "there is room again, and nothing was written since");
        store.commit(sight(strangers)).await.unwrap();
        let taken = fs::metadata(folder.join("ggnet.db-reserve")).unwrap();
        assert_eq!(
            (taken.len(), std::os::unix::fs::PermissionsExt::mode(&taken.permissions()) & 0o777),
            (8 << 20, 0o600)
        );
    });
}

#[test]
fn a_file_system_mounted_read_only_is_a_matter_of_permission() {
    const NAME: &str = "read-only";
    let Some(folder) = role(NAME) else {
        return in_a_mount_namespace(
            NAME,
            "crash::a_file_system_mounted_read_only_is_a_matter_of_permission",
        );
    };
    mount("size=32m", &folder);
    block_on(async {
        let store = open(&folder).await;
        store.commit(batch(0)).await.unwrap();
        assert_eq!(store.health().await, Health::Up);
        store.shutdown().await;
        mount("remount,ro", &folder);
        let e = SqliteStore::open(config(&folder)).await.err().expect("it opened");
        assert_eq!(e.kind(), ErrorKind::Permission, "{}", e.report());
        assert!(e.message().contains("ggnet.db") && e.hint().unwrap().contains("write"), "{e}");
        mount("remount,rw", &folder);
        assert_eq!(whole_batches(&open(&folder).await).await, 1);
    });
}
