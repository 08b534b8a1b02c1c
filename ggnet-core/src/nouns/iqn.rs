//! [`Iqn`]: an iSCSI qualified name (RFC 7143 4.2.7.3).

use std::{fmt, str::FromStr};

use crate::error::{Error, code};
use crate::nouns::{InstanceId, MacAddr, ResourceId};

/// `iqn.YYYY-MM.reversed.domain[:anything]`, lower case, at most 223 bytes. Underscores are refused everywhere because
/// LIO's own library refuses them; so are the other characters outside `[a-z0-9.:-]` (RFC 3722).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iqn(String);

impl Iqn {
    /// The target name of one of our objects: `<prefix>:<instance>.<resource>`. It contains the instance, so that two GGnets on one host do
    /// not touch each other's targets.
    pub fn target(prefix: &Iqn, instance: &InstanceId, resource: &ResourceId) -> Result<Self, Error> {
        format!("{prefix}:{instance}.{resource}").parse()
    }

    /// The resource of a target name of this instance; `None` for a foreign name.
    #[must_use]
    pub fn resource(&self, prefix: &Iqn, instance: &InstanceId) -> Option<ResourceId> {
        let rest = self.0.strip_prefix(prefix.as_str())?.strip_prefix(':')?;
        rest.strip_prefix(instance.as_str())?.strip_prefix('.')?.parse().ok()
    }

    /// The initiator name of a machine: `<prefix>:<mac>`. Stable for the machine's life.
    pub fn initiator(prefix: &Iqn, mac: MacAddr) -> Result<Self, Error> {
        format!("{prefix}:{}", mac.compact()).parse()
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Iqn {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::invalid(
                "iqn",
                format!("{s:?} is not an IQN: {why} (example: iqn.2026-11.org.example:pc-17)"),
            )
            .with_code(code::iqn_invalid(s))
        };
        if s.len() > 223 {
            return Err(bad("longer than 223 bytes"));
        }
        if let Some(c) =
            s.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || ".:-".contains(*c)))
        {
            return Err(bad(&format!("character {c:?} is not allowed")));
        }
        let rest = s.strip_prefix("iqn.").ok_or_else(|| bad("it must start with \"iqn.\""))?;
        let (date, rest) = rest.split_once('.').ok_or_else(|| bad("no naming authority after the date"))?;
        let month = match date.as_bytes() {
            [y @ .., b'-', m1, m2] if y.len() == 4 && y.iter().chain([m1, m2]).all(u8::is_ascii_digit) => {
                (m1 - b'0') * 10 + (m2 - b'0')
            }
            _ => return Err(bad("the date must be YYYY-MM")),
        };
        if !(1..=12).contains(&month) {
            return Err(bad("the month must be 01 to 12"));
        }
        let domain = rest.split_once(':').map_or(rest, |(d, _)| d);
        let label = |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-');
        if domain.is_empty() || !domain.split('.').all(label) {
            return Err(bad("the naming authority must be a reversed domain name"));
        }
        if rest.ends_with(':') {
            return Err(bad("nothing follows the colon"));
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::nouns::id::string_serde!(Iqn);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nouns::MachineId;

    #[test]
    fn the_usual_names_pass_and_the_usual_mistakes_do_not() {
        for good in ["iqn.2026-11.local.ggnet", "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309"] {
            assert_eq!(good.parse::<Iqn>().unwrap().as_str(), good);
        }
        for bad in [
            "iqn.2025.ggnet:target",
            "iqn.2025-10.ggnet:target-machine_1",
            "iqn.2025-13.a",
            "IQN.2025-10.a",
            "iqn.2025-10.",
            "iqn.2025-10.a:",
            "eui.02004567A425678D",
            "iqn.2025-10.a b",
            "iqn.2025-10.-a",
        ] {
            assert_eq!(bad.parse::<Iqn>().unwrap_err().field(), Some("iqn"), "{bad}");
        }
    }

    #[test]
    fn a_target_name_is_read_back_by_its_instance_only() {
        let prefix: Iqn = "iqn.2026-11.local.ggnet".parse().unwrap();
        let (a, b) = (InstanceId::generate(), InstanceId::generate());
        let id = ResourceId::generation(MachineId::generate(), 3);
        let iqn = Iqn::target(&prefix, &a, &id).unwrap();
        assert_eq!(iqn.resource(&prefix, &a), Some(id));
        assert_eq!(iqn.resource(&prefix, &b), None);
    }
}
