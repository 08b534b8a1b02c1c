//! [`Keeper`]: a process in its own namespaces, with what was created in them: a mounted file system, a daemon. When the test ends for any
//! reason, the keeper ends too, and the kernel removes the mounts, loop devices and networks.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// Printed by a user that is not root and tries something that only root may do.
const NOT_ROOT: &str =
    "mounting a disk's file system is root's (CAP_SYS_ADMIN and loop devices): run this test as root";

/// See the module.
pub struct Keeper {
    child: Child,
    namespaces: String,
}

impl Keeper {
    /// Runs `script` (of a shell, with `arguments`) in new namespaces: the letters of `unshare`, `m` and `n`. Without root, in a new user
    /// namespace as well. It is ready when its script has ended.
    pub fn start(namespaces: &str, script: &str, arguments: &[&str]) -> Self {
        let user = if rustix::process::geteuid().is_root() { "" } else { "Ur" };
        let whole = format!(
            "set -e; exec 3>&1 >&2; PATH=$PATH:/usr/sbin:/sbin; {script}\necho ready >&3; cat >/dev/null; kill $(jobs -p) 2>/dev/null"
        );
        let mut child = Command::new("unshare")
            .arg(format!("-{user}{namespaces}"))
            .args(["bash", "-c", &whole, "keeper"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("unshare: {e}; apt-get install util-linux"));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let namespaces = namespaces.to_owned();
        let keeper = Self { child, namespaces };
        assert_eq!(line, "ready\n", "the keeper's script failed, see above: {script}");
        keeper
    }

    /// The path of its root folder from outside.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.child.id()).into()
    }

    /// The start of a command line that runs in its namespaces.
    pub fn prefix(&self) -> Vec<String> {
        let mut argv = vec!["nsenter".to_owned(), "-t".to_owned(), self.child.id().to_string()];
        argv.extend(self.namespaces.chars().map(|letter| format!("-{letter}")));
        if !rustix::process::geteuid().is_root() {
            argv.extend(["-U".to_owned(), "--preserve-credentials".to_owned()]);
        }
        argv
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A separate file system at `/mnt` of a keeper.
pub struct Mounted(Keeper);

impl Mounted {
    /// A new XFS, btrfs or ext4 on a loop device of 512 MiB; sparse, so it uses only the space that is written.
    pub fn disk(kind: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "{NOT_ROOT}");
        let package = match kind {
            "xfs" => "xfsprogs",
            "btrfs" => "btrfs-progs",
            _ => "e2fsprogs",
        };
        Self(Keeper::start(
            "m",
            "command -v mkfs.$1 >/dev/null || { echo \"mkfs.$1 is missing; apt-get install $2\" >&2; exit 1; }
             image=$(mktemp); trap 'rm -f $image' EXIT
             truncate -s 512M $image; mkfs.$1 -q $image >/dev/null; mount -o loop $image /mnt; rm $image",
            &[kind, package],
        ))
    }

    /// A tmpfs of that many bytes.
    pub fn memory(bytes: u64) -> Self {
        Self(Keeper::start("m", "mount -t tmpfs -o mode=755,size=$1 tmpfs /mnt", &[&bytes.to_string()]))
    }

    /// A folder, read-only.
    pub fn read_only(dir: &str) -> Self {
        Self(Keeper::start("m", "mount --bind \"$1\" /mnt; mount -o remount,bind,ro /mnt", &[dir]))
    }

    /// Its topmost folder.
    pub fn path(&self) -> PathBuf {
        self.0.root().join("mnt")
    }
}

/// One XFS for all tests of a binary; each makes a folder of its own.
pub fn xfs() -> &'static Mounted {
    static XFS: OnceLock<Mounted> = OnceLock::new();
    XFS.get_or_init(|| Mounted::disk("xfs"))
}

/// As [`xfs`].
pub fn btrfs() -> &'static Mounted {
    static BTRFS: OnceLock<Mounted> = OnceLock::new();
    BTRFS.get_or_init(|| Mounted::disk("btrfs"))
}

/// The address of [`tftpd`]. Not 127.0.0.1: in.tftpd does not use IPv4 on a host that has no other IPv4 address.
pub const TFTPD: &str = "10.77.0.1:69";

/// As [`xfs`].
pub fn ext4() -> &'static Mounted {
    static EXT4: OnceLock<Mounted> = OnceLock::new();
    EXT4.get_or_init(|| Mounted::disk("ext4"))
}

/// `in.tftpd` at [`TFTPD`] in its own network, as Debian's unit runs it: with chroot, as the package's user.
pub fn tftpd(dir: &str) -> Keeper {
    // A user namespace has only one user.
    let all_users = std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295");
    let user = if all_users && rustix::process::geteuid().is_root() { "tftp" } else { "root" };
    Keeper::start(
        "n",
        "command -v in.tftpd >/dev/null || { echo 'in.tftpd is missing; apt-get install tftpd-hpa' >&2; exit 1; }
         ip link set lo up; ip addr add ${3%:*} dev lo
         in.tftpd --foreground --user $2 --address $3 --secure \"$1\" &
         until grep -q ':0045 ' /proc/net/udp; do kill -0 $!; sleep 0.02; done",
        &[dir, user, TFTPD],
    )
}
