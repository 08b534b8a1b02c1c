//! A machine that is nothing but an initiator: Debian's kernel and open-iscsi of the guest image, and the host's fio.
//!
//! It runs from its initramfs, which is the image's own with a second archive behind it: another `init`, and fio with the
//! libraries it loads (80 MB; too much for an image that people boot). So it starts in a third of the time of a machine
//! that boots over the network, and no session is in it but those that a test makes.
//!
//! Its network is QEMU's user-mode one: targets on the host's loopback are at 10.0.2.2.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cpio::Cpio;
use crate::guest::{Answer, Guest};
use crate::image::GuestImage;
use crate::process;
use crate::wait;

/// iscsiadm's exit code when the target refused the login for lack of a proof (`ISCSI_ERR_LOGIN_AUTH_FAILED`).
pub const NOT_AUTHENTICATED: i32 = 24;
/// iscsiadm's exit code when open-iscsi itself ended the login for good, for instance because the target's proof was wrong
/// (`ISCSI_ERR_FATAL_LOGIN`).
pub const LOGIN_FATAL: i32 = 19;

/// The machine. Dropping it cuts its power.
#[derive(Debug)]
pub struct OpenIscsi {
    /// Its shell.
    pub guest: Guest,
    _initrd: tempfile::TempDir,
}

impl OpenIscsi {
    /// Switches a machine on, called `name` in messages, whose initiator is called `initiator`, and waits until its iscsid
    /// answers.
    ///
    /// # Errors
    /// A package is missing, or the machine does not come up: the error holds the end of its serial log.
    pub fn boot(name: &str, initiator: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ggnet-initrd-").tempdir()?;
        let initrd = dir.path().join("initrd");
        write_initrd(&initrd)?;
        let vmlinuz = GuestImage::get()?.vmlinuz();
        let machine = Guest::builder(name).user_network("").memory_mib(640);
        let mut guest = machine.kernel(&vmlinuz, &initrd, "console=ttyS0,115200 quiet").boot()?;
        guest.wait_for("GGNET-INITIATOR-UP\n", wait::BOOT)?;
        guest.sh(&format!(
            "echo InitiatorName={initiator} >/etc/iscsi/initiatorname.iscsi; iscsid -f >/run/iscsid.log 2>&1 & \
             until iscsiadm -m session 2>&1 | grep 'No active'; do sleep 1; done"
        ))?;
        Ok(Self { guest, _initrd: dir })
    }

    /// Makes a record of a target on the host's loopback, in the place of one that was there, with these settings
    /// beside those of `/etc/iscsi/iscsid.conf`.
    ///
    /// # Errors
    /// iscsiadm refuses.
    pub fn node(&mut self, iqn: &str, port: u16, settings: &[(&str, &str)]) -> Result<()> {
        let node = format!("iscsiadm -m node -T {iqn} -p 10.0.2.2:{port}");
        let mut command = format!("({node} -o delete; true) 2>/dev/null && {node} -o new");
        if !settings.is_empty() {
            command += &format!(" && {node} -o update");
        }
        for (key, value) in settings {
            command += &format!(" -n '{key}' -v '{value}'");
        }
        self.guest.sh(&command).map(drop)
    }

    /// Logs in to a target that has a record; the answer has iscsiadm's exit code.
    ///
    /// # Errors
    /// As [`Guest::shell`].
    pub fn try_login(&mut self, iqn: &str) -> Result<Answer> {
        self.guest.shell(&format!("iscsiadm -m node -T {iqn} --login"))
    }

    /// Logs in to a target that has a record.
    ///
    /// # Errors
    /// The login fails.
    pub fn login(&mut self, iqn: &str) -> Result<()> {
        self.guest.sh(&format!("iscsiadm -m node -T {iqn} --login")).map(drop)
    }

    /// Logs out.
    ///
    /// # Errors
    /// There is no session.
    pub fn logout(&mut self, iqn: &str) -> Result<()> {
        self.guest.sh(&format!("iscsiadm -m node -T {iqn} --logout")).map(drop)
    }

    /// The name of a unit's disk (`sda`), once it is there. There must be one session only.
    ///
    /// # Errors
    /// No such disk appears.
    pub fn disk(&mut self, lun: u16) -> Result<String> {
        wait::until(&format!("the disk of LUN {lun}"), wait::SHORT, || {
            let ls = self.guest.shell(&format!("ls /sys/class/scsi_device/*:0:0:{lun}/device/block"))?;
            Ok((ls.code == 0 && !ls.text.trim().is_empty()).then(|| ls.text.trim().to_owned()))
        })
    }

    /// What the kernel complained of about a disk or its file system; empty if nothing.
    ///
    /// # Errors
    /// As [`Guest::shell`].
    pub fn complaints(&mut self) -> Result<String> {
        let dmesg = "dmesg | grep -iE 'I/O error|Medium Error|offline device|rejecting I/O'";
        Ok(self.guest.shell(dmesg)?.text)
    }
}

/// The image's initramfs and, behind it, what makes an initiator of it.
fn write_initrd(to: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    let image = std::fs::read(GuestImage::get()?.initrd())?;
    out.write_all(&image)?;
    // The kernel looks for an archive at multiples of four, and passes over zeros.
    out.write_all(&[0; 3][..image.len().next_multiple_of(4) - image.len()])?;
    let mut cpio = Cpio::new(out);
    cpio.program("init", include_bytes!("open_iscsi/init"))?;
    cpio.folder("fio")?;
    let fio = process::tool("fio", "fio")?;
    let (loader, libraries) = libraries(&fio)?;
    cpio.program("fio/fio", &std::fs::read(&fio)?)?;
    cpio.program("fio/loader", &std::fs::read(loader)?)?;
    for library in libraries {
        let name = library.file_name().and_then(|n| n.to_str()).context("a library's name")?;
        cpio.program(&format!("fio/{name}"), &std::fs::read(&library)?)?;
    }
    cpio.program("bin/fio", b"#!/bin/sh\nexec /fio/loader --library-path /fio /fio/fio \"$@\"\n")?;
    cpio.finish()?;
    Ok(())
}

/// The dynamic loader of a program, and every library that it loads.
fn libraries(program: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let said = process::run(Command::new("ldd").arg(program))?;
    ensure!(!said.contains("not found"), "{}: {said}", program.display());
    // `name => /path (address)`, and `/path (address)` for the loader.
    let mut loader = None;
    let mut libraries = Vec::new();
    for line in said.lines() {
        let (left, right) = line.split_once("=>").unwrap_or((line, ""));
        let path = |side: &str| side.split_whitespace().next().map(PathBuf::from).filter(|p| p.is_absolute());
        if let Some(library) = path(right) {
            libraries.push(library);
        } else if let Some(file) = path(left) {
            loader = Some(file);
        }
    }
    Ok((loader.with_context(|| format!("{} has no loader: {said}", program.display()))?, libraries))
}
