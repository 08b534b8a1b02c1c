//! A LAN of one's own: the real `ggnet-server` on a bridge, a router that gives addresses and nothing else, and taps for
//! machines that boot over the wire.
//!
//! The server has a network namespace, the router (dnsmasq) another, joined by a veth pair, so that each has its own port 67.
//! The test talks to the API through a relay on the host's loopback, because it stands outside of both.
//!
//! Invariant: the server is told nothing but its interface; every address that machines learn, it finds out itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::api::Api;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::server::{binary, token_in};
use crate::wait;

/// The server's address on the LAN.
pub const SERVER: &str = "10.78.0.1";
/// The router's.
pub const ROUTER: &str = "10.78.0.254";

/// The LAN. Machines on it must be dropped before it.
#[derive(Debug)]
pub struct Lan {
    api: Api,
    data_dir: PathBuf,
    taps: AtomicU32,
    // In this order: what runs in a namespace ends before it.
    _relay: Process,
    server: Process,
    router: Process,
    ns: Netns,
    _router_ns: Netns,
    _dir: tempfile::TempDir,
}

impl Lan {
    /// Switches everything on and waits until machines can boot. `config` is the server's configuration file, `import_dirs` the
    /// folders to import from.
    ///
    /// # Errors
    /// A tool is missing, namespaces are forbidden, or the server does not become ready: the error holds its log.
    pub fn new(config: &str, import_dirs: &[&Path]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ggnet-lan-").tempdir()?;
        let (ns, router_ns) = (Netns::new()?, Netns::new()?);
        ns.bridge("br0", &format!("{SERVER}/24"))?;
        ns.veth_to("router", "br0", &router_ns, "eth0", &format!("{ROUTER}/24"))?;
        let router = router(&router_ns, dir.path())?;

        let file = dir.path().join("config.toml");
        std::fs::write(&file, config)?;
        let data_dir = dir.path().join("data");
        let mut command = ns.command(binary()?);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("GGNET_")) {
            command.env_remove(name);
        }
        command.arg("--config").arg(file).arg("--data-dir").arg(&data_dir).args(["--interface", "br0"]);
        for import in import_dirs {
            command.arg("--import-dir").arg(import);
        }
        let mut server = Process::spawn("ggnet-server", command, &dir.path().join("server.log"))?;

        let port = process::free_port()?;
        let relay = relay(&ns, SERVER, port, dir.path())?;
        let url = format!("http://127.0.0.1:{port}");
        let ready = wait::until("the server to be ready", wait::SHORT, || {
            server.check_running()?;
            Ok(Api::new(&url, "")?.is_ready().then_some(()))
        });
        ready.with_context(|| format!("the server's log:\n{}", server.log_text()))?;
        let token = token_in(&server.log_text()).context("the server printed no token")?;
        Ok(Self {
            api: Api::new(&url, &token)?,
            data_dir,
            taps: AtomicU32::new(0),
            _relay: relay,
            server,
            router,
            ns,
            _router_ns: router_ns,
            _dir: dir,
        })
    }

    /// The API, with the administrator token.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The namespace with the bridge, for [`GuestBuilder::tap`](crate::GuestBuilder::tap) and for clients.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The server's process id.
    #[must_use]
    pub fn server_pid(&self) -> u32 {
        self.server.pid()
    }

    /// The server's data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
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

    /// Runs `curl ARGS` on the LAN and returns what it fetched.
    ///
    /// # Errors
    /// It is not installed, or could not fetch it.
    pub fn curl(&self, args: &[&str]) -> Result<Vec<u8>> {
        let curl = process::tool("curl", "curl")?;
        let mut command = self.ns.command(curl);
        let output = process::output(
            command.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]).args(args),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "curl {args:?}: {said}");
        Ok(output.stdout)
    }

    /// Asks for an address as this card's UEFI firmware does, until an offer has come. Unlike firmware `udhcpc` takes the first offer for the
    /// only one: whether it ends with an address depends on who was faster, the router or the server, which gives none.
    ///
    /// # Errors
    /// `udhcpc` is not installed, or nobody offered anything; `ip` refuses.
    pub fn uefi_asks(&self, mac: &str) -> Result<()> {
        let n = self.taps.fetch_add(1, Ordering::Relaxed);
        let (outer, inner) = (format!("port{n}"), format!("card{n}"));
        self.ns.veth(&outer, "br0", &inner, "")?;
        self.ns.ip(&["link", "set", &inner, "address", mac])?;
        let mut udhcpc = self.ns.command(process::tool("udhcpc", "udhcpc")?);
        udhcpc.args(["-i", &inner, "-f", "-q", "-n", "-t", "20", "-T", "1", "-s", "/bin/true"]);
        // Options 60 and 93 (RFC 4578): a PXE client of architecture 7.
        udhcpc.args(["-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007"]);
        let asked = process::output(&mut udhcpc)?;
        let said = String::from_utf8_lossy(&asked.stderr);
        ensure!(said.contains("broadcasting select"), "no offer: {said}");
        self.ns.ip(&["link", "del", &outer]).map(drop)
    }

    /// What the server wrote so far.
    #[must_use]
    pub fn server_log(&self) -> String {
        self.server.log_text()
    }

    /// What the router wrote so far: every DHCP packet it saw and sent.
    #[must_use]
    pub fn router_log(&self) -> String {
        self.router.log_text()
    }

    /// How often a machine asked the router for an address.
    #[must_use]
    pub fn discovers(&self, mac: &str) -> usize {
        self.router_log().lines().filter(|l| l.contains("DHCPDISCOVER(") && l.contains(mac)).count()
    }

    /// Waits until a line of the server's log contains all of these words, and returns it.
    ///
    /// # Errors
    /// None does within `limit`: the error holds the log.
    pub fn wait_log(&self, words: &[&str], limit: Duration) -> Result<String> {
        let found = wait::until(&format!("{words:?} in the server's log"), limit, || {
            let log = self.server_log();
            Ok(log.lines().find(|l| words.iter().all(|w| l.contains(w))).map(ToOwned::to_owned))
        });
        found.with_context(|| format!("the server's log:\n{}", self.server_log()))
    }
}

/// dnsmasq for addresses alone: no DNS, no TFTP, no boot file.
fn router(ns: &Netns, dir: &Path) -> Result<Process> {
    let mut command = ns.command(process::tool("dnsmasq", "dnsmasq-base")?);
    // In this mode it keeps its user and group; an unprivileged user namespace lets nobody change them.
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--bind-dynamic", "--interface=eth0"]);
    command.args([
        "--log-dhcp",
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-range=10.78.0.100,10.78.0.199,1h",
    ]);
    command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
    command.arg(format!("--pid-file={}", dir.join("dnsmasq.pid").display()));
    let mut process = Process::spawn("dnsmasq", command, &dir.join("dnsmasq.log"))?;
    wait::until("dnsmasq to listen", wait::SHORT, || {
        process.check_running()?;
        let log = process.log_text();
        Ok((log.contains("sockets bound exclusively") || log.contains("DHCP, IP range")).then_some(()))
    })?;
    Ok(process)
}

/// A server's HTTP port in a namespace on a port of the host's loopback.
///
/// # Errors
/// socat is missing, or does not start.
pub fn relay(ns: &Netns, server: &str, port: u16, dir: &Path) -> Result<Process> {
    let socat = process::tool("socat", "socat")?;
    let mut enter = ns.command(&socat);
    enter.args(["STDIO", &format!("TCP:{server}:8080")]);
    let mut command = process::command(socat);
    command.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"));
    command.arg(format!("EXEC:{}", words(&enter)));
    Process::spawn("relay (socat)", command, &dir.join("relay.log"))
}

/// A command as one line. Its words are tools, numbers and addresses: none holds a blank or a quote.
fn words(command: &Command) -> String {
    let args = std::iter::once(command.get_program()).chain(command.get_args());
    // A colon ends the program for socat where it is not escaped.
    args.map(|a| a.to_string_lossy().replace(':', "\\:")).collect::<Vec<_>>().join(" ")
}
