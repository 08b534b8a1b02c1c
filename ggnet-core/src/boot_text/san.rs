//! [`SanUri`]: where a machine finds its disk, as RFC 4173 section 5 writes it and iPXE reads it.
//!
//! `iscsi:<server>:<protocol>:<port>:<LUN>:<target>`: five colons, every field except server and target may be empty, the LUN is
//! hexadecimal and an IPv6 address is in brackets. iPXE splits at exactly these colons, so one colon too few turns the target's name into
//! the LUN; this is the only place where such a URI is built.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::{
    error::{Error, Result},
    nouns::Iqn,
};

/// The port that an empty field means (RFC 7143 4.2.6).
pub const DEFAULT_ISCSI_PORT: u16 = 3260;

/// A server: an address, or a name for the machine's DNS to resolve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A host name (RFC 1123 2.1), folded to lower case.
    Name(String),
}

impl Host {
    /// Whether it is an address at which no machine on the network can reach a server.
    #[must_use]
    pub fn is_unusable(&self) -> bool {
        matches!(self, Self::Ip(ip) if ip.is_unspecified() || ip.is_multicast())
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

/// IPv6 addresses in brackets, as in every kind of URI.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Takes an IPv6 address with or without brackets.
impl FromStr for Host {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid("host", format!("{s:?} is not a host: {why}"));
        if s.is_empty() {
            return Err(Error::invalid("host", "The host is empty"));
        }
        if let Some(inner) = s.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(|| bad("the bracket is not closed"))?;
            return match inner.parse() {
                Ok(ip) => Ok(Self::Ip(IpAddr::V6(ip))),
                Err(_) => Err(bad("brackets hold an IPv6 address")),
            };
        }
        if let Ok(ip) = s.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        // A last label of only digits is a mistyped address, never a name (RFC 3696 2).
        let digits = s.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if s.len() > 253 || digits || !s.split('.').all(label) {
            return Err(bad("neither an IP address nor a host name"));
        }
        Ok(Self::Name(s.to_ascii_lowercase()))
    }
}

crate::nouns::id::string_serde!(Host);

/// Where a machine finds its disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SanUri {
    /// The portal's address.
    pub server: Host,
    /// The portal's TCP port; never 0.
    pub port: u16,
    /// The LUN, in its simple form: one byte. Hexadecimal in the text.
    pub lun: u8,
    /// The target.
    pub target: Iqn,
}

/// Always includes the port, so that a reader need not know the default.
impl fmt::Display for SanUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, port, lun, target } = self;
        write!(f, "iscsi:{server}::{port}:{lun:x}:{target}")
    }
}

impl FromStr for SanUri {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let fields = Fields::split(s)?;
        fields.check()?;
        Ok(Self {
            server: fields.server.parse().map_err(|e: Error| fields.bad("server", e.message()))?,
            port: if fields.port.is_empty() { DEFAULT_ISCSI_PORT } else { fields.port_number()? },
            lun: fields.lun_number()?,
            target: fields.target.parse().map_err(|e: Error| fields.bad("target", e.message()))?,
        })
    }
}

crate::nouns::id::string_serde!(SanUri);

/// Checks a SAN URI in a script: a field that contains a setting (`${…}`) is accepted, the others and the number of colons are checked.
pub fn check_in_script(uri: &str) -> Result<()> {
    Fields::split(uri)?.check()
}

/// The six parts of the text, not parsed yet.
struct Fields<'a> {
    whole: &'a str,
    server: &'a str,
    protocol: &'a str,
    port: &'a str,
    lun: &'a str,
    target: &'a str,
}

impl<'a> Fields<'a> {
    fn split(whole: &'a str) -> Result<Self> {
        let bad = |why: String| Error::invalid("san_uri", format!("{whole:?} is not a SAN URI: {why}"));
        let rest =
            whole.strip_prefix("iscsi:").ok_or_else(|| bad("it must start with \"iscsi:\"".to_owned()))?;
        let mut parts = Vec::with_capacity(5);
        let (mut start, mut bracket, mut setting) = (0, false, 0_usize);
        let bytes = rest.as_bytes();
        for (i, b) in bytes.iter().enumerate() {
            match b {
                b'{' if i > 0 && bytes[i - 1] == b'$' => setting += 1,
                b'}' => setting = setting.saturating_sub(1),
                b'[' => bracket = true,
                b']' => bracket = false,
                b':' if !bracket && setting == 0 && parts.len() < 4 => {
                    parts.push(&rest[start..i]);
                    start = i + 1;
                }
                _ => {}
            }
        }
        if bracket {
            return Err(bad("the bracket around the server's address is not closed".to_owned()));
        }
        let &[server, protocol, port, lun] = parts.as_slice() else {
            return Err(bad(format!(
                "it has {} of the 5 colons in iscsi:<server>:<protocol>:<port>:<LUN>:<target>, so iPXE would mix up the fields",
                parts.len() + 1
            )));
        };
        Ok(Self { whole, server, protocol, port, lun, target: &rest[start..] })
    }

    fn bad(&self, field: &str, why: impl fmt::Display) -> Error {
        Error::invalid("san_uri", format!("{:?} is not a SAN URI: {field}: {why}", self.whole))
    }

    fn check(&self) -> Result<()> {
        let open = |field: &str| field.contains("${");
        if self.server.is_empty() {
            return Err(self.bad("server", "it is empty"));
        }
        if !open(self.server) {
            let host: Host = self.server.parse().map_err(|e: Error| self.bad("server", e.message()))?;
            if host.is_unusable() {
                return Err(self.bad("server", format!("{host} is not the address of a server")));
            }
        }
        // RFC 4173 gives the protocol's number and iPXE ignores the field; a port here is the usual mistake.
        if !open(self.protocol) && !matches!(self.protocol, "" | "6" | "tcp" | "TCP") {
            return Err(self.bad(
                "protocol",
                format!("{:?} is not empty, \"tcp\" or \"6\"; the port is the next field", self.protocol),
            ));
        }
        // Checked before the port: with a missing colon, the mistake shows in the LUN.
        if self.lun.starts_with("iqn.") {
            return Err(self.bad("LUN", "the target's name is in its place: a colon before it is missing"));
        }
        if !open(self.lun) {
            self.lun_number()?;
        }
        if !open(self.port) && !self.port.is_empty() {
            self.port_number()?;
        }
        if self.target.is_empty() {
            return Err(self.bad("target", "it is empty"));
        }
        if !open(self.target) {
            self.target.parse::<Iqn>().map_err(|e| self.bad("target", e.message()))?;
        }
        Ok(())
    }

    fn port_number(&self) -> Result<u16> {
        let digits = !self.port.is_empty() && self.port.bytes().all(|b| b.is_ascii_digit());
        match self.port.parse::<u16>() {
            Ok(port) if digits && port != 0 => Ok(port),
            _ => Err(self.bad("port", format!("{:?} is not 1 to 65535", self.port))),
        }
    }

    fn lun_number(&self) -> Result<u8> {
        if self.lun.is_empty() {
            return Ok(0);
        }
        // iPXE also takes four groups of four digits; of those only the first can be non-zero here.
        let (first, rest) = self.lun.split_once('-').unwrap_or((self.lun, ""));
        let zero = rest.bytes().all(|b| b == b'0' || b == b'-');
        let hex = (1..=4).contains(&first.len()) && first.bytes().all(|b| b.is_ascii_hexdigit());
        match u16::from_str_radix(first, 16).map(u8::try_from) {
            Ok(Ok(lun)) if hex && zero => Ok(lun),
            _ => Err(self.bad("LUN", format!("{:?} is not a hexadecimal number of 0 to ff", self.lun))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(s: &str) -> Result<SanUri> {
        s.parse()
    }

    #[test]
    fn five_colons_a_hexadecimal_lun_and_a_bracketed_address() {
        let uri = SanUri {
            server: "2001:db8::1".parse().unwrap(),
            port: 3261,
            lun: 26,
            target: "iqn.2026-11.local.ggnet:abcd.pc".parse().unwrap(),
        };
        assert_eq!(uri.to_string(), "iscsi:[2001:db8::1]::3261:1a:iqn.2026-11.local.ggnet:abcd.pc");
        assert_eq!(parse(&uri.to_string()).unwrap(), uri);
    }

    #[test]
    fn empty_fields_mean_their_defaults() {
        let uri = parse("iscsi:10.0.2.2::::iqn.2026-11.local.ggnet:x").unwrap();
        assert_eq!((uri.port, uri.lun), (3260, 0));
        assert_eq!(uri.to_string(), "iscsi:10.0.2.2::3260:0:iqn.2026-11.local.ggnet:x");
        let same = ["iscsi:10.0.2.2:6:3260:0:", "iscsi:10.0.2.2:tcp::0000:", "iscsi:10.0.2.2:::0-0-0-0:"];
        for head in same {
            assert_eq!(parse(&format!("{head}iqn.2026-11.local.ggnet:x")).unwrap(), uri, "{head}");
        }
    }

    #[test]
    fn malformed_uris_are_refused_and_say_what_is_wrong() {
        let cases = [
            // A missing colon: the target's name would become the LUN.
            ("iscsi:192.168.1.10::0:iqn.2025.ggnet:target-machine_1", "LUN"),
            ("iscsi:192.168.1.10::0:iqn.2025-10.local", "4 of the 5 colons"),
            ("iscsi:192.168.1.10:iqn", "2 of the 5 colons"),
            // A date without a month, and an underscore.
            ("iscsi:192.168.1.10::3260:0:iqn.2025.ggnet:pc1", "YYYY-MM"),
            ("iscsi:192.168.1.10::3260:0:iqn.2025-10.ggnet:target-machine_1", "'_'"),
            // The port in the protocol's place.
            ("iscsi:10.0.0.1:3260::1:iqn.2024-01.local:pc", "protocol"),
            ("iscsi:iscsi-target:3260::1:iqn.2024.local:device", "protocol"),
            ("iscsi://10.0.0.1/iqn.2024-01.local:pc/0", "colons"),
            ("iscsi:10.0.0.1::0:0:iqn.2024-01.local:pc", "port"),
            ("iscsi:10.0.0.1::70000:0:iqn.2024-01.local:pc", "port"),
            ("iscsi:10.0.0.1::+3260:0:iqn.2024-01.local:pc", "port"),
            ("iscsi:10.0.0.1::3260:100:iqn.2024-01.local:pc", "LUN"),
            ("iscsi:10.0.0.1::3260:g:iqn.2024-01.local:pc", "LUN"),
            ("iscsi:::3260:0:iqn.2024-01.local:pc", "server"),
            ("iscsi:0.0.0.0::3260:0:iqn.2024-01.local:pc", "server"),
            ("iscsi:10.0.0.300::3260:0:iqn.2024-01.local:pc", "server"),
            ("iscsi:[2001:db8::1::3260:0:iqn.2024-01.local:pc", "bracket"),
            ("iscsi:2001:db8::1::3260:0:iqn.2024-01.local:pc", "server"),
            ("iscsi:10.0.0.1::3260:0:", "target"),
            ("http://10.0.0.1/disk.img", "iscsi:"),
            ("", "iscsi:"),
        ];
        for (text, why) in cases {
            let e = parse(text).unwrap_err();
            assert_eq!(e.field(), Some("san_uri"), "{text}");
            assert!(e.message().contains(why), "{text}: {}", e.message());
        }
    }

    #[test]
    fn settings_in_a_script_are_taken_as_good_but_the_colons_are_counted() {
        for good in [
            "iscsi:${next-server}::::iqn.2026-11.local.ggnet:x",
            "iscsi:10.0.0.1:${p}:${port}:${lun}:iqn.2026-11.local:${netX/mac:hexraw}",
            "iscsi:${a${b}}::3260:0:${iqn}",
        ] {
            check_in_script(good).unwrap();
        }
        for bad in [
            "iscsi:${portal-ip}::${lun-id}:${target-iqn}",
            "iscsi:${s}:3260::1:${iqn}",
            "iscsi:${s}::x:1:${iqn}",
            "iscsi:${s}::3260:1:iqn.2024.x",
        ] {
            assert!(check_in_script(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts() {
        for good in ["10.0.0.1", "::1", "[::1]", "ggnet", "a.b-c.example"] {
            good.parse::<Host>().unwrap();
        }
        for bad in ["", "[::1", "[10.0.0.1]", "a b", "1.2.3", "-a", "a..b", "a$b", "a_b", "[x]"] {
            assert_eq!(bad.parse::<Host>().unwrap_err().field(), Some("host"), "{bad}");
        }
        assert_eq!("GGnet.LAN".parse::<Host>().unwrap().to_string(), "ggnet.lan");
    }

    fn host() -> impl Strategy<Value = Host> {
        prop_oneof![
            any::<[u8; 4]>()
                .prop_map(|o| Host::Ip(o.into()))
                .prop_filter("an address of a server", |h| !h.is_unusable()),
            any::<[u8; 16]>()
                .prop_map(|o| Host::Ip(o.into()))
                .prop_filter("an address of a server", |h| !h.is_unusable()),
            "[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{1,8}){0,3}".prop_map(Host::Name),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            server in host(),
            port in 1u16..,
            lun in any::<u8>(),
            tail in "[a-z0-9.:-]{0,60}[a-z0-9]",
        ) {
            let target: Iqn = format!("iqn.2026-11.local.ggnet:{tail}").parse().unwrap();
            let uri = SanUri { server, port, lun, target };
            let text = uri.to_string();
            prop_assert_eq!(text.parse::<SanUri>().unwrap(), uri);
            prop_assert!(check_in_script(&text).is_ok());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(iscsi:)?[ -~é]{0,60}") {
            let _ = text.parse::<SanUri>();
            let _ = check_in_script(&text);
        }
    }
}
