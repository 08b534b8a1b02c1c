//! [`BootUrl`]: an absolute URL that a boot loader fetches.
//!
//! Only what every iPXE understands and what a script cannot misinterpret: `http`, `https` or `tftp`, a host, a port, a path of safe
//! characters. No user information (a password would appear on a screen), no query, no fragment.

use std::{fmt, str::FromStr};

use super::san::Host;
use crate::error::{Error, Result};

/// An absolute URL without a trailing slash: `http://10.0.0.1:8080/boot`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BootUrl(String);

impl BootUrl {
    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL with `path` appended; it is joined by one slash and checked like the rest.
    pub fn join(&self, path: &str) -> Result<Self> {
        format!("{}/{}", self.0, path.trim_start_matches('/')).parse()
    }
}

impl FromStr for BootUrl {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |why: String| Error::invalid("url", format!("{s:?} is not a boot URL: {why}"));
        let (scheme, rest) = s.split_once("://").ok_or_else(|| bad("it has no scheme".to_owned()))?;
        if !matches!(scheme, "http" | "https" | "tftp") {
            return Err(bad("iPXE fetches over http, https or tftp".to_owned()));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(bad("an IPv6 address must be in brackets".to_owned()));
        }
        let host: Host = host.parse().map_err(|e: Error| bad(e.message().to_owned()))?;
        if host.is_unusable() {
            return Err(bad(format!("no machine can reach {host}")));
        }
        if let Some(port) = port
            && (!port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().map_or(true, |p| p == 0))
        {
            return Err(bad(format!("the port {port:?} is not 1 to 65535")));
        }
        let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~/%:@+,=".contains(&b);
        if let Some(b) = path.bytes().find(|b| !safe(*b)) {
            return Err(bad(format!("character {:?} is not allowed in its path", char::from(b))));
        }
        Ok(Self(s.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for BootUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BootUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

crate::nouns::id::string_serde!(BootUrl);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_urls_pass_and_what_a_script_could_misread_does_not() {
        for (good, want) in [
            ("http://10.0.2.2:8080", "http://10.0.2.2:8080"),
            ("http://[fd00::1]:80/boot/", "http://[fd00::1]:80/boot"),
            ("tftp://ggnet.lan/machines/a.ipxe", "tftp://ggnet.lan/machines/a.ipxe"),
        ] {
            assert_eq!(good.parse::<BootUrl>().unwrap().as_str(), want);
        }
        for bad in [
            "",
            "10.0.0.1",
            "ftp://10.0.0.1/x",
            "http://",
            "http:///x",
            "http://a b/",
            "http://u:p@10.0.0.1/",
            "http://10.0.0.1:0/",
            "http://10.0.0.1:99999/",
            "http://10.0.0.1/?a=b",
            "http://10.0.0.1/#x",
            "http://10.0.0.1/${password}",
            "http://10.0.0.1/a b",
            "http://10.0.0.1/\nshell",
            "http://0.0.0.0/",
            "http://fd00::1/",
        ] {
            assert_eq!(bad.parse::<BootUrl>().unwrap_err().field(), Some("url"), "{bad}");
        }
        let base: BootUrl = "http://10.0.0.1/".parse().unwrap();
        assert_eq!(base.join("/boot/x.ipxe").unwrap().as_str(), "http://10.0.0.1/boot/x.ipxe");
        assert!(base.join("a b").is_err());
    }
}
