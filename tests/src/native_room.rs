//! A room whose server is a virtual machine: Debian with systemd, its kernel's iSCSI target and its daemons, and the product as
//! `make install` puts it there. Machines that boot from it stand beside it on one bridge.
//!
//! ```text
//!   test ── API over a relay ──┐
//!                              ▼
//!   [bridge in a namespace] ── server machine (10.79.0.1): systemd → ggnet-server → configfs, dhcpd or dnsmasq, in.tftpd
//!          └── machines of the test
//! ```
//! Three disks: Debian, thrown away at the end; what the product is installed from; and the store, on XFS.
//!
//! Invariant: the server machine has nothing of GGnet but what `make install` put there and the configuration that a test gives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::api::Api;
use crate::guest::Guest;
use crate::image::GuestImage;
use crate::lan::relay;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::server::{binary, token_in};
use crate::{slots, wait};

/// The server's address.
pub const SERVER: &str = "10.79.0.1";
/// Where the image that machines boot stands in the server machine.
pub const IMAGE: &str = "/product/import/guest.qcow2";
/// What every configuration here begins with; `[target]` and `[dhcp]` come after it. The times are those of an emulated machine, which is up
/// to a hundred times slower than a real one while the host does other work: fifty stops at once kept its processors for 56 s, and a commit
/// waited for longer than the usual 30 s.
pub const COMMON: &str = r#"
data_dir = "/var/lib/ggnet"
[http]
listen = "0.0.0.0:8080"
[network]
advertise = "10.79.0.1"
[images]
import_dirs = ["/product/import"]
[session]
reconcile_interval = "2s"
start_deadline = "10m"
[limits.store]
read = "2m"
change = "10m"
[writeback]
backend = "reflink"
[boot_files]
backend = "tftpd-hpa"
"#;
/// The kernel's target by the helper.
pub const BY_HELPER: &str = "[target]\nbackend = \"lio-configfs\"\nlisten = [\"0.0.0.0:3260\"]\nhelper = \"/run/ggnet/helper.sock\"\n";
/// The kernel's target by a server that is root.
pub const BY_CONFIGFS: &str = "[target]\nbackend = \"lio-configfs\"\nlisten = [\"0.0.0.0:3260\"]\n";
/// The kernel's target by `targetcli`, by a server that is root.
pub const BY_TARGETCLI: &str = "[target]\nbackend = \"lio-targetcli\"\nlisten = [\"0.0.0.0:3260\"]\n";
/// Where the server looks for its configuration.
const CONFIG: &str = "/etc/ggnet/ggnet-server.toml";

/// Which DHCP server runs in the server machine, and how GGnet tells it of machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dhcp {
    /// dnsmasq.
    Dnsmasq,
    /// ISC's dhcpd, restarted for each change.
    Dhcpd,
    /// ISC's dhcpd, told over its OMAPI port.
    DhcpdByOmapi,
}

impl Dhcp {
    /// Its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        if self == Self::Dnsmasq { "dnsmasq.service" } else { "isc-dhcp-server.service" }
    }

    /// The section `[dhcp]` for it; `by_helper` for a server that is not root.
    #[must_use]
    pub fn config(self, by_helper: bool) -> String {
        let backend = if self == Self::Dnsmasq { "dnsmasq" } else { "isc-dhcpd" };
        let service = if by_helper { "service = { manager = \"helper\" }\n" } else { "" };
        let omapi = if self == Self::DhcpdByOmapi {
            "[dhcp.omapi]\nkey_name = \"ggnet\"\nkey_file = \"/etc/ggnet/omapi.key\"\n"
        } else {
            ""
        };
        format!("[dhcp]\nbackend = \"{backend}\"\nmac_prefix = false\n{service}{omapi}")
    }

    /// The commands of the operators' guide for its own configuration, out of `infra/examples`.
    fn set_up(self) -> Vec<&'static str> {
        const DNSMASQ: &str = "sed -e 's/192\\.0\\.2\\./10.79.0./g' /product/infra/examples/dnsmasq.conf >/etc/dnsmasq.d/ggnet.conf";
        const DHCPD: [&str; 2] = [
            "sed -e 's/192\\.0\\.2\\./10.79.0./g' /product/infra/examples/dhcpd.conf >/etc/dhcp/dhcpd.conf",
            "echo 'INTERFACESv4=\"eth0\"' >/etc/default/isc-dhcp-server && touch /etc/dhcp/ggnet/hosts.conf",
        ];
        const OMAPI: [&str; 4] = [
            "(umask 027; head -c 32 /dev/urandom | base64 >/etc/ggnet/omapi.key)",
            "(umask 027; sed \"s|secret .*|secret \\\"$(cat /etc/ggnet/omapi.key)\\\";|\" /product/infra/examples/ggnet-omapi.conf \
             >/etc/dhcp/ggnet-omapi.conf)",
            "chgrp ggnet /etc/ggnet/omapi.key /etc/dhcp/ggnet-omapi.conf",
            "sed -i 's|^#include \"/etc/dhcp/ggnet-omapi.conf\"|include \"/etc/dhcp/ggnet-omapi.conf\"|' /etc/dhcp/dhcpd.conf",
        ];
        match self {
            Self::Dnsmasq => vec![DNSMASQ],
            Self::Dhcpd => DHCPD.to_vec(),
            Self::DhcpdByOmapi => [&DHCPD[..], &OMAPI[..]].concat(),
        }
    }
}

/// The server machine's Debian, built once by `tests/server-vm/build` and shared.
#[derive(Debug, Clone)]
struct ServerVm {
    dir: PathBuf,
}

impl ServerVm {
    fn get() -> Result<Self> {
        Ok(Self { dir: process::built_by("server-vm/build", &[])? })
    }
}

/// The room. Machines in it must be dropped before it.
#[derive(Debug)]
pub struct NativeRoom {
    /// The server machine.
    pub server: Guest,
    taps: AtomicU32,
    relay_port: u16,
    _relay: Process,
    ns: Netns,
    _dir: tempfile::TempDir,
}

impl NativeRoom {
    /// Boots the server machine and installs the product in it, which is not started yet. `programs` are put into `/product/bin`,
    /// beside the server and its client.
    ///
    /// # Errors
    /// A tool is missing, namespaces are forbidden, the machine does not come up, or the installation fails.
    pub fn new(programs: &[(&str, &Path)]) -> Result<Self> {
        let vm = ServerVm::get()?;
        let dir = tempfile::Builder::new().prefix("ggnet-native-").tempdir()?;
        let slot = slots::reserve_server()?;
        let ns = Netns::new()?;
        ns.bridge("br0", "10.79.0.254/24")?;
        ns.tap("server", "br0")?;
        let [root, product, store] = disks(&vm, programs, dir.path())?;
        let drive = |file: &Path, format: &str| {
            format!("file={},if=virtio,format={format},cache=unsafe,discard=unmap", file.display())
        };
        let append = "root=/dev/vda rw console=ttyS0,115200 net.ifnames=0 mitigations=off quiet loglevel=1 systemd.show_status=false \
                      audit=0 no_timer_check";
        let machine =
            Guest::builder("server").tap(&ns, "server").slot(slot).memory_mib(2048).option_rom(false);
        let machine = machine.kernel(&vm.dir.join("vmlinuz"), &vm.dir.join("initrd"), append);
        let mut server = machine
            .qemu_args(&["-smp", "2", "-drive", &drive(&root, "qcow2"), "-drive", &drive(&product, "raw")])
            .qemu_args(&["-drive", &drive(&store, "raw")])
            .boot()?;
        server.wait_for("GGNET-SERVER-VM-READY", wait::BOOT)?;
        server.sh("mkdir /product && mount -o ro /dev/vdb /product")?;
        server.sh("mkfs.xfs -q /dev/vdc && mkdir -p /var/lib/ggnet && mount /dev/vdc /var/lib/ggnet")?;
        server.sh("make --no-print-directory -C /product install BIN_DIR=/product/bin")?;
        // What it says is next.
        server.sh("systemd-sysusers && systemd-tmpfiles --create ggnet.conf && systemctl daemon-reload")?;
        let relay_port = process::free_port()?;
        let relay = relay(&ns, SERVER, relay_port, dir.path())?;
        Ok(Self { server, taps: AtomicU32::new(0), relay_port, _relay: relay, ns, _dir: dir })
    }

    /// Writes a file in the server machine.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn write(&mut self, path: &str, text: &str) -> Result<()> {
        // A line at a time: a terminal takes no more than 4 KiB of one.
        self.server.sh(&format!(": >{path}.new"))?;
        for part in text.lines().collect::<Vec<_>>().chunks(20) {
            let quoted = part.join("\n").replace('\'', r"'\\''");
            self.server.sh(&format!("printf '%s\n' '{quoted}' >>{path}.new"))?;
        }
        self.server.sh(&format!("mv {path}.new {path}")).map(drop)
    }

    /// Has this DHCP server run, and in.tftpd and the helper's socket; the other DHCP server is stopped.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn daemons(&mut self, dhcp: Dhcp) -> Result<()> {
        for command in dhcp.set_up() {
            self.server.sh(command)?;
        }
        let unit = dhcp.unit();
        self.server.sh(&format!(
            "systemctl stop dnsmasq isc-dhcp-server; systemctl start {unit} tftpd-hpa && systemctl enable -q --now ggnet-helper.socket"
        ))?;
        Ok(())
    }

    /// From its next start on the server is root, as the example for its unit says; it must not run now.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn become_root(&mut self) -> Result<()> {
        let unit = "/etc/systemd/system/ggnet-server.service.d";
        let example = "/product/infra/examples/ggnet-server-targetcli.conf";
        self.server.sh(&format!("mkdir -p {unit} && cp {example} {unit}/targetcli.conf")).map(drop)
    }

    /// Stops the server's unit.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn stop(&mut self) -> Result<()> {
        self.server.sh("systemctl stop ggnet-server").map(drop)
    }

    /// Starts the server's unit with this configuration and waits until machines can boot.
    ///
    /// # Errors
    /// It does not become ready: the error holds its journal.
    pub fn start(&mut self, config: &str) -> Result<Api> {
        self.write(CONFIG, config)?;
        self.server
            .sh("systemctl daemon-reload && systemctl start ggnet-server")
            .map_err(|e| e.context(self.journal().unwrap_or_default()))?;
        let token = self.token()?;
        let api = Api::new(&format!("http://127.0.0.1:{}", self.relay_port), &token)?;
        self.ready(&api)?;
        Ok(api)
    }

    /// Waits until machines can boot.
    ///
    /// # Errors
    /// They cannot in two minutes: the error holds the journal.
    pub fn ready(&mut self, api: &Api) -> Result<()> {
        let ready = wait::until("the server to be ready", Duration::from_secs(120), || {
            Ok(api.is_ready().then_some(()))
        });
        ready.map_err(|e| {
            e.context(self.journal().unwrap_or_default())
                .context(format!("the server says: {:?}", api.health()))
        })
    }

    /// The administrator token that the server's first start has printed.
    fn token(&mut self) -> Result<String> {
        let said = self.server.sh("journalctl -u ggnet-server -o cat --no-pager")?;
        token_in(&said).with_context(|| format!("no token in the journal:\n{said}"))
    }

    /// What the server's unit has logged.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn journal(&mut self) -> Result<String> {
        self.server.sh("systemctl status --no-pager -l ggnet-server; journalctl -u ggnet-server -u ggnet-helper -o cat --no-pager | tail -60; true")
    }

    /// The namespace with the bridge.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// A new tap on the bridge; returns its name.
    ///
    /// # Errors
    /// As [`Netns::tap`].
    pub fn tap(&self) -> Result<String> {
        let name = format!("tap{}", self.taps.fetch_add(1, Ordering::Relaxed));
        self.ns.tap(&name, "br0")?;
        Ok(name)
    }
}

/// Debian's disk, thrown away; the product's; the store's, empty.
fn disks(vm: &ServerVm, programs: &[(&str, &Path)], dir: &Path) -> Result<[PathBuf; 3]> {
    let [root, product, store] = ["root.qcow2", "product.img", "store.img"].map(|name| dir.join(name));
    let tool = process::tool("qemu-img", "qemu-utils")?;
    process::run(
        Command::new(tool)
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(vm.dir.join("root.img"))
            .arg(&root),
    )?;
    std::fs::File::create(&store)?.set_len(8 << 30)?;

    let stage = dir.join("product");
    std::fs::create_dir_all(stage.join("bin"))?;
    std::fs::create_dir_all(stage.join("import"))?;
    let server = binary()?;
    let client = server.with_file_name("ggnet");
    for (name, from) in
        [("ggnet-server", server.as_path()), ("ggnet", client.as_path())].iter().chain(programs)
    {
        // Debug information is most of them.
        let strip = process::tool("strip", "binutils")?;
        process::run(Command::new(strip).arg("-g").arg("-o").arg(stage.join("bin").join(name)).arg(from))?;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for part in ["Makefile", "infra"] {
        process::run(Command::new("cp").arg("-a").arg(repository.join(part)).arg(&stage))?;
    }
    process::run(Command::new("cp").arg(GuestImage::get()?.qcow2()).arg(stage.join("import")))?;
    let used = process::run(Command::new("du").args(["-s", "-B", "1"]).arg(&stage))?;
    let used: u64 = used.split_whitespace().next().unwrap_or_default().parse().context("du")?;
    std::fs::File::create(&product)?.set_len(used * 6 / 5 + (32 << 20))?;
    process::run(
        Command::new(process::tool("mkfs.ext4", "e2fsprogs")?).args(["-q", "-d"]).arg(&stage).arg(&product),
    )?;
    std::fs::remove_dir_all(stage)?;
    Ok([root, product, store])
}
