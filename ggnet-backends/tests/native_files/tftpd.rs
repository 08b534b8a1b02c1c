//! The boot file store "tftpd-hpa" and Debian's `in.tftpd` on a link, and folders with problems.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use ggnet_backends::bootfile::{
    loaders::{DEBIAN_IPXE_DIR, read_loaders},
    tftpd_hpa::{TftpdHpa, TftpdHpaConfig},
};
use ggnet_core::{
    boot_text::{
        ipxe::model::{self, Ending},
        paths::chain_file,
    },
    error::ErrorKind,
    ports::{BootBundle, BootFileStore as _, Completeness, Health},
    testkit::{suite::instance, tier::rounds},
};
use tempfile::TempDir;

use crate::{
    killed::{done, run_and_kill, setup},
    netns::{Link, Running, inside, with_namespaces},
    sandbox::Mounted,
};

const SERVER: &str = "10.77.0.1";
const MAC: &str = "52:54:00:12:34:56";

fn config(root: &Path) -> TftpdHpaConfig {
    TftpdHpaConfig { root: root.into(), ask: false, ..TftpdHpaConfig::default() }
}

async fn open(root: &Path) -> TftpdHpa {
    TftpdHpa::open(config(root), instance()).await.unwrap()
}

fn bundle(id: &str, files: &[(&str, &[u8])]) -> BootBundle {
    let files = files.iter().map(|(p, b)| (p.parse().unwrap(), Bytes::copy_from_slice(b))).collect();
    BootBundle { id: id.parse().unwrap(), files }
}

/// A folder that in.tftpd's user can enter.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples/tftp").join(name)
}

/// The content of a folder, without following links.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            all.extend(names(&path));
        }
        all.push(path);
    }
    all.sort();
    all
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn in_tftpd(dir: &Path) -> Running {
    let all_users = std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295");
    let user = if all_users { "tftp" } else { "root" };
    let address = format!("{SERVER}:69");
    let line = ["--foreground", "--user", user, "--address", &address, "--secure", dir.to_str().unwrap()];
    let started = Running::start("tftpd-hpa", "in.tftpd", &line.map(str::to_owned));
    while !std::fs::read_to_string("/proc/thread-self/net/udp").unwrap().contains(":0045 ") {
        std::thread::sleep(Duration::from_millis(10));
    }
    started
}

/// The file that tftp-hpa on the other host gets.
fn get(link: &Link, path: &str) -> Vec<u8> {
    let path = path.to_owned();
    inside(&link.other, move || {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("out");
        let output = Command::new("tftp")
            .args(["-m", "binary", SERVER, "69", "-c", "get", &path])
            .arg(&file)
            .output()
            .unwrap_or_else(|e| panic!("tftp: {e}; apt-get install tftp-hpa"));
        assert!(output.status.success() && output.stderr.is_empty(), "tftp get {path}: {output:?}");
        std::fs::read(file).unwrap()
    })
}

#[test]
fn the_example_files_lead_every_machine_to_its_script() {
    with_namespaces("tftpd::the_example_files_lead_every_machine_to_its_script", || {
        let (link, dir) = (Link::new(), folder());
        let root = dir.path().to_owned();
        std::fs::create_dir(root.join("pxelinux.cfg")).unwrap();
        for name in ["boot.ipxe", "pxelinux.cfg/default"] {
            std::fs::copy(example(name), root.join(name)).unwrap();
        }
        let script = chain_file(MAC.parse().unwrap()).unwrap();
        let own = b"#!ipxe\necho of this machine\n";
        let loaders = block_on(async {
            let store = open(&root).await;
            let loaders = read_loaders(Path::new(DEBIAN_IPXE_DIR)).await.unwrap();
            assert!(loaders.missing.is_empty(), "{:?}", loaders.hint);
            store.ensure(&loaders.bundle).await.unwrap();
            store.ensure(&bundle("pc", &[(script.as_str(), own)])).await.unwrap();
            loaders.bundle
        });
        let _server = inside(&link.server, move || in_tftpd(&root));

        let first = get(&link, "boot.ipxe");
        assert_eq!(first, std::fs::read(example("boot.ipxe")).unwrap());
        let first = String::from_utf8(first).unwrap();
        let settings = |mac: &str| {
            [("netX/mac", mac), ("netX/ip", "10.77.0.2"), ("next-server", SERVER)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into()
        };
        let trace = model::run(&first, settings(MAC), &mut |_| true);
        let Ending::Replaced { url } = trace.ending else { panic!("{:?}", trace.ending) };
        let path = url.strip_prefix(&format!("tftp://{SERVER}/")).unwrap();
        assert_eq!(path, script.as_str());
        assert_eq!(get(&link, path), own);
        // A machine without one continues with its next boot device.
        let trace = model::run(&first, settings("52:54:00:00:00:99"), &mut |step| step.name != "chain");
        assert_eq!(trace.ending, Ending::Exit { status: 1 });

        let pxelinux = String::from_utf8(get(&link, "pxelinux.cfg/default")).unwrap();
        assert_eq!(pxelinux, std::fs::read_to_string(example("pxelinux.cfg/default")).unwrap());
        for keyword in ["KERNEL ", "INITRD "] {
            let file = pxelinux.lines().find_map(|l| l.trim().strip_prefix(keyword)).unwrap();
            assert!(!get(&link, file).is_empty(), "{file}");
        }
        for (path, bytes) in &loaders.files {
            assert!(get(&link, path.as_str()) == *bytes, "{path}");
        }
    });
}

#[test]
fn health_tells_who_serves_the_folder() {
    with_namespaces("tftpd::health_tells_who_serves_the_folder", || {
        let (link, dir, other) = (Link::new(), folder(), folder());
        let (root, other_root) = (dir.path().to_owned(), other.path().to_owned());
        inside(&link.server, move || {
            let server = format!("{SERVER}:69").parse().unwrap();
            let store = |root: &Path| {
                let config = TftpdHpaConfig { root: root.into(), server, ..TftpdHpaConfig::default() };
                block_on(TftpdHpa::open(config, instance())).unwrap()
            };
            let health = |store: &TftpdHpa| block_on(store.health());
            let store = store(&root);
            let Health::Down(why) = health(&store) else { panic!("nobody serves it") };
            assert!(why.contains("tftpd-hpa") && why.contains(&server.to_string()), "{why}");
            {
                let _another = in_tftpd(&other_root);
                let Health::Down(why) = health(&store) else { panic!("another folder is served") };
                assert!(why.contains("TFTP_DIRECTORY") && why.contains(root.to_str().unwrap()), "{why}");
            }
            let _server = in_tftpd(&root);
            assert_eq!(health(&store), Health::Up);
            std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
            let Health::Down(why) = health(&store) else { panic!("in.tftpd's user may not go in") };
            assert!(why.contains("chmod o+rx"), "{why}");
        });
    });
}

#[tokio::test]
async fn a_planted_link_is_followed_nowhere() {
    let (dir, outside) = (folder(), folder());
    std::fs::write(outside.path().join("pc.ipxe"), b"theirs").unwrap();
    symlink(outside.path(), dir.path().join("machines")).unwrap();
    symlink(outside.path().join("pc.ipxe"), dir.path().join("file.ipxe")).unwrap();
    let store = open(dir.path()).await;
    for path in ["machines/pc.ipxe", "machines/new/pc.ipxe", "file.ipxe"] {
        let e = store.ensure(&bundle("pc", &[("ok/x", b"1"), (path, b"ours")])).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
        assert!(e.report().contains(path), "{}", e.report());
        assert_eq!(store.read(&path.parse().unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.list().await.unwrap(), [], "nothing is left of a refused bundle");
        assert_eq!(store.read(&"ok/x".parse().unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);
        store.remove(&"pc".parse().unwrap()).await.unwrap();
    }
    // Within our own folder, too.
    store.ensure(&bundle("pc", &[("x", b"1")])).await.unwrap();
    let home = dir.path().join(format!(".ggnet/{}/pc", instance()));
    std::fs::remove_dir_all(&home).unwrap();
    symlink(outside.path(), &home).unwrap();
    let e = store.ensure(&bundle("pc", &[("pc.ipxe", b"ours")])).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    drop(store);
    open(dir.path()).await;
    assert_eq!(std::fs::read(outside.path().join("pc.ipxe")).unwrap(), b"theirs");
    assert_eq!(names(outside.path()).len(), 1, "nothing was written outside");
}

#[tokio::test]
async fn what_somebody_else_put_there_is_not_replaced() {
    let dir = folder();
    std::fs::write(dir.path().join("undionly.kpxe"), b"theirs").unwrap();
    let store = open(dir.path()).await;
    let e = store.ensure(&bundle("loaders", &[("undionly.kpxe", b"ours")])).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    assert!(e.hint().unwrap().contains(dir.path().to_str().unwrap()), "{e:?}");
    store.remove(&"loaders".parse().unwrap()).await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("undionly.kpxe")).unwrap(), b"theirs");
}

#[tokio::test]
async fn a_read_only_folder_is_a_permission_that_names_it() {
    let dir = folder();
    let store = open(dir.path()).await;
    store.ensure(&bundle("pc", &[("machines/pc.ipxe", b"old")])).await.unwrap();
    let mounted = Mounted::read_only(dir.path().to_str().unwrap());
    let root = mounted.path();
    let e = TftpdHpa::open(config(&root), instance()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Permission, "{}", e.report());
    assert!(e.message().contains(root.to_str().unwrap()) && e.hint().unwrap().contains("chown"), "{e:?}");

    let missing = dir.path().join("missing");
    let e = TftpdHpa::open(config(&missing), instance()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    assert!(e.hint().unwrap().contains("apt-get install tftpd-hpa"), "{e:?}");
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_files() {
    let mounted = Mounted::memory(256 << 10);
    let store = open(&mounted.path()).await;
    let old = bundle("pc", &[("machines/a", &[1; 4096]), ("machines/b", &[2; 4096])]);
    store.ensure(&old).await.unwrap();
    let before = names(&mounted.path());
    let new = bundle("pc", &[("machines/a", &[3; 4096]), ("machines/b", &[4; 400 << 10])]);
    for (id, files) in [("pc", &new.files), ("other", &bundle("x", &[("machines/c", &[5; 400 << 10])]).files)]
    {
        let e =
            store.ensure(&BootBundle { id: id.parse().unwrap(), files: files.clone() }).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Full, "{}", e.report());
        assert!(e.message().contains(mounted.path().to_str().unwrap()), "{}", e.report());
        assert_eq!(names(&mounted.path()), before, "nothing is left of it");
    }
    for (path, bytes) in &old.files {
        assert_eq!(store.read(path).await.unwrap(), *bytes);
    }
    let listed = store.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].digest), (1, Some(old.digest())));
    assert_eq!(listed[0].completeness, Completeness::Whole);
    store.remove(&old.id).await.unwrap();
    store.ensure(&bundle("pc", &[("machines/a", &[3; 100 << 10])])).await.unwrap();
}

#[tokio::test]
async fn two_instances_in_one_folder_leave_each_other_alone() {
    let dir = folder();
    let (a, b) = (
        open(dir.path()).await,
        TftpdHpa::open(config(dir.path()), "ffffffff".parse().unwrap()).await.unwrap(),
    );
    let (of_a, of_b) = (bundle("pc", &[("machines/a", b"a")]), bundle("pc", &[("machines/b", b"b")]));
    a.ensure(&of_a).await.unwrap();
    b.ensure(&of_b).await.unwrap();
    let e = b.ensure(&bundle("pc", &[("machines/a", b"b")])).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    assert!(e.message().contains(instance().as_str()), "{}", e.report());
    for (store, own) in [(&a, &of_a), (&b, &of_b)] {
        let listed = store.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].digest), (1, Some(own.digest())));
    }
    assert_eq!(b.read(&"machines/a".parse().unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);
    b.remove(&"pc".parse().unwrap()).await.unwrap();
    assert_eq!(a.read(&"machines/a".parse().unwrap()).await.unwrap(), "a");
    let of_b = TftpdHpa::open(config(dir.path()), "ffffffff".parse().unwrap()).await.unwrap();
    assert_eq!(of_b.list().await.unwrap(), []);
    assert_eq!(std::fs::read(dir.path().join("machines/a")).unwrap(), b"a", "as a client sees it");
}

const VARIANTS: [(&str, u8, usize); 2] = [("machines/extra", 1, 300_000), ("pi/x/y/z", 2, 200_000)];

/// Two bundles that share one path and differ in everything else.
fn variant(n: usize) -> BootBundle {
    let (path, byte, size) = VARIANTS[n % 2];
    bundle("pc", &[("machines/pc.ipxe", &vec![byte; size]), (path, &[byte])])
}

#[tokio::test]
async fn whoever_is_killed_within_a_call_leaves_nothing_that_is_not_mended() {
    if let Some(dir) = setup() {
        let store = open(&dir).await;
        for n in 0.. {
            store.ensure(&variant(n)).await.unwrap();
            if n % 5 == 4 {
                store.remove(&"pc".parse().unwrap()).await.unwrap();
            }
            done();
        }
    }
    let dir = folder();
    for round in 0..rounds(40, 400) {
        let test = "tftpd::whoever_is_killed_within_a_call_leaves_nothing_that_is_not_mended";
        run_and_kill(test, dir.path(), Duration::from_micros(round * 700));
        // A client gets a whole file: one of the two, or nothing.
        let whole: Vec<Bytes> = (0..2).flat_map(|n| variant(n).files.into_values()).collect();
        if let Ok(seen) = std::fs::read(dir.path().join("machines/pc.ipxe")) {
            assert!(whole.iter().any(|w| *w == seen), "round {round}: {} bytes", seen.len());
        }
        let store = open(dir.path()).await;
        let half = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(".new");
        assert!(!names(dir.path()).iter().any(half), "round {round}: a half-written file is left");
        for listed in store.list().await.unwrap() {
            assert_eq!(listed.id.as_str(), "pc", "round {round}");
            let known = (0..2).any(|n| listed.digest == Some(variant(n).digest()));
            assert!(known || listed.completeness == Completeness::Partial, "round {round}: {listed:?}");
        }
        let want = variant(usize::try_from(round).unwrap());
        store.ensure(&want).await.unwrap();
        let listed = store.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].digest), (1, Some(want.digest())), "round {round}");
        for path in want.files.keys() {
            // With the child's umask no other user could read its files.
            let mode = dir.path().join(path.as_str()).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644, "round {round}: {path}");
        }
        let folder = dir.path().join("machines").metadata().unwrap().permissions().mode();
        assert_eq!(folder & 0o777, 0o755, "round {round}");
    }
    let store = open(dir.path()).await;
    store.remove(&"pc".parse().unwrap()).await.unwrap();
    let left: Vec<_> = names(dir.path()).into_iter().filter(|p| p.is_file() || p.is_symlink()).collect();
    assert_eq!(left.len(), 1, "the sign of life alone: {left:?}");
}
