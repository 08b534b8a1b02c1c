//! A virtual PC without a disk: QEMU, its serial line, and a root shell on it.
//!
//! States: running → (power_cut, power_off) → off → (power_on) → running. The serial log goes on over all of them, and
//! `wait_boot` returns each boot once, in order. A thread per run of QEMU copies the serial line to that log, and everything
//! that is read comes from the log. Not QEMU's own `logfile=`: it logs a character again each time its socket was full,
//! which on a busy host doubled characters in the middle of a line.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use regex_lite::Regex;

use crate::accel::Accel;
use crate::boot_line::{self, BootLine};
use crate::image::GuestImage;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::slots::{self, Slot};
use crate::wait;

/// What the machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, without Secure Boot.
    Uefi,
}

/// The machine's network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// Paravirtual.
    Virtio,
    /// Intel 82540EM, a real card's register set.
    E1000,
    /// Intel 82574L, likewise.
    E1000e,
}

#[derive(Debug, Clone)]
enum Network {
    None,
    /// QEMU's own network: no root, the host's loopback is 10.0.2.2; its DHCP hands iPXE this URL.
    User {
        bootfile: String,
    },
    /// A tap in a namespace: how to get in, and the tap's name.
    Tap {
        enter: Vec<std::ffi::OsString>,
        tap: String,
    },
}

/// What is started instead of whatever the firmware would boot.
#[derive(Debug, Clone)]
struct Kernel {
    vmlinuz: PathBuf,
    initrd: PathBuf,
    append: String,
}

/// What a command in the guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Its standard output and error, as one text.
    pub text: String,
}

/// Describes a machine; [`boot`](Self::boot) switches it on.
#[derive(Debug)]
pub struct GuestBuilder {
    name: String,
    firmware: Firmware,
    mac: String,
    network: Network,
    nic: Nic,
    option_rom: bool,
    memory_mib: u32,
    kernel: Option<Kernel>,
    slot: Option<Slot>,
    logs: Option<PathBuf>,
    extra: Vec<String>,
}

impl GuestBuilder {
    /// BIOS (the default) or UEFI.
    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// The MAC address; by default one made from the process id and a counter.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        mac.clone_into(&mut self.mac);
        self
    }

    /// QEMU's user-mode network: the card's iPXE gets `url` as its boot file, the host's loopback is 10.0.2.2.
    #[must_use]
    pub fn user_network(mut self, url: impl Into<String>) -> Self {
        self.network = Network::User { bootfile: url.into() };
        self
    }

    /// A tap made by [`Netns::tap`]; QEMU runs inside of that namespace.
    #[must_use]
    pub fn tap(mut self, ns: &Netns, tap: &str) -> Self {
        let probe = ns.command("qemu");
        let mut enter = vec![probe.get_program().to_owned()];
        enter.extend(probe.get_args().map(ToOwned::to_owned));
        // The last word is the stand-in for QEMU itself.
        enter.pop();
        self.network = Network::Tap { enter, tap: tap.to_owned() };
        self
    }

    /// The network card, by default [`Nic::Virtio`].
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nic = nic;
        self
    }

    /// Whether the card has its option ROM, which is iPXE (default: yes). Without it OVMF boots by its own PXE client;
    /// a BIOS machine without it boots no network.
    #[must_use]
    pub fn option_rom(mut self, on: bool) -> Self {
        self.option_rom = on;
        self
    }

    /// Memory in MiB, by default 512.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Starts this kernel with this initramfs and command line, instead of whatever the firmware would boot. The serial line must
    /// be named in the command line.
    #[must_use]
    pub fn kernel(mut self, vmlinuz: &Path, initrd: &Path, append: &str) -> Self {
        let (vmlinuz, initrd) = (vmlinuz.to_owned(), initrd.to_owned());
        self.kernel = Some(Kernel { vmlinuz, initrd, append: append.to_owned() });
        self
    }

    /// Uses a place reserved before by [`slots::reserve`], for tests that run two machines at once.
    #[must_use]
    pub fn slot(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// Keeps the machine's files (serial log, QEMU's log) in this folder instead of a temporary one.
    #[must_use]
    pub fn logs_in(mut self, dir: &Path) -> Self {
        self.logs = Some(dir.to_owned());
        self
    }

    /// More arguments for QEMU.
    #[must_use]
    pub fn qemu_args(mut self, args: &[&str]) -> Self {
        self.extra.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Waits for a free place (at most two machines run on a host) and switches the machine on.
    ///
    /// # Errors
    /// A package is missing, no place became free, or QEMU does not start.
    pub fn boot(mut self) -> Result<Guest> {
        let image = GuestImage::get()?;
        let accel = Accel::of_host(&image)?;
        let slot = match self.slot.take() {
            Some(slot) => slot,
            None => slots::reserve(1)?.pop().context("no slot")?,
        };
        let dir = tempfile::Builder::new().prefix("ggnet-vm-").tempdir()?;
        let logs = self.logs.clone().unwrap_or_else(|| dir.path().to_owned());
        std::fs::create_dir_all(&logs)?;
        let serial_log = logs.join(format!("{}.serial.log", self.name));
        std::fs::write(&serial_log, b"")?;
        let mut guest = Guest {
            qemu_log: logs.join(format!("{}.qemu.log", self.name)),
            machine: self,
            accel,
            dir,
            serial_log,
            qemu: None,
            serial: None,
            copier: None,
            read_to: 0,
            _slot: slot,
        };
        guest.power_on()?;
        Ok(guest)
    }
}

/// A machine. Dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    machine: GuestBuilder,
    accel: Accel,
    dir: tempfile::TempDir,
    serial_log: PathBuf,
    qemu_log: PathBuf,
    qemu: Option<Process>,
    serial: Option<UnixStream>,
    /// Copies the serial line to its log; ends with QEMU.
    copier: Option<JoinHandle<()>>,
    /// How far into the serial log boots were already reported.
    read_to: usize,
    _slot: Slot,
}

impl Guest {
    /// A machine called `name` (for its log files and messages), with the defaults.
    #[must_use]
    pub fn builder(name: &str) -> GuestBuilder {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        GuestBuilder {
            name: name.to_owned(),
            firmware: Firmware::Bios,
            mac: format!(
                "52:54:{:02x}:{:02x}:{:02x}:{:02x}",
                (pid >> 16) & 255,
                (pid >> 8) & 255,
                pid & 255,
                n & 255
            ),
            network: Network::None,
            nic: Nic::Virtio,
            option_rom: true,
            memory_mib: 512,
            kernel: None,
            slot: None,
            logs: None,
            extra: Vec::new(),
        }
    }

    /// The machine's MAC address.
    #[must_use]
    pub fn mac(&self) -> &str {
        &self.machine.mac
    }

    /// The file that holds all the serial line ever said.
    #[must_use]
    pub fn serial_log(&self) -> &Path {
        &self.serial_log
    }

    /// All the serial line ever said, without carriage returns.
    #[must_use]
    pub fn serial_text(&self) -> String {
        let bytes = std::fs::read(&self.serial_log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Switches the machine on, with the firmware's variables fresh. Nothing to do if it runs.
    ///
    /// # Errors
    /// QEMU does not start; the error holds its output.
    pub fn power_on(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        self.expect_new_boot();
        let socket = self.dir.path().join("serial");
        let _ = std::fs::remove_file(&socket);
        let command = self.qemu_command(&socket)?;
        let mut qemu = Process::spawn(&format!("qemu ({})", self.machine.name), command, &self.qemu_log)?;
        let stream = wait::until("QEMU's serial socket", wait::SHORT, || {
            qemu.check_running()?;
            Ok(UnixStream::connect(&socket).ok())
        })?;
        let mut line = stream.try_clone()?;
        let mut log = OpenOptions::new().append(true).open(&self.serial_log)?;
        self.copier = Some(std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = line.read(&mut chunk) {
                if log.write_all(&chunk[..n]).is_err() {
                    break;
                }
            }
        }));
        self.serial = Some(stream);
        self.qemu = Some(qemu);
        Ok(())
    }

    fn qemu_command(&self, socket: &Path) -> Result<Command> {
        let m = &self.machine;
        let binary = process::tool("qemu-system-x86_64", "qemu-system-x86")?;
        let mut qemu = match &m.network {
            Network::Tap { enter, .. } => {
                let mut c = Command::new(&enter[0]);
                c.args(&enter[1..]).arg(binary);
                c
            }
            _ => process::command(binary),
        };
        // graphics=off: SeaBIOS copies what iPXE and GRUB print to the serial line.
        qemu.args(["-name", &m.name, "-machine", "q35,graphics=off", "-display", "none", "-nodefaults"])
            .args(self.accel.args())
            .args(["-m", &m.memory_mib.to_string(), "-device", "virtio-rng-pci"]);
        if m.firmware == Firmware::Uefi {
            let code = process::package_file("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")?;
            let vars = self.dir.path().join("vars.fd");
            std::fs::copy(process::package_file("/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf")?, &vars)?;
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={}", code.display()));
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,file={}", vars.display()));
        }
        match &m.network {
            Network::None => bail!("machine {} has no network: user_network() or tap()", m.name),
            Network::User { bootfile } => {
                // In QEMU's option syntax a comma is doubled.
                qemu.arg("-netdev").arg(format!("user,id=n0,bootfile={}", bootfile.replace(',', ",,")));
            }
            Network::Tap { tap, .. } => {
                qemu.arg("-netdev").arg(format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
            }
        }
        let model = match m.nic {
            Nic::Virtio => "virtio-net-pci",
            Nic::E1000 => "e1000",
            Nic::E1000e => "e1000e",
        };
        if m.option_rom {
            process::package_file("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu")?;
        }
        let rom = if m.option_rom { "" } else { ",romfile=" };
        // The kernel's loader has the first place in the boot order, where it is used.
        let boot = if m.kernel.is_some() { "" } else { ",bootindex=0" };
        qemu.arg("-device").arg(format!("{model},netdev=n0,mac={}{boot}{rom}", m.mac));
        if let Some(kernel) = &m.kernel {
            qemu.arg("-kernel").arg(&kernel.vmlinuz).arg("-initrd").arg(&kernel.initrd);
            qemu.args(["-append", &kernel.append]);
        }
        qemu.arg("-chardev").arg(format!(
            // wait=on: nothing is said before we listen.
            "socket,id=s0,path={},server=on,wait=on",
            socket.display()
        ));
        qemu.args(["-serial", "chardev:s0"]).args(&m.extra);
        Ok(qemu)
    }

    /// Whether the machine is on.
    pub fn is_running(&mut self) -> bool {
        let on = self.qemu.as_mut().is_some_and(Process::is_running);
        if !on {
            self.finish_log();
        }
        on
    }

    /// After QEMU's end: waits until its last words are in the log.
    fn finish_log(&mut self) {
        self.serial = None;
        if let Some(copier) = self.copier.take() {
            // It has no result, and a panic of it has been printed.
            let _ = copier.join();
        }
    }

    /// Waits until the serial line has said something that `pattern` matches, since the last boot that was reported, and
    /// returns the match.
    ///
    /// # Errors
    /// The pattern is not one, the machine went off, or `limit` passed: the error holds the end of the serial log.
    pub fn wait_for(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        let regex = Regex::new(pattern)?;
        let what = format!("/{pattern}/ on the serial line of {}", self.machine.name);
        let from = self.read_to;
        let found = wait::until(&what, limit, || {
            let on = self.is_running();
            let text = self.serial_text();
            let hit = text.get(from..).and_then(|t| regex.find(t)).map(|m| m.as_str().to_owned());
            if hit.is_none() && !on {
                bail!("machine {} went off; QEMU said: {}", self.machine.name, self.qemu_log_text());
            }
            Ok(hit)
        });
        found.with_context(|| format!("{}: the serial line ends with:\n{}", self.machine.name, self.tail()))
    }

    /// Waits until the guest is up and returns what it says of its boot. Each boot is returned once: after a restart the
    /// next call waits for the next one.
    ///
    /// # Errors
    /// The guest says that it failed, the machine went off, or 7 minutes passed: the error holds the end of the log.
    pub fn wait_boot(&mut self) -> Result<BootLine> {
        let both = format!("(?m)^({}|{}).* up=.*\n", boot_line::OK, boot_line::FAIL);
        let line = self.wait_for(&both, wait::BOOT)?;
        let text = self.serial_text();
        let at = text[self.read_to..].find(&line).context("the serial log shrank")?;
        self.read_to += at + line.len();
        ensure!(line.starts_with(boot_line::OK), "{}: {line}\n{}", self.machine.name, self.tail());
        BootLine::parse(&line)
    }

    /// Forgets what the serial line has said so far: a line that an earlier boot said, or that a command repeated, is no
    /// announcement of the boot that comes now.
    fn expect_new_boot(&mut self) {
        self.read_to = self.serial_text().len();
    }

    /// Runs a command in the guest's root shell and returns its output and exit code. Waits for its end: put what should go
    /// on in the background, with its output elsewhere.
    ///
    /// The shell lives in memory: it answers while the guest's disk is away, as long as the command itself needs no disk.
    ///
    /// # Errors
    /// No answer in two minutes (the guest hangs, or its disk is away), or the machine is off.
    pub fn shell(&mut self, command: &str) -> Result<Answer> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Unique over all tests, so that no older answer in the log matches.
        let tag = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let from = self.serial_text().len();
        // Echo off: the log holds answers only, and busybox reads plain lines. The tags are split where they are typed, so
        // that an echoed line is no answer.
        let line = format!("\nstty -echo; echo B''EG-{tag}; ( {command}\n) 2>&1; echo E''ND-{tag} $?\n");
        self.type_text(&line)?;
        let what = format!("the answer of {} to: {command}", self.machine.name);
        let (begin, end) = (format!("BEG-{tag}\n"), format!("END-{tag} "));
        let answer = wait::until(&what, Duration::from_secs(120), || {
            ensure!(self.is_running(), "machine {} went off", self.machine.name);
            let text = self.serial_text();
            let new = text.get(from..).unwrap_or_default();
            let Some((_, body)) = new.split_once(&begin) else { return Ok(None) };
            let Some((body, rest)) = body.rsplit_once(&end) else { return Ok(None) };
            let Some((code, _)) = rest.split_once('\n') else { return Ok(None) };
            Ok(Some(Answer { code: code.trim().parse().context("exit code")?, text: body.to_owned() }))
        });
        answer.with_context(|| format!("{}: the serial line ends with:\n{}", self.machine.name, self.tail()))
    }

    /// [`shell`](Self::shell) for a command that must succeed; returns its output, trimmed.
    ///
    /// # Errors
    /// As `shell`, or the command ends with another code than 0.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        let answer = self.shell(command)?;
        ensure!(
            answer.code == 0,
            "{command} in {} ended with {}:\n{}",
            self.machine.name,
            answer.code,
            answer.text
        );
        Ok(answer.text.trim().to_owned())
    }

    /// Waits until the guest's iSCSI session is in a state that `pattern` matches: `LOGGED_IN`, `FAILED` or `FREE`.
    ///
    /// # Errors
    /// As [`shell`](Self::shell), or it does not get there in two minutes.
    pub fn wait_session(&mut self, pattern: &str) -> Result<()> {
        let regex = Regex::new(pattern)?;
        let what = format!("the session of {} to be {pattern}", self.machine.name);
        wait::until(&what, Duration::from_secs(120), || {
            Ok(regex.is_match(&self.sh("cat /sys/class/iscsi_session/*/state")?).then_some(()))
        })
    }

    /// Types text on the serial line.
    ///
    /// # Errors
    /// The machine is off.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let serial = self.serial.as_mut().with_context(|| format!("machine {} is off", self.machine.name))?;
        serial.write_all(text.as_bytes()).with_context(|| format!("serial line of {}", self.machine.name))
    }

    /// A warm restart asked of the guest itself; returns when the guest goes down. The firmware then boots the network
    /// again: `wait_boot` waits for that.
    ///
    /// # Errors
    /// The guest does not react.
    pub fn reboot(&mut self) -> Result<()> {
        self.expect_new_boot();
        self.type_text("\nreboot\n")?;
        self.wait_for("Requesting system reboot", wait::BOOT).map(drop)
    }

    /// Asks the guest to power off and waits until the machine is off. Its file system is clean then.
    ///
    /// # Errors
    /// The guest does not react.
    pub fn power_off(&mut self) -> Result<()> {
        self.type_text("\npoweroff\n")?;
        if let Some(mut qemu) = self.qemu.take() {
            let ended = qemu.wait(wait::BOOT);
            ended.with_context(|| {
                format!("{}: the serial line ends with:\n{}", self.machine.name, self.tail())
            })?;
        }
        self.finish_log();
        Ok(())
    }

    /// The mains plug: `kill -9` of the machine, in the middle of whatever it does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn power_cut(&mut self) -> Result<()> {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill()?;
        }
        self.finish_log();
        Ok(())
    }

    fn qemu_log_text(&self) -> String {
        std::fs::read_to_string(&self.qemu_log).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let text = self.serial_text();
        let lines: Vec<&str> = text.lines().rev().take(25).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}
