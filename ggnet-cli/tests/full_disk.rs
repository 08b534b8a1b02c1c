//! The real server on a completely full disk (ext4, XFS, btrfs): it reports that machines cannot boot, imports that do not fit fail,
//! sessions can be stopped, machines and images removed, and when there is space again everything works again. Also on a disk that fails,
//! whose file system the kernel makes read-only.
//!
//! As root: each test mounts a file system of its own, in a mount namespace that ends with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "programs of the test, and waiting for them")]

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use support::Server;

const PATIENCE: Duration = Duration::from_secs(60);
/// Set in the process that was started in the mount namespace.
const INSIDE: &str = "GGNET_TEST_MOUNT_NAMESPACE";
const MIB: u64 = 1 << 20;

fn sh(script: &str, arguments: &[&str]) -> String {
    let out = Command::new("sh").args(["-ec", script, "sh"]).args(arguments).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fills the disk except for `leave` bytes; with 0 completely.
fn fill(ballast: &Path, leave: u64) {
    let dir = ballast.parent().unwrap().to_str().unwrap().to_owned();
    let free = || sh("df --output=avail -B1 \"$1\" | tail -1", &[&dir]).trim().parse::<u64>().unwrap();
    let mut n = 0;
    let mut size = 64 * MIB;
    while size >= 4096 {
        let part = format!("{}-{n}", ballast.display());
        let fits = free() > leave + size;
        let taken = (leave == 0 || fits)
            && Command::new("fallocate")
                .args(["-l", &size.to_string(), &part])
                .output()
                .unwrap()
                .status
                .success();
        if taken {
            n += 1;
        } else {
            let _ = fs::remove_file(&part);
            size /= 2;
        }
    }
    if leave == 0 {
        // Space that cannot be preallocated can still be written.
        // There may be no space even for another directory entry.
        if let Ok(mut last) = File::create(format!("{}-last", ballast.display())) {
            for size in [4096, 1] {
                while last.write_all(&vec![1; size]).is_ok() {}
            }
        }
    }
}

fn free_ballast(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("ballast") {
            fs::remove_file(path).unwrap();
        }
    }
}

fn ready(server: &Server) -> String {
    server.boot_request("/health/ready")
}

fn writebacks(server: &Server) -> usize {
    fs::read_dir(server.data().join("writebacks")).unwrap().count()
}

fn a_full_disk(kind: &str, mib: u64) {
    let mount = |folder: &Path| {
        let data = folder.join("data");
        fs::create_dir(&data).unwrap();
        let script = "command -v mkfs.$1 >/dev/null || { echo \"mkfs.$1 is missing: tests/install-deps\" >&2; exit 1; }
             truncate -s $2M $3.disk; mkfs.$1 -q $3.disk >/dev/null; mount -o loop $3.disk $3; rm $3.disk";
        sh(script, &[kind, &mib.to_string(), data.to_str().unwrap()]);
    };
    let mut server = Server::start_with(mount);
    server.login(&server.token).ends(0);
    server.run("server --wait 60").ends(0);
    let image = server.raw_image("golden.raw", 8);
    server.run(&format!("image import golden {image}")).ends(0);
    server.run(&format!("image import spare {image}")).ends(0);
    for n in 1..=5 {
        server.run(&format!("machine add pc-{n} --mac 52:54:00:aa:00:0{n} --image golden")).ends(0);
    }
    for n in 1..=4 {
        server.run(&format!("session start pc-{n}")).ends(0);
    }
    assert_eq!(writebacks(&server), 4);

    // Four imports at once that do not fit: each fails, although the failure must be recorded on the full disk.
    let ballast = server.data().join("ballast");
    fill(&ballast, 24 * MIB);
    let big = server.raw_image("big.raw", 40);
    let mut noise = File::options().write(true).open(&big).unwrap();
    std::io::copy(&mut std::io::Read::take(File::open("/dev/urandom").unwrap(), 40 * MIB), &mut noise)
        .unwrap();
    let imports: Vec<_> = (0..4)
        .map(|n| {
            server
                .command(&format!("image import big-{n} {big}"))
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for import in imports {
        assert_ne!(import.wait_with_output().unwrap().status.code(), Some(0), "it does not fit");
    }
    until("no import is left", || {
        let images = server.json("image list");
        let states: Vec<String> = images
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|image| image["versions"].as_array().unwrap().clone())
            .map(|version| version["state"].as_str().unwrap().to_owned())
            .collect();
        !states.iter().any(|state| state == "importing")
    });

    // Completely full: machines cannot boot, and health reports it.
    fill(&server.data().join("ballast-again"), 0);
    let words = ready(&server);
    assert!(words.starts_with("HTTP/1.1 503") && words.contains(r#""boots":false"#), "{words}");
    assert!(words.contains(r#""status":"blocked""#) && words.contains("No space"), "{words}");
    let script = server.boot_request("/boot/52-54-00-aa-00-05.ipxe");
    assert!(!script.contains("sanboot"), "{script}");
    server.run("server").ends(1).says("No space");
    // The write-ahead log may have some allocated free space.
    let mut refused =
        (0..64).map(|n| server.run(&format!("machine add late-{n} --mac 52:54:00:aa:01:{n:02x}")));
    let ran = refused.find(|ran| ran.code != 0).expect("what frees nothing is refused on a full disk");
    ran.ends(1).says("Free space");

    // Actions that free space work: stops with and without force, the reconciler after a restart, removal of machines and images.
    server.run("session stop pc-1").ends(0);
    server.run("session stop pc-2 --force").ends(0);
    assert_eq!(writebacks(&server), 2);
    server.run("machine remove pc-1 --yes").ends(0);
    // Fill the freed space again.
    fill(&server.data().join("ballast-more"), 0);
    fs::write(server.folder().join("empty.toml"), "[session]\nidle_timeout = 1\nreconcile_interval = 1\n")
        .unwrap();
    server.again();
    until("the sessions that nobody uses are stopped", || writebacks(&server) == 0);
    fill(&server.data().join("ballast-most"), 0);
    server.run("image remove spare --yes").ends(0);

    // There is space again.
    free_ballast(&server.data());
    until("ready", || ready(&server).starts_with("HTTP/1.1 200"));
    server.run("session start pc-5").ends(0);
    server.run("session stop pc-5").ends(0);
}

/// Runs only `test` again, in a mount namespace of its own.
fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    // Removes what the test leaves behind, after its mounts have ended.
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new("unshare")
        .args(["-m", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("TMPDIR", folder.path())
        .output()
        .expect("apt-get install util-linux");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "as root, with loop devices: {said}");
}

#[test]
fn a_full_ext4_can_be_freed_and_is_not_ready() {
    alone("a_full_ext4_can_be_freed_and_is_not_ready", || a_full_disk("ext4", 160));
}

#[test]
fn a_full_xfs_can_be_freed_and_is_not_ready() {
    alone("a_full_xfs_can_be_freed_and_is_not_ready", || a_full_disk("xfs", 320));
}

#[test]
fn a_full_btrfs_can_be_freed_and_is_not_ready() {
    alone("a_full_btrfs_can_be_freed_and_is_not_ready", || a_full_disk("btrfs", 256));
}

#[test]
fn a_disk_without_free_inodes_can_be_freed_and_is_not_ready() {
    alone("a_disk_without_free_inodes_can_be_freed_and_is_not_ready", || {
        let mount = |folder: &Path| {
            let data = folder.join("data");
            fs::create_dir(&data).unwrap();
            let script =
                "truncate -s 160M $1.disk; mkfs.ext4 -q -N 128 $1.disk; mount -o loop $1.disk $1; rm $1.disk";
            sh(script, &[data.to_str().unwrap()]);
        };
        let server = Server::start_with(mount);
        server.login(&server.token).ends(0);
        server.run("server --wait 60").ends(0);
        let image = server.raw_image("golden.raw", 8);
        server.run(&format!("image import golden {image}")).ends(0);
        for n in 1..=2 {
            server.run(&format!("machine add pc-{n} --mac 52:54:00:aa:00:0{n} --image golden")).ends(0);
        }
        server.run("session start pc-1").ends(0);
        let folder = server.data().join("ballast");
        fs::create_dir(&folder).unwrap();
        let mut files = 0;
        while File::create(folder.join(files.to_string())).is_ok() {
            files += 1;
        }
        // One inode is left: enough for a file, but not for a machine's disk.
        fs::remove_file(folder.join("0")).unwrap();
        until("not ready", || ready(&server).starts_with("HTTP/1.1 503"));
        let words = ready(&server);
        assert!(words.contains("almost no inodes left (1 free)"), "{words}");
        assert!(words.contains("no inode, is left for the database"), "{words}");
        assert_eq!(words.matches(r#""status":"blocked""#).count(), 2, "{words}");
        assert_ne!(server.run("session start pc-2").code, 0);
        // Actions that free inodes work.
        server.run("session stop pc-1 --force").ends(0);
        assert_eq!(writebacks(&server), 0);
        fs::remove_dir_all(folder).unwrap();
        until("ready", || ready(&server).starts_with("HTTP/1.1 200"));
        server.run("session start pc-2").ends(0);
    });
}

#[test]
fn a_disk_that_fails_and_becomes_read_only_is_not_ready() {
    alone("a_disk_that_fails_and_becomes_read_only_is_not_ready", || {
        let mount = |folder: &Path| {
            let data = folder.join("data");
            fs::create_dir(&data).unwrap();
            let script = "truncate -s 160M $1.disk; mkfs.ext4 -q $1.disk; mount -o loop,errors=remount-ro $1.disk $1; rm $1.disk";
            sh(script, &[data.to_str().unwrap()]);
        };
        let server = Server::start_with(mount);
        until("ready", || ready(&server).starts_with("HTTP/1.1 200"));
        // As if the kernel had found the file system damaged.
        let script = "echo test >/sys/fs/ext4/$(basename $(findmnt -no SOURCE $1))/trigger_fs_error";
        sh(script, &[server.data().to_str().unwrap()]);
        until("not ready", || ready(&server).starts_with("HTTP/1.1 503"));
        let words = ready(&server);
        assert!(words.contains(r#""boots":false"#) && words.contains("is read-only"), "{words}");
    });
}
