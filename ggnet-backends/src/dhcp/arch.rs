//! [`Arch`]: a client architecture (RFC 4578 section 2.1, RFC 5970 section 3.3) and its firmware.

use std::{fmt, str::FromStr};

use ggnet_core::{Error, nouns::Firmware};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The architecture that firmware sends in option 93; as text one of the names below, otherwise a decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch(pub u16);

/// Numbers from IANA's registry (RFC 4578 has 7 and 9 swapped; firmware of x86-64 sends either).
const NAMES: [(u16, &str); 11] = [
    (0, "bios"),
    (6, "efi-ia32"),
    (7, "efi-x64"),
    (9, "efi-ebc"),
    (10, "efi-arm32"),
    (11, "efi-arm64"),
    (15, "http-ia32"),
    (16, "http-x64"),
    (17, "http-ebc"),
    (18, "http-arm32"),
    (19, "http-arm64"),
];

impl Arch {
    /// The firmware of a machine with this architecture.
    #[must_use]
    pub fn firmware(self) -> Firmware {
        match self.0 {
            0 => Firmware::Bios,
            n if NAMES.iter().any(|(number, _)| *number == n) => Firmware::Uefi,
            _ => Firmware::Unknown,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        if let Some((number, _)) = NAMES.iter().find(|(_, name)| *name == s) {
            return Ok(Self(*number));
        }
        s.parse().map(Self).map_err(|_| {
            let names = NAMES.map(|(_, name)| name).join(", ");
            Error::invalid("loaders", format!("{s:?} is not an architecture: one of {names}, or a number"))
        })
    }
}

// As text, because keys of a TOML table are strings.
impl Serialize for Arch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Arch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one_value() {
        assert_eq!("efi-x64".parse::<Arch>().unwrap(), Arch(7));
        assert_eq!("7".parse::<Arch>().unwrap(), Arch(7));
        assert_eq!(Arch(7).to_string(), "efi-x64");
        assert_eq!(Arch(4711).to_string(), "4711");
        assert_eq!("toaster".parse::<Arch>().unwrap_err().field(), Some("loaders"));
        assert_eq!(Arch(0).firmware(), Firmware::Bios);
        assert_eq!(Arch(16).firmware(), Firmware::Uefi);
        assert_eq!(Arch(2).firmware(), Firmware::Unknown);
    }
}
