//! Decides which reply a client gets: a pure function of the request, the configuration and whether the machine is registered.
//!
//! The first rule that matches decides:
//! 1. On port 67 only DISCOVER is accepted, on port 4011 only REQUEST and INFORM. Another server assigns addresses.
//! 2. A request without vendor class `PXEClient` or `HTTPClient` is from an operating system: ignored, without an observation.
//! 3. A boot server request for another server is ignored.
//! 4. An unregistered machine is observed, and answered only if the configuration allows it.
//! 5. iPXE gets the URL of its script, firmware the loader for its architecture: over TFTP, or as a URL for HTTP boot.
//! 6. An architecture without a loader gets no reply (a wrong loader would make it hang) and an observation that says so.
//!
//! Invariant: at most one reply, never with an address for the client, and never larger than a few hundred bytes.

use std::net::{Ipv4Addr, SocketAddrV4};

use ggnet_core::ports::Observation;

use super::{
    ProxyDhcpConfig, Unknown,
    arch::Arch,
    packet::{Class, Kind, Reply, Request},
};

/// The port on which the request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// 67.
    Dhcp,
    /// 4011, the PXE boot server.
    BootServer,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The reply and its destination.
    pub(super) reply: std::result::Result<(Reply, To), String>,
    /// What was observed; reported after the reply was sent.
    pub(super) seen: Vec<Observation>,
}

/// The destination of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// To this address.
    Address(SocketAddrV4),
    /// Back to the source of the request.
    Sender,
}

const CLIENT: u16 = 68;
const SERVER: u16 = 67;

/// Decides. `advertise` is the address of ours that the machine should use.
pub(super) fn decide(
    request: &Request,
    port: Port,
    config: &ProxyDhcpConfig,
    advertise: Ipv4Addr,
    registered: bool,
) -> Decision {
    let ignored = |why: &str| Decision { reply: Err(why.to_owned()), seen: Vec::new() };
    match (port, request.kind) {
        (Port::Dhcp, Kind::Discover) | (Port::BootServer, Kind::Request | Kind::Inform) => {}
        _ => return ignored("not a request for proxyDHCP"),
    }
    let Some(class) = request.class else { return ignored("from an operating system, not from firmware") };
    if port == Port::BootServer && request.server.is_some_and(|server| server != advertise) {
        return ignored("for another boot server");
    }
    let boot = config.boot_files(advertise);
    let served = |arch: &Arch| boot.has_loader(*arch);
    let arch = request.archs.iter().copied().find(served).unwrap_or(request.archs[0]);
    let mut seen = Vec::new();
    // A boot server request follows a DISCOVER that was already observed.
    let first_sight = port == Port::Dhcp;
    if !registered {
        if first_sight {
            seen.push(Observation::UnknownAsked { mac: request.mac, firmware: arch.firmware() });
        }
        if config.unknown == Unknown::Ignore {
            return Decision { reply: Err("not registered".to_owned()), seen };
        }
    }
    let boot_file = if request.ipxe {
        boot.script(registered.then_some(request.mac))
    } else if let Some(file) = boot.loader(arch, class == Class::Http, Some(request.mac)) {
        file
    } else {
        let reason = no_loader(&request.archs);
        if first_sight {
            seen.push(Observation::NotAnswered { mac: request.mac, reason: reason.clone() });
        }
        return Decision { reply: Err(reason), seen };
    };
    if first_sight {
        seen.push(Observation::AddressOffered {
            mac: request.mac,
            firmware: arch.firmware(),
            boot_file: boot_file.clone(),
            ipxe: request.ipxe,
        });
    }
    let reply = Reply {
        ack: port == Port::BootServer,
        xid: request.xid,
        flags: request.flags,
        ciaddr: request.ciaddr,
        giaddr: request.giaddr,
        mac: request.mac,
        class,
        server: advertise,
        boot_file,
        machine_id: request.machine_id.clone(),
        relay_info: request.relay_info.clone(),
    };
    Decision { reply: Ok((reply, destination(request, port))), seen }
}

/// RFC 2131 section 4.1: to the relay; otherwise to the client's address; a client without an address gets a broadcast on its link.
fn destination(request: &Request, port: Port) -> To {
    if port == Port::BootServer {
        To::Sender
    } else if !request.giaddr.is_unspecified() {
        To::Address(SocketAddrV4::new(request.giaddr, SERVER))
    } else if !request.ciaddr.is_unspecified() {
        To::Address(SocketAddrV4::new(request.ciaddr, CLIENT))
    } else {
        To::Address(SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT))
    }
}

fn no_loader(archs: &[Arch]) -> String {
    let names: Vec<String> = archs.iter().map(|arch| format!("{arch} ({})", arch.0)).collect();
    format!(
        "No loader for architecture {}: set one in the proxyDHCP configuration, loaders.{}",
        names.join(", "),
        archs[0]
    )
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
