//! Targets that are measured side by side, each a process of its own on a loopback port.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ggnet_tests::{Process, Tgt, process, wait};

use crate::wire::Connection;
use crate::{INITIATOR, Memory, cpu_time, memory};

/// A running target server.
pub struct Contender {
    /// What it is called in tables.
    pub name: &'static str,
    /// Whether its disks are layers, of which some are new in every round.
    pub layered: bool,
    /// The file that its targets are doors to, or that its layers are over.
    pub file: PathBuf,
    /// Where it listens.
    pub portal: SocketAddr,
    /// Its targets' names.
    pub targets: Vec<String>,
    /// The LUN of the disk in each target.
    pub lun: u8,
    server: Server,
}

enum Server {
    Tgt(Tgt),
    Ours(Process),
}

impl Contender {
    /// Debian's `tgtd` with `count` targets, each a door to the same file.
    ///
    /// # Errors
    /// The package is missing or the daemon does not come up.
    pub fn tgtd(file: &Path, count: usize, cpu: Option<usize>) -> Result<Self> {
        let mut tgt = Tgt::start()?;
        let targets: Vec<_> = (0..count).map(|n| format!("iqn.2024-01.org.example:bench{n}")).collect();
        for target in &targets {
            tgt.add(target, file, None)?;
        }
        if let Some(cpu) = cpu {
            pin(tgt.pid(), cpu)?;
        }
        let portal = SocketAddr::from(([127, 0, 0, 1], tgt.port()));
        Ok(Self {
            name: "tgtd",
            layered: false,
            file: file.to_owned(),
            portal,
            targets,
            lun: u8::try_from(ggnet_tests::tgt::LUN)?,
            server: Server::Tgt(tgt),
        })
    }

    /// Our target on a raw file, likewise.
    ///
    /// # Errors
    /// It does not come up.
    pub fn raw(program: &str, file: &Path, count: usize, cpu: Option<usize>, log: &Path) -> Result<Self> {
        Self::ours("ggnet, raw file", process::command(program), count, cpu, &["raw".as_ref(), file], log)
    }

    /// The same with this number of the runtime's worker threads; by default one for each core.
    ///
    /// # Errors
    /// It does not come up.
    pub fn raw_with_workers(
        program: &str,
        file: &Path,
        count: usize,
        workers: Option<usize>,
        log: &Path,
    ) -> Result<Self> {
        let mut command = process::command(program);
        if let Some(workers) = workers {
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        Self::ours("ggnet, raw file", command, count, None, &["raw".as_ref(), file], log)
    }

    /// Our target on `count` layers over one base, in this folder.
    ///
    /// # Errors
    /// It does not come up.
    pub fn layers(
        program: &str,
        base: &Path,
        folder: &Path,
        count: usize,
        cpu: Option<usize>,
        log: &Path,
    ) -> Result<Self> {
        Self::ours(
            "ggnet, layers",
            process::command(program),
            count,
            cpu,
            &["layers".as_ref(), base, folder],
            log,
        )
    }

    /// The floor ([`crate::floor`]) on a raw file, on threads or on tokio.
    ///
    /// # Errors
    /// It does not come up.
    pub fn floor(program: &str, on_tokio: bool, file: &Path, count: usize, log: &Path) -> Result<Self> {
        let (name, how) = if on_tokio { ("floor, tokio", "tokio") } else { ("floor", "threads") };
        Self::ours(name, process::command(program), count, None, &[how.as_ref(), file], log)
    }

    fn ours(
        name: &'static str,
        mut command: Command,
        count: usize,
        cpu: Option<usize>,
        args: &[&Path],
        log: &Path,
    ) -> Result<Self> {
        let portal = SocketAddr::from(([127, 0, 0, 1], process::free_port()?));
        command.arg(portal.to_string()).arg(count.to_string()).args(args);
        let mut server = Process::spawn(name, command, log)?;
        wait::until("the target's names", wait::SHORT, || {
            server.check_running()?;
            Ok(server.log_text().contains("ready\n").then_some(()))
        })?;
        let said = server.log_text();
        let targets = said.lines().filter_map(|l| l.strip_prefix("target ")).map(str::to_owned).collect();
        if let Some(cpu) = cpu {
            pin(server.pid(), cpu)?;
        }
        let layered = args.first() == Some(&Path::new("layers"));
        let file = args.get(1).context("no file")?.to_path_buf();
        Ok(Self { name, layered, file, portal, targets, lun: 0, server: Server::Ours(server) })
    }

    /// Logs in to a target by its number.
    ///
    /// # Errors
    /// As [`Connection::login`].
    pub fn login(&self, target: usize) -> Result<Connection> {
        let name = self.targets.get(target).context("no such target")?;
        Connection::login(self.portal, name, INITIATOR, self.lun)
    }

    /// The URL of a target's disk, for libiscsi.
    #[must_use]
    pub fn url(&self, target: usize) -> String {
        format!("iscsi://{}/{}/{}", self.portal, self.targets[target], self.lun)
    }

    /// The CPU time that its process has used.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }

    /// Its process's memory.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(&self) -> Result<Memory> {
        memory(self.pid())
    }

    fn pid(&self) -> u32 {
        match &self.server {
            Server::Tgt(tgt) => tgt.pid(),
            Server::Ours(process) => process.pid(),
        }
    }
}

/// Binds all threads of a process to one CPU.
fn pin(pid: u32, cpu: usize) -> Result<()> {
    let tool = process::tool("taskset", "util-linux")?;
    process::run(process::command(tool).args(["-a", "-c", "-p", &cpu.to_string(), &pid.to_string()]))
        .map(drop)
}

/// A file of `len` bytes that no file system can make small, all of it in the page cache.
///
/// # Errors
/// The file cannot be written.
pub fn noise_file(path: PathBuf, len: usize) -> Result<PathBuf> {
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&crate::noise(len))?;
    file.sync_all()?;
    Ok(path)
}
