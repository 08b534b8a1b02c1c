//! A process that is killed between any two changes of the tree. The child is this program again; an environment variable specifies its
//! work and after how many changes it kills itself; the kernel keeps what it did.
#![expect(clippy::disallowed_methods, reason = "the child is the test's subject and is waited for here")]

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ggnet_backends::target::lio_configfs::Hook;
use ggnet_core::{
    block::Disk,
    nouns::Iqn,
    ports::{Completeness, Removal, TargetBackend},
    testkit::suite::{Fixture as _, TargetFixture as _, Wanted, instance, iqn_prefix},
};

use crate::kernel::{Kernel, assert_same, backend, block_on, spec, tree};

const SETUP: &str = "GGNET_TEST_LIO_VICTIM";
const SECRETS: [&str; 2] = ["TopSecret1234567", "Other12345678901"];

/// The target that the child works on: the same for parent and child.
fn target(file: &Path, variant: usize) -> Wanted {
    let n = u32::try_from(variant).unwrap() + 1;
    let mut spec = spec(file, n, Some(SECRETS[variant]));
    spec.id = "t-victim".parse().unwrap();
    spec.iqn = Iqn::target(&iqn_prefix(), &instance(), &spec.id).unwrap();
    spec.luns[0].serial = "5e71a1".into();
    spec
}

/// The child's part; in a normal test run it does nothing.
#[test]
fn victim() {
    let Ok(setup) = std::env::var(SETUP) else { return };
    let words: Vec<&str> = setup.split(' ').collect();
    let [file, what, left] = words[..] else { panic!("{setup}") };
    let left = AtomicU32::new(left.parse().unwrap());
    let hook: Hook = Arc::new(move |_| {
        if left.fetch_sub(1, Ordering::SeqCst) == 0 {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
            // The signal is delivered with a delay.
            std::thread::park();
        }
        Ok(())
    });
    block_on(async {
        let port = backend(instance(), Some(hook));
        match what {
            "remove" => port.remove(&"t-victim".parse().unwrap(), Removal::Force).await.unwrap(),
            variant => {
                let wanted = target(Path::new(file), variant.parse().unwrap());
                port.ensure(&wanted, &wanted.disks).await.unwrap();
            }
        }
    });
}

/// Whether it was killed before it had finished.
fn killed_after(n: u32, file: &Path, what: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::victim", "--test-threads=1"])
        .env(SETUP, format!("{} {what} {n}", file.display()))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}

/// Lets a child do `what` to a target in the state `from`, killed after every number of changes; then `ensure` must repair it, and `remove`
/// must remove it. Another target is served all the time. Returns the number of kills.
fn killed_everywhere(from: Option<usize>, what: &str) -> u32 {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let mut files = Vec::new();
        for key in ["victim", "bystander"] {
            let Disk::File { path, .. } = kernel.disk(key, 1 << 20).await else { panic!("a file") };
            files.push(path);
        }
        let beside = spec(&files[1], 9, None);
        let endpoint = port.ensure(&beside, &beside.disks).await.unwrap();
        let client = kernel.connect(&endpoint, &beside.access).await.unwrap();
        let alone = tree();
        let wanted = target(&files[0], what.parse().unwrap_or(0));
        port.ensure(&wanted, &wanted.disks).await.unwrap();
        let both = tree();
        port.remove(&wanted.id, Removal::Force).await.unwrap();
        for n in 0.. {
            let mut killed = false;
            for finish in [true, false] {
                if let Some(from) = from {
                    let from = target(&files[0], from);
                    port.ensure(&from, &from.disks).await.unwrap();
                }
                killed |= killed_after(n, &files[0], what);
                let listed = port.list().await.unwrap();
                assert!(
                    tree() == alone || listed.iter().any(|l| l.id == wanted.id),
                    "after {n}: something is there and not listed: {listed:?}"
                );
                let whole = |l: &&ggnet_core::ports::Listed| l.completeness == Completeness::Whole;
                assert!(listed.iter().filter(whole).any(|l| l.id == beside.id), "after {n}: {listed:?}");
                if finish {
                    port.ensure(&wanted, &wanted.disks).await.unwrap();
                    assert_same(&tree(), &both, &format!("{what} killed after {n} changes, then ensured"));
                    let reached = kernel.connect(&endpoint_of(&endpoint, &wanted), &wanted.access).await;
                    reached.unwrap().logout().await.unwrap();
                }
                port.remove(&wanted.id, Removal::Force).await.unwrap();
                assert_same(&tree(), &alone, &format!("{what} killed after {n} changes, then removed"));
                client.read(0, 512).await.expect("the bystander is served");
            }
            if !killed {
                return n;
            }
        }
        unreachable!("the child is through at some time")
    })
}

fn endpoint_of(
    other: &ggnet_core::ports::TargetEndpoint,
    spec: &Wanted,
) -> ggnet_core::ports::TargetEndpoint {
    ggnet_core::ports::TargetEndpoint { iqn: spec.iqn.clone(), ..other.clone() }
}

#[test]
fn an_ensure_that_was_killed_anywhere_is_made_right() {
    let places = killed_everywhere(None, "0");
    assert!(places > 20, "{places}");
}

#[test]
fn a_change_that_was_killed_anywhere_is_made_right() {
    let places = killed_everywhere(Some(0), "1");
    assert!(places > 8, "{places}");
}

#[test]
fn a_remove_that_was_killed_anywhere_is_made_right() {
    let places = killed_everywhere(Some(0), "remove");
    assert!(places > 10, "{places}");
}
