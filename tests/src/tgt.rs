//! Debian's `tgtd` as a peer: a target that is not ours, on a loopback port and a control socket of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, Process};
use crate::wait;

/// The LUN of a disk in tgt; LUN 0 is its controller.
pub const LUN: u32 = 1;

/// A CHAP pair. tgt takes it on its command line, which is fine for a peer in a test.
#[derive(Debug, Clone)]
pub struct Chap {
    /// User name.
    pub user: String,
    /// Secret, 12 to 16 characters.
    pub secret: String,
}

#[derive(Debug, Clone)]
struct Target {
    iqn: String,
    disk: PathBuf,
    chap: Option<Chap>,
}

/// A running `tgtd`. Dropping it kills it.
#[derive(Debug)]
pub struct Tgt {
    dir: tempfile::TempDir,
    port: u16,
    daemon: Process,
    targets: Vec<Target>,
}

impl Tgt {
    /// Starts it on a free port of the loopback, with no target yet.
    ///
    /// # Errors
    /// The package `tgt` is missing, or the daemon does not come up.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = process::free_port()?;
        let daemon = spawn(dir.path(), port)?;
        let mut tgt = Self { dir, port, daemon, targets: Vec::new() };
        tgt.wait_ready()?;
        Ok(tgt)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Serves `disk` (raw) as [`LUN`] of `iqn`, to any initiator that knows the CHAP pair, if there is one.
    ///
    /// # Errors
    /// `tgtadm` refuses.
    pub fn add(&mut self, iqn: &str, disk: &Path, chap: Option<&Chap>) -> Result<()> {
        let target = Target { iqn: iqn.to_owned(), disk: disk.to_owned(), chap: chap.cloned() };
        self.targets.push(target.clone());
        self.configure(self.targets.len(), &target)
    }

    /// The iPXE script that boots a machine in QEMU's user-mode network from `iqn`.
    #[must_use]
    pub fn script(&self, initiator: &str, iqn: &str, chap: Option<&Chap>) -> String {
        let chap =
            chap.map_or(String::new(), |c| format!("set username {}\nset password {}\n", c.user, c.secret));
        format!(
            "#!ipxe\nset initiator-iqn {initiator}\n{chap}set keep-san 1\nsanboot iscsi:10.0.2.2::{}:{LUN}:{iqn}\n",
            self.port
        )
    }

    /// `kill -9`, as a crash would.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Starts it again after [`kill`](Self::kill), on the same port, with the same targets.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`add`](Self::add).
    pub fn restart(&mut self) -> Result<()> {
        self.daemon = spawn(self.dir.path(), self.port)?;
        self.wait_ready()?;
        for (i, target) in self.targets.iter().enumerate() {
            self.configure(i + 1, target)?;
        }
        Ok(())
    }

    fn configure(&self, tid: usize, target: &Target) -> Result<()> {
        let tid = tid.to_string();
        let disk = target.disk.to_str().context("path of the disk is not UTF-8")?;
        self.adm(&["--op", "new", "--mode", "target", "--tid", &tid, "-T", &target.iqn])?;
        self.adm(&[
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            &tid,
            "--lun",
            &LUN.to_string(),
            "-b",
            disk,
        ])?;
        if let Some(chap) = &target.chap {
            self.adm(&[
                "--op",
                "new",
                "--mode",
                "account",
                "--user",
                &chap.user,
                "--password",
                &chap.secret,
            ])?;
            self.adm(&["--op", "bind", "--mode", "account", "--tid", &tid, "--user", &chap.user])?;
        }
        // Last: from here on initiators get in.
        self.adm(&["--op", "bind", "--mode", "target", "--tid", &tid, "-I", "ALL"])?;
        Ok(())
    }

    fn adm(&self, args: &[&str]) -> Result<String> {
        let mut tgtadm = Command::new(process::tool("tgtadm", "tgt")?);
        process::run(
            tgtadm.env("TGT_IPC_SOCKET", socket(self.dir.path())).args(["--lld", "iscsi"]).args(args),
        )
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait::until("tgtd to answer", wait::SHORT, || {
            self.daemon.check_running()?;
            Ok(self.adm(&["--op", "show", "--mode", "target"]).ok().map(drop))
        })
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("control")
}

fn spawn(dir: &Path, port: u16) -> Result<Process> {
    let mut command = process::command(process::tool("tgtd", "tgt")?);
    command.env("TGT_IPC_SOCKET", socket(dir)).args(["-f", "--iscsi", &format!("portal=127.0.0.1:{port}")]);
    Process::spawn("tgtd", command, &dir.join("log"))
}
