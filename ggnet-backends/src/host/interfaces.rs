//! The network interfaces of this namespace: names and masters from rtnetlink(7), addresses from getifaddrs(3), everything else from
//! `/sys/class/net`.
//!
//! `/sys` shows the network namespace in which it was mounted, which after `unshare --net` is not ours: it is used only if it lists the
//! same names as the kernel.

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

use super::{Finding, Level};
use crate::links;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The length of its network prefix in bits.
    pub prefix: u8,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address as the kernel formats it; `None` if it has none.
    pub mac: Option<String>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether it can carry packets: administratively up, with a carrier.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Its master, a bridge, bond or team; `None` if it has none.
    pub port_of: Option<String>,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

/// All interfaces, by name.
///
/// # Errors
/// If the kernel does not list them.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let ports = links::links()?;
    let names: BTreeSet<String> = ports.iter().map(|l| l.name.clone()).collect();
    let sys = Path::new("/sys/class/net");
    let sys_is_ours = listed(sys) == names;
    let known = if_addrs::get_if_addrs()?;
    Ok(names
        .into_iter()
        .map(|name| {
            // An old label (`eth0:1`) is in the place of the name.
            let mine = || known.iter().filter(|k| k.name.split(':').next() == Some(name.as_str()));
            let mut found = if sys_is_ours {
                read(&sys.join(&name), name.clone())
            } else {
                Interface {
                    mac: None,
                    // The MTU in this namespace, or the MTU that a router announced for IPv6 if that is less.
                    mtu: number(&Path::new("/proc/sys/net/ipv6/conf").join(&name).join("mtu")),
                    up: mine().any(if_addrs::Interface::is_oper_up),
                    loopback: mine().any(if_addrs::Interface::is_loopback),
                    port_of: None,
                    addresses: Vec::new(),
                    name: name.clone(),
                }
            };
            found.port_of = ports.iter().find(|l| l.name == name).and_then(|l| l.port_of.clone());
            found.addresses = mine()
                .map(|k| match &k.addr {
                    if_addrs::IfAddr::V4(a) => Address { ip: a.ip.into(), prefix: a.prefixlen },
                    if_addrs::IfAddr::V6(a) => Address { ip: a.ip.into(), prefix: a.prefixlen },
                })
                .collect();
            found
        })
        .collect())
}

/// The links in `/sys/class/net` (`bonding_masters` there is a plain file); empty if it cannot be read.
fn listed(sys: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(sys) else { return BTreeSet::new() };
    let dirs = entries.filter_map(Result::ok).filter(|e| e.path().is_dir());
    dirs.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn number(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// What `/sys` reports about an interface.
fn read(dir: &Path, name: String) -> Interface {
    let text = |file: &str| fs::read_to_string(dir.join(file)).ok().map(|t| t.trim().to_owned());
    let flags =
        text("flags").and_then(|f| u32::from_str_radix(f.trim_start_matches("0x"), 16).ok()).unwrap_or(0);
    // IFF_UP and IFF_LOOPBACK of netdevice(7). Drivers that do not report a state use "unknown" (loopback, tun).
    let (up, loopback) = (flags & 0x1 != 0, flags & 0x8 != 0);
    let carrier = text("operstate").is_some_and(|s| s == "up" || s == "unknown");
    Interface {
        name,
        mac: text("address").filter(|m| !m.is_empty() && m.bytes().any(|b| !matches!(b, b'0' | b':'))),
        mtu: number(&dir.join("mtu")),
        up: up && carrier,
        loopback,
        port_of: None,
        addresses: Vec::new(),
    }
}

/// Whether interface `name` exists, is up and has an IPv4 address that clients can reach.
#[must_use]
pub fn interface(name: &str) -> Finding {
    let what = format!("interface {name}");
    let all = match interfaces() {
        Ok(all) => all,
        Err(e) => return Finding::unknown(what, &e),
    };
    let Some(found) = all.iter().find(|i| i.name == name) else {
        let names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
        let mend = format!("Configure one of: {}", names.join(", "));
        return Finding::bad(Level::Fail, what, "It does not exist", mend);
    };
    judge(what, found)
}

fn judge(what: String, found: &Interface) -> Finding {
    let name = &found.name;
    if let Some(master) = &found.port_of {
        let mend = format!("Use {master} instead: --interface {master} (network.interfaces)");
        return Finding::bad(
            Level::Fail,
            what,
            format!("It is a port of {master}, which receives its packets"),
            mend,
        );
    }
    if !found.up {
        let mend = format!("sudo ip link set {name} up   (and plug in the cable)");
        return Finding::bad(Level::Fail, what, "It is down or has no carrier", mend);
    }
    if !found.addresses.iter().any(|a| a.ip.is_ipv4()) {
        let mend = format!("sudo ip address add 192.168.77.1/24 dev {name}   (an address of your network)");
        return Finding::bad(Level::Fail, what, "It has no IPv4 address", mend);
    }
    let addresses: Vec<String> = found.addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect();
    let mtu = found.mtu.map_or_else(|| "unknown".to_owned(), |m| m.to_string());
    Finding::ok(what, format!("It is up with {}, MTU {mtu}", addresses.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_as_the_kernel_has_it() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").unwrap();
        assert!(lo.loopback && lo.up && lo.mac.is_none(), "{lo:?}");
        let mtu = fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        assert_eq!(lo.mtu.unwrap().to_string(), mtu.trim());
        assert!(lo.addresses.contains(&Address { ip: "127.0.0.1".parse().unwrap(), prefix: 8 }), "{lo:?}");
        assert_eq!(interface("lo").level, Level::Ok);
    }

    #[test]
    fn every_interface_of_the_kernel_is_listed() {
        let names: Vec<String> = interfaces().unwrap().into_iter().map(|i| i.name).collect();
        for line in fs::read_to_string("/proc/net/dev").unwrap().lines().skip(2) {
            let name = line.split(':').next().unwrap().trim();
            assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
        }
    }

    /// Set in the child process that runs in its own network namespace.
    const INSIDE: &str = "GGNET_TEST_NETWORK_NAMESPACE";

    #[test]
    #[expect(clippy::disallowed_methods, reason = "starts this test again in a namespace")]
    fn of_another_namespace_nothing_is_seen() {
        if std::env::var_os(INSIDE).is_some() {
            // A new namespace has lo, which is down; /sys still shows the host's interfaces.
            let all = interfaces().unwrap();
            assert_eq!(all.iter().filter(|i| i.up || !i.addresses.is_empty()).count(), 0, "{all:?}");
            assert!(all.iter().any(|i| i.name == "lo") && !all.iter().any(|i| i.name == "eth0"), "{all:?}");
            return;
        }
        let out = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "host::interfaces::tests::of_another_namespace_nothing_is_seen", "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .expect("apt-get install util-linux");
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn one_that_is_not_there_names_those_that_are() {
        let f = interface("no-such0");
        assert!(f.level == Level::Fail && f.mend.unwrap().contains("lo"));
    }

    #[test]
    fn the_rule() {
        let up = Interface {
            name: "eth0".into(),
            mac: None,
            mtu: Some(1500),
            up: true,
            loopback: false,
            port_of: None,
            addresses: vec![Address { ip: "fe80::1".parse().unwrap(), prefix: 64 }],
        };
        assert!(judge("x".into(), &up).why.contains("no IPv4"));
        let down = Interface { up: false, ..up.clone() };
        assert!(judge("x".into(), &down).mend.unwrap().contains("ip link set eth0 up"));
        let port = Interface { port_of: Some("br7".into()), ..up.clone() };
        assert!(judge("x".into(), &port).mend.unwrap().contains("--interface br7"));
        let mut good = up;
        good.addresses.push(Address { ip: "10.0.0.1".parse().unwrap(), prefix: 24 });
        let f = judge("x".into(), &good);
        assert!(f.level == Level::Ok && f.why.contains("10.0.0.1/24") && f.why.contains("1500"), "{f}");
    }
}
