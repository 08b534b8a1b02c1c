//! The stock Debian guests: built once by `tests/debian-guest/build`, cached by what goes into them, one of them with our guest kit.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use crate::{process, server};

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
        let ggnet = server::beside("ggnet", "ggnet-cli")?;
        let guests = Self { dir: process::built_by("debian-guest/build", &[&ggnet])? };
        ensure!(guests.with_kit().is_file(), "debian-guest/build printed no folder with disks");
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
