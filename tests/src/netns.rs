//! A network of one's own: a namespace with bridges, taps and veth pairs, gone when the value is dropped.
//!
//! As root by `ip netns`; else by `unshare -Urn`, whose namespaces live as long as the processes that hold them: one for the
//! user namespace of this process, so that veth pairs may join its networks, and one for each network. Only local addresses:
//! nothing leads out. Names are unique on the host, so tests run beside each other.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::process::{self, Process, WITH_US};
use crate::wait;

/// A network namespace. What runs in it must be dropped before it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    kind: Kind,
    /// Logs of the holder.
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
enum Kind {
    /// Made by `ip netns add`.
    Named,
    /// The namespace of this sleeping process.
    Held(Process),
}

impl Netns {
    /// A new namespace with its loopback up.
    ///
    /// # Errors
    /// Neither way works on this host: the error says what forbids it.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        process::tool("ip", "iproute2")?;
        let name = format!("ggt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir()?;
        let kind = if geteuid().is_root() {
            process::run(Command::new("ip").args(["netns", "add", &name])).context(
                "`ip netns add` is refused although this is root: a container without CAP_SYS_ADMIN?",
            )?;
            Kind::Named
        } else {
            Kind::Held(hold(dir.path())?)
        };
        let ns = Self { name, kind, _dir: dir };
        ns.ip(&["link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// A command that runs `program` inside, and dies with us.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.kind {
            Kind::Named => {
                let mut c = Command::new("ip");
                c.args(["netns", "exec", &self.name]);
                c
            }
            Kind::Held(holder) => {
                let mut c = Command::new("nsenter");
                c.args([
                    "--preserve-credentials",
                    "--user",
                    "--net",
                    "--target",
                    &holder.pid().to_string(),
                    "--",
                ]);
                c
            }
        };
        command.args(WITH_US).arg(program);
        command
    }

    /// Runs `ip ARGS` inside and returns what it says.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        process::run(self.command("ip").args(args))
    }

    /// A bridge that is up, with an address such as `10.77.0.1/24`. Forwards at once (no spanning tree), no IPv6.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn bridge(&self, name: &str, address: &str) -> Result<()> {
        self.ip(&[
            "link",
            "add",
            name,
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        self.ip(&["link", "set", name, "addrgenmode", "none"])?;
        self.ip(&["addr", "add", address, "dev", name])?;
        self.ip(&["link", "set", name, "up"])?;
        Ok(())
    }

    /// A tap on a bridge, for [`GuestBuilder::tap`](crate::GuestBuilder::tap).
    ///
    /// # Errors
    /// `ip` refuses, or `/dev/net/tun` may not be opened: the error says so.
    pub fn tap(&self, name: &str, bridge: &str) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap"]).with_context(|| {
            format!(
                "no tap device: is the module tun loaded, and may this user (uid {}) open /dev/net/tun?",
                geteuid().as_raw()
            )
        })?;
        self.ip(&["link", "set", name, "master", bridge, "addrgenmode", "none"])?;
        self.ip(&["link", "set", name, "up"])?;
        Ok(())
    }

    /// A veth pair: `outer` on a bridge here, `inner` free with an address (or none if empty), both up. For a client that
    /// should look like another host, without a namespace of its own.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn veth(&self, outer: &str, bridge: &str, inner: &str, address: &str) -> Result<()> {
        self.ip(&["link", "add", outer, "type", "veth", "peer", "name", inner])?;
        self.ip(&["link", "set", outer, "master", bridge, "up"])?;
        if !address.is_empty() {
            self.ip(&["addr", "add", address, "dev", inner])?;
        }
        self.ip(&["link", "set", inner, "up"])?;
        Ok(())
    }

    /// A veth pair from a bridge here to `inner` in another namespace: a host with routes and ports of its own.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn veth_to(&self, outer: &str, bridge: &str, other: &Self, inner: &str, address: &str) -> Result<()> {
        let target = match &other.kind {
            Kind::Named => other.name.clone(),
            Kind::Held(holder) => holder.pid().to_string(),
        };
        self.ip(&["link", "add", outer, "type", "veth", "peer", "name", inner, "netns", &target])?;
        self.ip(&["link", "set", outer, "master", bridge, "up"])?;
        if !address.is_empty() {
            other.ip(&["addr", "add", address, "dev", inner])?;
        }
        other.ip(&["link", "set", inner, "up"])?;
        Ok(())
    }
}

/// A process that sits in a new network namespace until it is killed.
fn hold(dir: &Path) -> Result<Process> {
    static USER: Mutex<Option<Process>> = Mutex::new(None);
    let mut user = USER.lock().unwrap_or_else(PoisonError::into_inner);
    let user = match &mut *user {
        Some(user) => user,
        none => {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--"]);
            none.insert(sleeper("holder of the user namespace", command, &dir.join("user"))?)
        }
    };
    let mut command = Command::new("nsenter");
    command.args([
        "--preserve-credentials",
        "--user",
        "--target",
        &user.pid().to_string(),
        "--",
        "unshare",
        "--net",
        "--",
    ]);
    sleeper("holder of the network namespace", command, &dir.join("net"))
}

/// Starts `command sleep infinity` and waits until whatever stands before `sleep` has done its work.
fn sleeper(name: &str, mut command: Command, log: &Path) -> Result<Process> {
    command.args(WITH_US).args(["sleep", "infinity"]);
    let mut holder = Process::spawn(name, command, log)?;
    let comm = format!("/proc/{}/comm", holder.pid());
    wait::until("a namespace of our own", wait::SHORT, || {
        if !holder.is_running() {
            let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
            bail!(
                "this user may not make network namespaces: `unshare -Urn` says {:?} (user.max_user_namespaces is {}; \
                 kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns or a container's seccomp \
                 filter forbid it too). Run as root, or allow it.",
                holder.log_text().trim(),
                limit.trim()
            );
        }
        Ok((std::fs::read_to_string(&comm).unwrap_or_default().trim() == "sleep").then_some(()))
    })?;
    Ok(holder)
}

impl Drop for Netns {
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Named) {
            let _ = process::output(Command::new("ip").args(["netns", "del", &self.name]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_namespaces_reach_each_other_over_a_bridge() {
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        a.bridge("br0", "10.77.0.1/24").unwrap();
        a.veth_to("v0", "br0", &b, "eth0", "10.77.0.2/24").unwrap();
        let routes = b.ip(&["route"]).unwrap();
        assert!(routes.contains("10.77.0.0/24 dev eth0"), "{routes}");
        assert!(!routes.contains("default"), "{routes}");
        assert!(a.ip(&["link", "show", "br0"]).unwrap().contains("UP"));
        // A refusal has come over the bridge and back.
        let knock = process::output(b.command("bash").args(["-c", "exec 3<>/dev/tcp/10.77.0.1/9"])).unwrap();
        let said = String::from_utf8_lossy(&knock.stderr).into_owned();
        assert!(said.contains("refused"), "{said}");
    }
}
