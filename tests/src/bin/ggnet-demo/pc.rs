//! One machine of the demo: its place in GGnet, its virtual hardware, and what is known of its boots.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use ggnet_core::nouns::{BootStage, Machine, MachineId};
use ggnet_tests::{Api, BootLine, Firmware, GgnetServer, Guest, GuestBuilder, Slot};
use jiff::Timestamp;

/// A boot: when it began, when what was seen, what the guest said at its end.
#[derive(Debug)]
pub struct Boot {
    /// What began it.
    pub cause: &'static str,
    /// When the machine was switched on, or went down to restart.
    pub began: Timestamp,
    /// The first time of each stage.
    pub stages: Vec<(BootStage, Timestamp)>,
    /// When the guest was up.
    pub up: Option<Timestamp>,
    /// What the guest said of itself.
    pub line: Option<BootLine>,
}

/// A machine.
#[derive(Debug)]
pub struct Pc {
    pub name: &'static str,
    pub machine: MachineId,
    pub boots: Vec<Boot>,
    builder: Option<GuestBuilder>,
    guest: Option<Guest>,
}

impl Pc {
    /// The hardware of a registered machine, switched off.
    pub fn new(
        name: &'static str,
        firmware: Firmware,
        mac: &str,
        machine: &Machine,
        server: &GgnetServer,
        slot: Slot,
    ) -> Self {
        let builder =
            Guest::builder(name).firmware(firmware).mac(mac).user_network(server.script_url(mac)).slot(slot);
        Self { name, machine: machine.id, boots: Vec::new(), builder: Some(builder), guest: None }
    }

    fn begin(&mut self, cause: &'static str) {
        let began = Timestamp::now();
        self.boots.push(Boot { cause, began, stages: Vec::new(), up: None, line: None });
    }

    /// Switches it on.
    pub fn power_on(&mut self) -> Result<()> {
        let builder = self.builder.take().context("it is on already")?;
        self.begin("power on");
        self.guest = Some(builder.boot()?);
        Ok(())
    }

    /// Asks the guest to restart, and counts from when it goes down.
    pub fn reboot(&mut self) -> Result<()> {
        self.guest_mut()?.reboot()?;
        self.begin("reboot");
        Ok(())
    }

    /// The running machine.
    pub fn guest_mut(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("the machine is off")
    }

    /// Takes the machine out, to wait for it in a thread; [`booted`](Self::booted) puts it back.
    pub fn take_guest(&mut self) -> Result<Guest> {
        self.guest.take().context("the machine is off")
    }

    /// The guest is up.
    pub fn booted(&mut self, guest: Guest, line: BootLine, at: Timestamp) -> Result<()> {
        self.guest = Some(guest);
        let boot = self.boots.last_mut().context("no boot")?;
        boot.up = Some(at);
        boot.line = Some(line);
        Ok(())
    }

    /// What the guest said of its last boot.
    pub fn last_boot(&self) -> Result<&BootLine> {
        self.boots
            .last()
            .and_then(|b| b.line.as_ref())
            .with_context(|| format!("{} has not booted", self.name))
    }

    /// How much disk space the machine's writeback takes on the server.
    pub fn writeback_bytes(&self, server: &GgnetServer, api: &Api) -> Result<u64> {
        let session = api.active(self.machine)?.session;
        let id =
            session.current.system().writeback().context("the system disk has no writeback")?.to_string();
        let mut total = 0;
        for folder in std::fs::read_dir(server.data_dir().join("writebacks"))? {
            let folder = folder?;
            if folder.file_name().to_string_lossy().ends_with(&id) {
                for file in std::fs::read_dir(folder.path())? {
                    total += used(&file?.path())?;
                }
            }
        }
        Ok(total)
    }
}

/// The disk space that a file takes: not its length, for it may be sparse.
pub fn used(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file).with_context(|| file.display().to_string())?.blocks() * 512)
}
