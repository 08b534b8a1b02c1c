//! Finds the process that uses a port: `/proc/net/{tcp,udp}{,6}` has the inode of the socket, `/proc/<pid>/fd` the processes that have it
//! open.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Finding, Level, Transport};

/// A socket that uses a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The address and port that it is bound to.
    pub local: SocketAddr,
    /// The user that made it.
    pub uid: u32,
    /// A process that has it open; `None` if it belongs to another user and we are not root, or to the kernel.
    pub pid: Option<u32>,
    /// That process's name.
    pub command: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, "{command} (pid {pid}) on {}", self.local),
            (_, Some(pid)) => write!(f, "pid {pid} on {}", self.local),
            _ => write!(f, "a process of user id {} on {}", self.uid, self.local),
        }
    }
}

/// The sockets on `port` in this network namespace whose address conflicts with a socket on `address`.
///
/// # Errors
/// If the kernel's tables cannot be read.
pub fn holders(transport: Transport, address: IpAddr, port: u16) -> io::Result<Vec<Holder>> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let mut rows = Vec::new();
    for table in tables {
        match fs::read_to_string(table) {
            Ok(text) => rows.extend(text.lines().skip(1).filter_map(|l| Row::parse(l, transport))),
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(e) => return Err(e),
        }
    }
    rows.retain(|r| r.local.port() == port && meet(r.local.ip(), address));
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let owners = owners();
    Ok(rows
        .into_iter()
        .map(|row| {
            let pid = owners.get(&row.inode).copied();
            let command = pid
                .and_then(|p| fs::read_to_string(format!("/proc/{p}/comm")).ok())
                .map(|c| c.trim().replace(char::is_control, "?"));
            Holder { local: row.local, uid: row.uid, pid, command }
        })
        .collect())
}

/// Whether `port` is free on `address`; otherwise `taken`, which names the process that uses it.
#[must_use]
pub fn port(transport: Transport, address: IpAddr, port: u16, taken: Level) -> Finding {
    let what = format!("{transport} port {port} on {address}");
    let holders = match holders(transport, address, port) {
        Ok(holders) => holders,
        Err(e) => return Finding::unknown(what, &e),
    };
    let Some(first) = holders.first() else {
        return Finding::ok(what, "It is free");
    };
    let all: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let mend = match (first.pid, &first.command) {
        (Some(pid), Some(command)) => {
            format!("Stop {command} (sudo kill {pid}, or its service), or configure another port")
        }
        (Some(pid), None) => format!("Stop process {pid} (sudo kill {pid}), or configure another port"),
        _ => format!(
            "Find the process: sudo ss -{}lnp 'sport = :{port}'",
            if transport == Transport::Tcp { 't' } else { 'u' }
        ),
    };
    Finding::bad(taken, what, format!("It is used by {}", all.join(" and by ")), mend)
}

/// Whether only `program` uses `port`, or no process yet; otherwise `taken`, which names the process that uses it.
#[must_use]
pub fn port_of(program: &str, transport: Transport, port: u16, taken: Level) -> Finding {
    let what = format!("{transport} port {port}");
    let holders = match holders(transport, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port) {
        Ok(holders) => holders,
        Err(e) => return Finding::unknown(what, &e),
    };
    let others: Vec<String> =
        holders.iter().filter(|h| h.command.as_deref() != Some(program)).map(ToString::to_string).collect();
    if others.is_empty() {
        let why =
            if holders.is_empty() { "No process uses it".to_owned() } else { format!("{program} uses it") };
        return Finding::ok(what, why);
    }
    let why = format!("It is used by {}, which is not {program}", others.join(" and by "));
    let mend =
        format!("Run only one DHCP server per network: sudo ss -ulnp 'sport = :{port}' shows the processes");
    Finding::bad(taken, what, why, mend)
}

/// Whether two sockets with these addresses would conflict: the same address, or one of them the wildcard address. `[::]` accepts IPv4 too
/// unless configured otherwise, which the table does not show; we assume that it does.
fn meet(bound: IpAddr, wanted: IpAddr) -> bool {
    let plain = |ip: IpAddr| ip.to_canonical();
    let (bound, wanted) = (plain(bound), plain(wanted));
    if bound == wanted {
        return true;
    }
    match (bound, wanted) {
        (IpAddr::V4(b), IpAddr::V4(w)) => b.is_unspecified() || w.is_unspecified(),
        (IpAddr::V6(b), _) if b.is_unspecified() => true,
        (_, IpAddr::V6(w)) if w.is_unspecified() => true,
        _ => false,
    }
}

struct Row {
    local: SocketAddr,
    uid: u32,
    inode: u64,
}

impl Row {
    /// One line: `sl local remote st queues timer retransmits uid timeout inode …` (proc_net_tcp.txt of the kernel).
    fn parse(line: &str, transport: Transport) -> Option<Self> {
        const LISTEN: &str = "0A";
        let mut fields = line.split_ascii_whitespace();
        let local = parse_address(fields.nth(1)?)?;
        if fields.nth(1)? != LISTEN && transport == Transport::Tcp {
            return None;
        }
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Self { local, uid, inode })
    }
}

/// `0100007F:0CBC`: the address as words in the host's byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    if !matches!(address.len(), 8 | 32) {
        return None;
    }
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The process of each open socket, as far as we have permission to see it.
fn owners() -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return owners };
    for pid in processes.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for target in files.filter_map(|f| fs::read_link(f.ok()?.path()).ok()) {
            let inode =
                target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                // The lowest of several process IDs: the parent that opened it, not a worker that inherited it.
                owners.entry(inode).and_modify(|p: &mut u32| *p = (*p).min(pid)).or_insert(pid);
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// We use the port on `on`; checks that it is taken for each address in `seen_from` and free for each in `free_for`.
    fn is_ours(transport: Transport, local: SocketAddr, seen_from: &[&str], free_for: &[&str]) {
        for address in seen_from {
            let found = holders(transport, ip(address), local.port()).unwrap();
            let [holder] = &found[..] else { panic!("{address}: {found:?}") };
            assert_eq!((holder.local, holder.pid), (local, Some(std::process::id())), "{address}");
            let f = port(transport, ip(address), local.port(), Level::Fail);
            assert_eq!(f.level, Level::Fail);
            assert!(f.why.contains(&std::process::id().to_string()), "{f}");
            assert!(f.why.contains(holder.command.as_deref().unwrap()), "{f}");
            assert!(f.mend.is_some());
        }
        for address in free_for {
            assert_eq!(port(transport, ip(address), local.port(), Level::Fail).level, Level::Ok, "{address}");
        }
    }

    #[test]
    fn a_tcp_listener_of_ours() {
        let s = TcpListener::bind("127.0.0.1:0").unwrap();
        is_ours(
            Transport::Tcp,
            s.local_addr().unwrap(),
            &["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"],
            &["127.0.0.2", "::1"],
        );
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        is_ours(Transport::Tcp, all.local_addr().unwrap(), &["127.0.0.1", "0.0.0.0", "10.1.2.3"], &["::1"]);
    }

    #[test]
    fn a_port_of_one_program() {
        let s = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = s.local_addr().unwrap().port();
        let us = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(port_of(us.trim(), Transport::Udp, port, Level::Warn).level, Level::Ok);
        let f = port_of("dhcpd", Transport::Udp, port, Level::Warn);
        assert!(f.level == Level::Warn && f.why.contains(&std::process::id().to_string()), "{f}");
        drop(s);
        assert_eq!(port_of("dhcpd", Transport::Udp, port, Level::Warn).level, Level::Ok);
    }

    #[test]
    fn a_tcp_connection_is_no_listener() {
        let s = TcpListener::bind("127.0.0.1:0").unwrap();
        let c = TcpStream::connect(s.local_addr().unwrap()).unwrap();
        let local = c.local_addr().unwrap();
        assert!(holders(Transport::Tcp, local.ip(), local.port()).unwrap().is_empty());
    }

    #[test]
    fn udp_sockets_of_ours() {
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        is_ours(Transport::Udp, s.local_addr().unwrap(), &["127.0.0.1", "0.0.0.0"], &["127.0.0.2"]);
        let s = UdpSocket::bind("[::1]:0").unwrap();
        is_ours(Transport::Udp, s.local_addr().unwrap(), &["::1", "::"], &["127.0.0.1", "::2"]);
        let s = UdpSocket::bind("[::]:0").unwrap();
        is_ours(Transport::Udp, s.local_addr().unwrap(), &["::1", "0.0.0.0", "10.0.0.1"], &[]);
    }

    #[test]
    fn a_closed_port_is_free() {
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = s.local_addr().unwrap();
        drop(s);
        assert!(holders(Transport::Udp, local.ip(), local.port()).unwrap().is_empty());
    }

    #[test]
    fn addresses() {
        // 127.0.0.1:3260 in this host's byte order.
        let word = format!("{:08X}:0CBC", u32::from_ne_bytes([127, 0, 0, 1]));
        assert_eq!(parse_address(&word), Some("127.0.0.1:3260".parse().unwrap()));
        for bad in
            ["", ":", "zz:1", "0100007F", "0100007F:ZZZZ", "01000:0CBC", "0100007F0100007F:0CBC", "é00007F:1"]
        {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
