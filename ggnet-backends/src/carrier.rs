//! Checks whether the interfaces that serve machines have a carrier. Without one (a cable is unplugged, a switch is off) no machine can
//! boot, although no part of GGnet fails.

use ggnet_core::ports::Health;

use crate::links::{Link, links};

/// Whether an interface can carry packets, and otherwise what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// It can. Also used if the interface does not exist or its state is unknown, which other checks report.
    There,
    /// A bridge for virtual machines of this host while none runs: it gets a carrier when the first one starts.
    Waiting(String),
    /// No machine can be reached.
    Gone(String),
}

/// The health of these interfaces: down if none of them can carry packets, degraded if only some can.
///
/// Queries the kernel, which takes about ten microseconds.
#[must_use]
pub fn health(interfaces: &[String]) -> Health {
    let Ok(all) = links() else { return Health::Up };
    let (mut why, mut gone) = (Vec::new(), 0);
    for name in interfaces {
        match of(&all, name) {
            Carrier::There => {}
            Carrier::Waiting(words) => why.push(words),
            Carrier::Gone(words) => {
                why.push(words);
                gone += 1;
            }
        }
    }
    judge(&why, gone, interfaces.len())
}

/// The health of a server on `all` interfaces, of which `out` reach no machine. `why` is the message; the second function adds what to say
/// if only some are affected.
pub(crate) fn judge(why: &[String], out: usize, all: usize) -> Health {
    match why.join("; ") {
        none if none.is_empty() => Health::Up,
        why if out == all => Health::Down(why),
        why => Health::Degraded(why),
    }
}

/// The carrier of the interface with this name among `all`.
pub(crate) fn of(all: &[Link], name: &str) -> Carrier {
    let Some(link) = all.iter().find(|link| link.name == name) else { return Carrier::There };
    if !link.up {
        return Carrier::Gone(format!("{name} is down: ip link set {name} up"));
    }
    if link.carrier {
        return Carrier::There;
    }
    let is = |link: &Link, kind: &str| link.kind.as_deref() == Some(kind);
    let mut ports = all.iter().filter(|port| port.port_of.as_deref() == Some(name));
    if is(link, "bridge") && ports.all(|port| is(port, "tun")) {
        return Carrier::Waiting(format!("no carrier on {name}: nothing is connected to this bridge yet"));
    }
    Carrier::Gone(format!("no carrier on {name}: check its cable and its switch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>, port_of: Option<&str>, carrier: bool) -> Link {
        let (kind, port_of) = (kind.map(str::to_owned), port_of.map(str::to_owned));
        Link { name: name.into(), index: 7, port_of, up: true, carrier, kind }
    }

    #[test]
    fn a_cable_that_is_out_is_told_from_a_bridge_that_waits_for_its_machines() {
        let gone = |all: &[Link], name| matches!(of(all, name), Carrier::Gone(why) if why.contains(name));
        let waits = |all: &[Link], name| matches!(of(all, name), Carrier::Waiting(why) if why.contains(name));
        let card = link("enp3s0", None, None, false);
        assert!(gone(std::slice::from_ref(&card), "enp3s0"));
        assert_eq!(of(&[Link { carrier: true, ..card.clone() }], "enp3s0"), Carrier::There);
        assert!(gone(&[Link { up: false, carrier: true, ..card.clone() }], "enp3s0"));
        assert_eq!(of(&[card], "another"), Carrier::There);

        let bridge = link("br0", Some("bridge"), None, false);
        assert!(waits(std::slice::from_ref(&bridge), "br0"));
        let tap = link("tap0", Some("tun"), Some("br0"), false);
        assert!(waits(&[bridge.clone(), tap.clone()], "br0"));
        let port = link("enp3s0", None, Some("br0"), false);
        assert!(gone(&[bridge.clone(), tap, port], "br0"), "its cable is out");
        let pair = link("veth0", Some("veth"), Some("br0"), false);
        assert!(gone(&[bridge, pair], "br0"));
    }

    #[test]
    fn the_loopback_interface_has_one() {
        assert_eq!(health(&["lo".to_owned()]), Health::Up);
        assert_eq!(health(&[]), Health::Up);
    }
}
