//! KVM or emulation. A `/dev/kvm` that opens proves little: under a nested paravirtual host a stock kernel hangs in it while
//! it decompresses. So the guest's own kernel is started once for some seconds, and only its first line counts.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::image::GuestImage;
use crate::process::{self, Process};

/// How QEMU runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor's own virtualisation.
    Kvm,
    /// QEMU's emulation: works everywhere, about 20 times slower.
    Tcg,
}

/// A stock kernel under a working KVM says its first line within 2 s; the rest is room for a busy host.
const PROBE: Duration = Duration::from_secs(12);

impl Accel {
    /// What this host can do. Probed once per boot of the host; the answer is kept beside the guest image.
    /// `GGNET_ACCEL=kvm` or `tcg` overrides it.
    ///
    /// # Errors
    /// `GGNET_ACCEL` is another word, or QEMU is missing.
    pub fn of_host(image: &GuestImage) -> Result<Self> {
        static KNOWN: Mutex<Option<Accel>> = Mutex::new(None);
        match std::env::var("GGNET_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("") | Err(_) => {}
            Ok(other) => bail!("GGNET_ACCEL={other}: kvm or tcg"),
        }
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accel) = *known {
            return Ok(accel);
        }
        let accel = Self::find(image)?;
        *known = Some(accel);
        Ok(accel)
    }

    fn find(image: &GuestImage) -> Result<Self> {
        if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let cached = image.cache().join("accel");
        let answer = fs::read_to_string(&cached).unwrap_or_default();
        match answer.strip_prefix(boot_id.trim()).map(str::trim) {
            Some("kvm") => return Ok(Self::Kvm),
            Some("tcg") => return Ok(Self::Tcg),
            _ => {}
        }
        let dir = tempfile::tempdir()?;
        let accel = if kernel_speaks_under_kvm(image, dir.path())? { Self::Kvm } else { Self::Tcg };
        let word = if accel == Self::Kvm { "kvm" } else { "tcg" };
        // A torn or lost answer only means another probe.
        let _ = fs::write(&cached, format!("{} {word}\n", boot_id.trim()));
        Ok(accel)
    }

    /// QEMU's arguments for it.
    #[must_use]
    pub fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,tb-size=256", "-cpu", "max"],
        }
    }
}

fn kernel_speaks_under_kvm(image: &GuestImage, dir: &Path) -> Result<bool> {
    let serial = dir.join("serial");
    let mut qemu = process::command(process::tool("qemu-system-x86_64", "qemu-system-x86")?);
    qemu.args(["-machine", "q35", "-m", "256", "-display", "none", "-nodefaults", "-no-reboot"])
        .args(Accel::Kvm.args())
        .arg("-kernel")
        .arg(image.vmlinuz())
        .args(["-append", "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 panic=-1"])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()));
    let mut qemu = Process::spawn("qemu (KVM probe)", qemu, &dir.join("log"))?;
    let end = Instant::now() + PROBE;
    while Instant::now() < end {
        let said = fs::read(&serial).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains("Linux version") {
            return Ok(true);
        }
        if !qemu.is_running() {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}
