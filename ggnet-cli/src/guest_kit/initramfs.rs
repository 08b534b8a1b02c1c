//! The initramfs of a mounted image: whether it must be rebuilt, and rebuilding it with the image's own program.
//!
//! The program runs in its own namespaces (mounts, processes, network), which end with it, so that it leaves nothing on the host. This
//! does not protect the host: it is a program of the image and runs as root.

use std::{
    io,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use rustix::fs::FileType;

use super::root::Root;

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the initramfs of every kernel is newer than its sources, or there is no kernel yet.
    Nothing,
    /// Rebuild it; this is possible here.
    Build,
    /// It must be rebuilt, but not by us: the reason, and the lines to run.
    ByHand(String, Vec<String>),
}

/// Checks whether the initramfs of a root must be rebuilt after these files of the kit were written or found.
///
/// # Errors
/// A folder of the root cannot be read.
pub fn need(root: &Root, at: &Path, changed: bool, sources: &[&str]) -> io::Result<Need> {
    if !changed && is_newer(root, sources)? {
        return Ok(Need::Nothing);
    }
    let build = line(at);
    let at = quoted(at);
    for (path, package) in [
        ("usr/sbin/update-initramfs", "initramfs-tools"),
        ("usr/share/initramfs-tools/hooks/iscsi", "open-iscsi"),
    ] {
        if root.stat(path)?.is_none() {
            let install = format!("chroot {at} apt-get install initramfs-tools open-iscsi busybox");
            return Ok(Need::ByHand(
                format!("{package} is not installed in the image"),
                vec![install, build],
            ));
        }
    }
    // The image's program would create a regular file of that name, which would stay in the image.
    let null = root.stat("dev/null")?;
    if !null.is_some_and(|s| FileType::from_raw_mode(s.st_mode).is_char_device()) {
        let (mount, umount) = (format!("mount --bind /dev {at}/dev"), format!("umount {at}/dev"));
        return Ok(Need::ByHand("the image has no /dev/null".to_owned(), vec![mount, build, umount]));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(Need::ByHand(
            "only root can run programs in the image".to_owned(),
            vec![format!("sudo {build}")],
        ));
    }
    Ok(Need::Build)
}

/// The line that rebuilds the initramfs of a root; root must run it.
pub fn line(at: &Path) -> String {
    format!("chroot {} update-initramfs -u -k all", quoted(at))
}

/// Whether the initramfs of every kernel was built after these files were written.
fn is_newer(root: &Root, sources: &[&str]) -> io::Result<bool> {
    let mut newest = (0, 0);
    for source in sources {
        if let Some(stat) = root.stat(source)? {
            newest = newest.max((stat.st_mtime, stat.st_mtime_nsec));
        }
    }
    for kernel in root.names("boot")?.iter().filter_map(|n| n.strip_prefix("vmlinuz-")) {
        match root.stat(&format!("boot/initrd.img-{kernel}"))? {
            Some(stat) if (stat.st_mtime, stat.st_mtime_nsec) >= newest => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Rebuilds the initramfs of every kernel of the root; the program's output goes to standard error.
///
/// # Errors
/// It could not be started.
#[expect(
    clippy::disallowed_methods,
    reason = "the CommandRunner is part of the server; here the program runs in the foreground and Ctrl-C ends it"
)]
pub fn build(at: &Path) -> io::Result<ExitStatus> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Command::new("unshare")
        .args(["--mount", "--pid", "--ipc", "--net", "--fork", "--kill-child", "--mount-proc"])
        .arg(format!("--root={}", at.display()))
        .args(["--", "update-initramfs", "-u", "-k", "all"])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;

    const SOURCE: &str = "etc/iscsi/iscsi.initramfs";

    fn touch(dir: &Path, path: &str, second: u64) {
        let file = dir.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        File::create(file).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(second)).unwrap();
    }

    fn need_of(dir: &Path, changed: bool) -> Need {
        need(&Root::open(dir).unwrap(), Path::new("/mnt/an image"), changed, &[SOURCE]).unwrap()
    }

    #[test]
    fn it_must_be_built_when_a_source_is_newer_or_a_kernel_has_none() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), SOURCE, 100);
        assert_eq!(need_of(dir.path(), false), Need::Nothing, "no kernel yet");
        touch(dir.path(), "boot/vmlinuz-6.1", 1);
        touch(dir.path(), "boot/initrd.img-6.1", 100);
        assert_eq!(need_of(dir.path(), false), Need::Nothing);
        assert!(matches!(need_of(dir.path(), true), Need::ByHand(..)));
        touch(dir.path(), "boot/initrd.img-6.1", 99);
        assert!(matches!(need_of(dir.path(), false), Need::ByHand(..)));
        touch(dir.path(), "boot/initrd.img-6.1", 101);
        touch(dir.path(), "boot/vmlinuz-6.2", 1);
        assert!(matches!(need_of(dir.path(), false), Need::ByHand(..)));
    }

    #[test]
    fn where_it_cannot_be_built_the_lines_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let build = "chroot '/mnt/an image' update-initramfs -u -k all";
        match need_of(dir.path(), true) {
            Need::ByHand(why, lines) => {
                assert!(why.contains("initramfs-tools"), "{why}");
                assert!(lines[0].contains("open-iscsi") && lines[1] == build, "{lines:?}");
            }
            other => panic!("{other:?}"),
        }
        touch(dir.path(), "usr/sbin/update-initramfs", 1);
        touch(dir.path(), "usr/share/initramfs-tools/hooks/iscsi", 1);
        // A regular file instead of the device.
        touch(dir.path(), "dev/null", 1);
        match need_of(dir.path(), true) {
            Need::ByHand(_, lines) => {
                assert_eq!(
                    lines,
                    ["mount --bind /dev '/mnt/an image'/dev", build, "umount '/mnt/an image'/dev"]
                );
            }
            other => panic!("{other:?}"),
        }
    }
}
