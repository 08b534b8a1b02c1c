//! The guest image: built once by `tests/guest/build`, cached by what goes into it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail, ensure};

use crate::process;

/// Where the root file system begins on the disk, in bytes: behind 2 MiB of tables and GRUB and 16 MiB of ESP.
pub const ROOT_OFFSET: u64 = 18 << 20;

/// How large the root file system is, in MiB.
pub const ROOT_MIB: u64 = 300;

/// The built guest image. Its files are shared by all tests and never opened for writing.
#[derive(Debug, Clone)]
pub struct GuestImage {
    dir: PathBuf,
}

impl GuestImage {
    /// The image, built first if this host has none of the wanted key (about half a minute, and the download of a kernel).
    ///
    /// # Errors
    /// The build fails; its last lines are on standard error.
    pub fn get() -> Result<Self> {
        static BUILT: Mutex<Option<GuestImage>> = Mutex::new(None);
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = &*built {
            return Ok(image.clone());
        }
        let image = Self { dir: process::built_by("guest/build", &[])? };
        ensure!(image.raw().is_file(), "guest/build printed no folder with an image");
        *built = Some(image.clone());
        Ok(image)
    }

    /// The disk, raw and sparse.
    #[must_use]
    pub fn raw(&self) -> PathBuf {
        self.dir.join("guest.raw")
    }

    /// The same disk as qcow2.
    #[must_use]
    pub fn qcow2(&self) -> PathBuf {
        self.dir.join("guest.qcow2")
    }

    /// The kernel inside, by itself.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initramfs inside, by itself: busybox, open-iscsi, drivers.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// An initramfs for the same kernel, with its iSCSI target: see [`kernel`](crate::kernel).
    #[must_use]
    pub fn target_initrd(&self) -> PathBuf {
        self.dir.join("target.initrd")
    }

    /// The folder of the cache that `key`s of the image live in.
    #[must_use]
    pub fn cache(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// A private writable raw copy of the disk at `to`, sparse (and sharing blocks where the file system can).
    ///
    /// # Errors
    /// `cp` fails, for instance for lack of space.
    pub fn copy_raw(&self, to: &Path) -> Result<()> {
        process::run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(self.raw()).arg(to))?;
        Ok(())
    }
}

/// The root file system of a raw copy of the guest's disk, as a power cut at this moment would leave it: taken out into a
/// file of its own, its journal replayed there, and checked. The disk itself is not touched, and nothing is mounted.
#[derive(Debug)]
pub struct RootFs {
    file: tempfile::NamedTempFile,
}

impl RootFs {
    /// Takes the file system out of `disk`.
    ///
    /// # Errors
    /// The file system is damaged in a way that the journal does not explain.
    pub fn of(disk: &Path) -> Result<Self> {
        let fsck = process::tool("e2fsck", "e2fsprogs")?;
        let fs = Self { file: tempfile::NamedTempFile::new()? };
        let path = fs.file.path();
        process::run(
            Command::new("dd")
                .arg(format!("if={}", disk.display()))
                .arg(format!("of={}", path.display()))
                .arg(format!("skip={}", ROOT_OFFSET >> 20))
                .arg(format!("count={ROOT_MIB}"))
                .args(["bs=1M", "conv=sparse", "status=none"]),
        )?;
        // 1 means that it replayed the journal; what is left must be clean.
        let replay = process::output(Command::new(&fsck).arg("-p").arg(path))?;
        if !matches!(replay.status.code(), Some(0 | 1)) {
            bail!("{}: {}", disk.display(), String::from_utf8_lossy(&replay.stdout));
        }
        process::run(Command::new(&fsck).args(["-f", "-n"]).arg(path))?;
        Ok(fs)
    }

    /// Reads a file in it.
    ///
    /// # Errors
    /// It is not there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let mut command = Command::new(process::tool("debugfs", "e2fsprogs")?);
        let output = process::output(command.arg("-R").arg(format!("cat {path}")).arg(self.file.path()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        // debugfs says its version first, and ends with 0 whatever happens.
        if let Some(line) = complaint.lines().find(|l| !l.starts_with("debugfs ")) {
            bail!("{path} in the root file system: {line}");
        }
        Ok(output.stdout)
    }
}
