//! The stock Debian guests: built once by `tests/debian-guest/build`, cached by what goes into them, one of them with our guest kit.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::server;

/// What the root shell on the serial line says when it may be used.
pub const READY: &str = "GGNET-DEBIAN-READY";

/// The built disks. Their files are shared by all tests and never opened for writing.
#[derive(Debug, Clone)]
pub struct DebianGuests {
    dir: PathBuf,
}

impl DebianGuests {
    /// The disks, built first if this host has none of the wanted key (about three minutes, and the download of a Debian).
    ///
    /// # Errors
    /// `ggnet` was not built, or the build of the disks fails; its last lines are on standard error.
    pub fn get() -> Result<Self> {
        static BUILT: Mutex<Option<DebianGuests>> = Mutex::new(None);
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guests) = &*built {
            return Ok(guests.clone());
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian-guest/build");
        let output = Command::new(&script)
            .arg(server::beside("ggnet", "ggnet-cli")?)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let guests = Self { dir };
        ensure!(guests.with_kit().is_file(), "{} printed no folder with disks", script.display());
        *built = Some(guests.clone());
        Ok(guests)
    }

    /// The disk into which `ggnet guest-kit debian` was put.
    #[must_use]
    pub fn with_kit(&self) -> PathBuf {
        self.dir.join("kit.raw")
    }

    /// The same without it: prepared as Debian's README says.
    #[must_use]
    pub fn without_kit(&self) -> PathBuf {
        self.dir.join("plain.raw")
    }
}
