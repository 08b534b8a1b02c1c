//! The crowd on a LAN: clients with as many addresses as they like, hostile ones of every kind and machines that boot.
//!
//! It has a network namespace of its own, in which every address of [`hostile::SOURCES`](crate::hostile::SOURCES) is local, and the
//! server has a route to them. Each member is a process, the program `ggnet-crowd`, with descriptors and memory of its own.

use std::path::PathBuf;

use anyhow::Result;

use crate::hostile::{Aims, Kind, PORTAL, SOURCES};
use crate::lan::Lan;
use crate::netns::Netns;
use crate::process::Process;
use crate::server::beside;

/// A namespace on the LAN for the crowd. Its processes must be dropped before it, and it before the LAN.
#[derive(Debug)]
pub struct Crowd {
    program: PathBuf,
    ns: Netns,
    logs: tempfile::TempDir,
}

impl Crowd {
    /// On this LAN.
    ///
    /// # Errors
    /// The program was not built, or `ip` refuses.
    pub fn on(lan: &Lan) -> Result<Self> {
        let ns = Netns::new()?;
        lan.ns().veth_to("crowd", "br0", &ns, "eth0", &format!("{PORTAL}/24"))?;
        ns.ip(&["route", "add", "local", SOURCES, "dev", "lo"])?;
        lan.ns().ip(&["route", "add", SOURCES, "via", &PORTAL.to_string()])?;
        let logs = tempfile::Builder::new().prefix("ggnet-crowd-").tempdir()?;
        Ok(Self { program: beside("ggnet-crowd", "ggnet-tests")?, ns, logs })
    }

    /// One who is hostile in this way until the process is dropped. It writes a line for each round that it has sent whole.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn hostile(&self, kind: &Kind, aims: &Aims) -> Result<Process> {
        self.start(kind.name, &[&aims.flooded, &aims.guest, &aims.open_target])
    }

    /// Machines that boot again and again, each by itself, as long as the file is there. They write a line for each boot, and the
    /// process fails at the first error.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn machines(&self, while_there: &str, macs: &[&str]) -> Result<Process> {
        self.start("boots", &[&[while_there][..], macs].concat())
    }

    fn start(&self, what: &str, args: &[&str]) -> Result<Process> {
        let mut command = self.ns.command(&self.program);
        command.arg(what).args(args);
        Process::spawn(what, command, &self.logs.path().join(what))
    }
}
