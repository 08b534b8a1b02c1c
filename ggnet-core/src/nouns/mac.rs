//! [`MacAddr`]: a unicast 48-bit hardware address; one spelling everywhere (lower case, colons).

use std::{fmt, str::FromStr};

use crate::error::{Error, code};

/// A unicast hardware address. `AA-BB-…`, `aa:bb:…`, `aabb.ccdd.eeff` and `aabbccddeeff` all parse to the same value;
/// it prints as `aa:bb:cc:dd:ee:ff`. All-zero, broadcast and multicast addresses are refused: no machine boots with one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address with these octets; the same refusals as parsing.
    pub fn new(octets: [u8; 6]) -> Result<Self, Error> {
        let bad = |why| Err(Error::invalid("mac", why).with_code(code::mac_invalid(Self(octets))));
        if octets == [0; 6] {
            return bad("The MAC address is all zeros");
        }
        if octets[0] & 1 == 1 {
            return bad("The MAC address is a multicast or broadcast address; a machine has a unicast one");
        }
        Ok(Self(octets))
    }

    /// The six octets in transmission order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// `aa-bb-cc-dd-ee-ff`: the form of file names (iPXE's `${mac:hexhyp}`, the Pi's TFTP_PREFIX=2).
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.joined("-")
    }

    /// `aabbccddeeff`: the form inside an IQN.
    #[must_use]
    pub fn compact(self) -> String {
        self.joined("")
    }

    fn joined(self, separator: &str) -> String {
        self.0.map(|b| format!("{b:02x}")).join(separator)
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let bad = || {
            Error::invalid(
                "mac",
                format!("{s:?} is not a MAC address: expected six octets such as 52:54:00:12:34:56"),
            )
            .with_code(code::mac_invalid(s))
        };
        // The separator must be one kind at the usual places, so that "1:23:45…" is not read as something else.
        let groups: Vec<&str> = match s.len() {
            12 => vec![s],
            14 => s.split('.').collect(),
            17 if s.contains('-') => s.split('-').collect(),
            17 => s.split(':').collect(),
            _ => return Err(bad()),
        };
        let width = match groups.len() {
            1 => 12,
            3 => 4,
            6 => 2,
            _ => return Err(bad()),
        };
        if groups.iter().any(|g| g.len() != width || !g.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(bad());
        }
        let digits = groups.concat();
        let mut octets = [0u8; 6];
        for (i, octet) in octets.iter_mut().enumerate() {
            *octet = u8::from_str_radix(&digits[i * 2..i * 2 + 2], 16).map_err(|_| bad())?;
        }
        Self::new(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.joined(":"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::nouns::id::string_serde!(MacAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_one_value() {
        let want: MacAddr = "52:54:00:ab:cd:ef".parse().unwrap();
        for s in ["52-54-00-AB-CD-EF", "5254.00ab.cdef", "525400abcdef", "52:54:00:AB:cd:EF"] {
            assert_eq!(s.parse::<MacAddr>().unwrap(), want, "{s}");
        }
        assert_eq!(want.to_string(), "52:54:00:ab:cd:ef");
        assert_eq!(want.hyphenated(), "52-54-00-ab-cd-ef");
        assert_eq!(want.compact(), "525400abcdef");
    }

    #[test]
    fn nonsense_is_refused_and_names_the_field() {
        for s in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:eg",
            "52:54-00:ab:cd:ef",
            "5:254:00:ab:cd:ef",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "52:54:00:ab:cd:ef\n",
            "é2:54:00:ab:cd:e",
        ] {
            let e = s.parse::<MacAddr>().unwrap_err();
            assert_eq!(e.field(), Some("mac"), "{s}");
        }
    }
}
