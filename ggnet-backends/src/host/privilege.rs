//! Checks whether this process may bind low ports: by the capability, or because the kernel does not require it above some port.

use std::{fs, io, path::Path};

use super::{Finding, Level};

/// The bit of `CAP_NET_BIND_SERVICE` (capabilities(7)).
const NET_BIND_SERVICE: u32 = 10;

/// Whether this process may bind `port`; otherwise `denied`, with the commands that allow it for `program` (the server's own file).
#[must_use]
pub fn low_port(port: u16, program: &Path, denied: Level) -> Finding {
    let what = format!("right to bind port {port}");
    match (unprivileged_start(), effective_capabilities()) {
        (Ok(start), Ok(caps)) => judge(what, port, start, caps, program, denied),
        (Err(e), _) | (_, Err(e)) => Finding::unknown(what, &e),
    }
}

fn judge(what: String, port: u16, start: u32, caps: u64, program: &Path, denied: Level) -> Finding {
    if u32::from(port) >= start {
        return Finding::ok(what, format!("Ports from {start} up need no privilege here"));
    }
    if caps & (1 << NET_BIND_SERVICE) != 0 {
        return Finding::ok(what, "This process has CAP_NET_BIND_SERVICE");
    }
    Finding::bad(
        denied,
        what,
        format!("Ports below {start} need CAP_NET_BIND_SERVICE, which this process lacks"),
        // Quoted for a shell, because people copy this line.
        format!(
            "sudo setcap 'cap_net_bind_service=+ep' '{}'   (under systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)",
            program.display().to_string().replace('\'', r"'\''")
        ),
    )
}

fn unprivileged_start() -> io::Result<u32> {
    match fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start") {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        // Kernels before 4.11.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(1024),
        Err(e) => Err(e),
    }
}

fn effective_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let field = field.ok_or_else(|| io::Error::other("/proc/self/status has no CapEff"))?;
    u64::from_str_radix(field.trim(), 16).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn says_what_the_kernel_does() {
        // A free low port: the finding must match whether the bind works.
        let port = (600..1024).find(
            |p| !matches!(UdpSocket::bind(("127.0.0.1", *p)), Err(e) if e.kind() == io::ErrorKind::AddrInUse),
        );
        let port = port.unwrap();
        let works = UdpSocket::bind(("127.0.0.1", port)).is_ok();
        let f = low_port(port, Path::new("/usr/bin/ggnet-server"), Level::Fail);
        assert_eq!(f.level == Level::Ok, works, "{f}");
        assert_eq!(low_port(40_000, Path::new("/x"), Level::Fail).level, Level::Ok);
    }

    #[test]
    fn the_rule_and_the_line_that_mends() {
        let file = Path::new("/opt/it's/ggnet-server");
        let judge = |port, start, caps| judge("x".into(), port, start, caps, file, Level::Warn);
        assert_eq!(judge(69, 1024, 1 << 10).level, Level::Ok);
        assert_eq!(judge(69, 67, 0).level, Level::Ok);
        let f = judge(67, 1024, !(1 << 10));
        assert_eq!(f.level, Level::Warn);
        let mend = f.mend.unwrap();
        assert!(
            mend.starts_with(r"sudo setcap 'cap_net_bind_service=+ep' '/opt/it'\''s/ggnet-server'"),
            "{mend}"
        );
    }
}
