//! The sockets of this server and its backends, according to the configuration and the backends. Used by `check`, and by the start, which
//! refuses sockets that collide.

use std::net::{IpAddr, SocketAddr};

use ggnet_core::{
    Error, ErrorKind, Result,
    registry::{PortName, Registry, Socket, Transport, Wiring, both_families},
};

use crate::config::Config;

/// A socket and its owner: a port's backend, or HTTP (none).
pub(crate) type Owned = (Option<PortName>, Socket);

/// The sockets of HTTP; one on `[::]` serves both address families.
pub(crate) fn of_http(config: &Config) -> Vec<Owned> {
    both_families(config.http.listen).map(|at| (None, Socket::tcp(at, "HTTP"))).collect()
}

/// The sockets of a port's backend.
///
/// # Errors
/// `Invalid`: the backend does not exist, or its section is wrong.
pub(crate) fn of_backend(
    config: &Config,
    registry: &Registry,
    wiring: &Wiring,
    port: PortName,
) -> Result<Vec<Owned>> {
    let section = config.section(port);
    let about = registry.about(port, &section.backend)?;
    let sockets = about.listens(port, wiring, section.settings.clone())?;
    Ok(sockets.into_iter().map(|socket| (Some(port), socket)).collect())
}

/// All sockets.
///
/// # Errors
/// As [`of_backend`].
pub(crate) fn all(config: &Config, registry: &Registry, wiring: &Wiring) -> Result<Vec<Owned>> {
    let mut all = of_http(config);
    for port in PortName::ALL {
        all.extend(of_backend(config, registry, wiring, port)?);
    }
    Ok(all)
}

/// Pairs of sockets that collide, as errors that name both.
pub(crate) fn collisions(config: &Config, sockets: &[Owned]) -> Vec<Error> {
    let who = |(owner, socket): &Owned| match owner {
        Some(port) => format!("{} ([{port}], {})", socket.why, config.section(*port).backend),
        None => format!("{} ([http])", socket.why),
    };
    let mut found = Vec::new();
    for (n, one) in sockets.iter().enumerate() {
        for other in &sockets[n + 1..] {
            if one.0 != other.0 && one.1.collides(&other.1) {
                let message = format!("{} and {} would both listen on {}", who(one), who(other), other.1);
                found.push(
                    Error::new(ErrorKind::Invalid, message)
                        .with_hint("Give one of them another port in its section of the configuration"),
                );
            }
        }
    }
    found
}

/// The reason why a machine that gets its boot script from us could not reach its disk, if there is one.
pub(crate) fn iscsi_out_of_reach(config: &Config, sockets: &[Owned]) -> Option<String> {
    let http = config.http.listen.ip();
    let iscsi: Vec<SocketAddr> = sockets
        .iter()
        .filter(|(owner, socket)| *owner == Some(PortName::Target) && socket.transport == Transport::Tcp)
        .map(|(_, socket)| socket.at)
        .collect();
    let fixed = config.network.advertise.is_none() && !http.is_unspecified();
    let reached = |v4: bool| {
        let found = |ip: IpAddr| ip.is_unspecified() || ip == http || !(fixed || ip.is_loopback());
        iscsi.iter().map(SocketAddr::ip).filter(|ip| ip.is_ipv4() == v4).any(found)
    };
    // HTTP on `[::]` serves both address families; a socket of the target serves one.
    let everybody = reached(http.is_ipv4()) && (fixed || http.is_ipv4() || reached(true));
    if http.is_loopback() || iscsi.is_empty() || everybody {
        return None;
    }
    let iscsi: Vec<_> = iscsi.iter().map(ToString::to_string).collect();
    Some(format!(
        "Machines get their boot script from {http} but cannot reach iSCSI at that address: it listens only on {}",
        iscsi.join(", ")
    ))
}

/// The served interfaces that no backend listens on by name, so that no backend reports their carrier.
pub(crate) fn unwatched(config: &Config, sockets: &[Owned]) -> Vec<String> {
    let watched =
        |name: &String| sockets.iter().any(|(_, socket)| socket.interface.as_deref() == Some(name.as_str()));
    config.network.interfaces.iter().filter(|name| !watched(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::InstanceId;

    use super::*;
    use crate::wiring;

    fn sockets(text: &str) -> (Config, Vec<Owned>) {
        let config = Config::parse(text, "x").unwrap();
        let mut registry = Registry::new();
        ggnet_backends::register(&mut registry);
        let http_port = config.http.listen.port();
        let wiring =
            wiring::wiring(&config, &registry, &config.data_dir, InstanceId::generate(), http_port).unwrap();
        let all = all(&config, &registry, &wiring).unwrap();
        (config, all)
    }

    #[test]
    fn two_on_one_port_are_named_and_those_that_share_it_are_not() {
        let collide = |text: &str| {
            let (config, all) = sockets(text);
            collisions(&config, &all).iter().map(|e| e.message().to_owned()).collect::<Vec<_>>()
        };
        assert!(collide("").is_empty());
        assert!(collide("[http]\nlisten = \"[::]:8080\"\n[network]\ninterfaces = [\"eth7\"]\n").is_empty());
        let twice = collide("[http]\nlisten = \"0.0.0.0:3260\"\n");
        assert_eq!(
            twice,
            ["HTTP ([http]) and iSCSI ([target], builtin) would both listen on TCP port 3260 on 0.0.0.0"]
        );
        let tftp = "[http]\nlisten = \"127.0.0.1:69\"\n[boot_files.tftp]\nlisten = [\"127.0.0.1:69\"]\n";
        assert!(collide(tftp).is_empty(), "TCP and UDP");
        let kernel = "[http]\nlisten = \"127.0.0.1:3260\"\n[target]\nbackend = \"lio-configfs\"\n";
        assert!(collide(kernel)[0].contains("lio-configfs"));
    }

    #[test]
    fn iscsi_is_out_of_reach_where_only_http_was_opened() {
        let why = |text: &str| {
            let (config, all) = sockets(text);
            iscsi_out_of_reach(&config, &all)
        };
        assert_eq!(why(""), None);
        assert_eq!(why("[http]\nlisten = \"[::]:80\"\n"), None);
        let kernel = "[target]\nbackend = \"lio-configfs\"\n";
        assert_eq!(why(&format!("[http]\nlisten = \"[::]:80\"\n{kernel}")), None);
        let apart = "[http]\nlisten = \"10.77.0.1:80\"\n[target]\nlisten = [\"127.0.0.1:3260\"]\n";
        for text in [apart.to_owned(), format!("{apart}backend = \"lio-configfs\"\n")] {
            assert!(why(&text).unwrap().ends_with("only on 127.0.0.1:3260"), "{text}");
        }
    }

    #[test]
    fn interfaces_are_watched_here_unless_a_backend_listens_on_them() {
        let named = "[network]\ninterfaces = [\"eth7\", \"eth8\"]\n";
        let unwatched = |text: &str| {
            let (config, all) = sockets(text);
            unwatched(&config, &all)
        };
        assert!(unwatched(named).is_empty(), "proxyDHCP's own health reports it");
        assert_eq!(unwatched(&format!("{named}[dhcp]\nbackend = \"dnsmasq\"\n")), ["eth7", "eth8"]);
        assert_eq!(unwatched(&format!("{named}[dhcp]\ninterfaces = [\"eth7\"]\n")), ["eth8"]);
    }
}
