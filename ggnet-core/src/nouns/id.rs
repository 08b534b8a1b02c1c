//! Typed identifiers: UUIDs of the store's records, and the names of our objects in backends.
//!
//! A backend object's [`ResourceId`] is derived from the session (`<machine>.<generation>`) or the manual target, so that `list()` of a
//! backend can be read without any database of its own. An object of a single LUN has the LUN's number as a suffix, except for LUN 0:
//! `<machine>.<generation>-l2`.

use std::{fmt, str::FromStr};

use crate::error::{Error, code};

/// `Serialize` as the `Display` form and `Deserialize` through `FromStr`, so that a bad value names its field.
macro_rules! string_serde {
    ($t:ty) => {
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                s.parse().map_err(|e: $crate::error::Error| serde::de::Error::custom(e.message()))
            }
        }
    };
}
pub(crate) use string_serde;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// A new id: a version 7 UUID (RFC 9562), so that ids sort by the time they were made.
            #[must_use]
            pub fn generate() -> Self {
                Self(uuid::Uuid::now_v7())
            }

            /// The id as 32 hexadecimal digits, the form inside names.
            #[must_use]
            pub fn simple(self) -> String {
                self.0.simple().to_string()
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self, Error> {
                uuid::Uuid::try_parse(s).map(Self).map_err(|_| {
                    Error::invalid("id", format!("{s:?} is not a {} id (a UUID)", $what))
                        .with_code(code::id_invalid($what, s))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        string_serde!($name);
    };
}

uuid_id!(
    /// A machine.
    MachineId,
    "machine"
);
uuid_id!(
    /// An image: a sequence of versions.
    ImageId,
    "image"
);
uuid_id!(
    /// One immutable version of an image.
    ImageVersionId,
    "image version"
);
uuid_id!(
    /// A session.
    SessionId,
    "session"
);
uuid_id!(
    /// A target that an operator created.
    TargetId,
    "target"
);

uuid_id!(
    /// A job.
    JobId,
    "job"
);

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(String);

        impl $name {
            /// A new random one.
            #[must_use]
            pub fn generate() -> Self {
                let random = uuid::Uuid::new_v4().simple().to_string();
                Self(random[..8].to_owned())
            }

            /// The eight digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self, Error> {
                if s.len() == 8 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    Ok(Self(s.to_owned()))
                } else {
                    Err(Error::invalid(
                        $field,
                        format!(concat!("{:?} is no ", $field, " id: eight lower-case hexadecimal digits"), s),
                    ))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        string_serde!($name);
    };
}

hex_id!(
    /// Identifies this installation of GGnet: eight hexadecimal digits, part of every name that it creates, so that two installations never
    /// touch each other's objects. All servers of one installation share it.
    InstanceId,
    "instance"
);
hex_id!(
    /// Identifies one server of an installation: eight hexadecimal digits. A server owns the sessions that it serves.
    ServerId,
    "server"
);

impl ServerId {
    /// The id of the server in an installation that has only one.
    #[must_use]
    pub fn only_one_of(instance: &InstanceId) -> Self {
        Self(instance.0.clone())
    }
}

/// The name of one of our objects in a backend: 1 to 64 of `[a-z0-9.-]`, first and last alphanumeric. Safe as a file name, inside an IQN
/// and as a dhcpd host name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(String);

impl ResourceId {
    /// The object of one generation of a machine's session: `<machine>.<n>`.
    #[must_use]
    pub fn generation(machine: MachineId, n: u32) -> Self {
        Self(format!("{}.{n}", machine.simple()))
    }

    /// The object that a machine has once, independent of the generation (its DHCP entry, its boot file).
    #[must_use]
    pub fn machine(machine: MachineId) -> Self {
        Self(machine.simple())
    }

    /// The object of the same owner for one of several LUNs: `<name>-l<lun>`, and for LUN 0, the system disk, the unchanged name.
    #[must_use]
    pub fn on_lun(self, lun: u8) -> Self {
        if lun == 0 { self } else { Self(format!("{}-l{lun}", self.0)) }
    }

    /// The object of a manual target: `t-<id>`.
    #[must_use]
    pub fn manual(target: TargetId) -> Self {
        Self(format!("t-{}", target.simple()))
    }

    /// The machine that owns this object, with the generation if it has one, for any LUN; `None` for manual targets and foreign names.
    #[must_use]
    pub fn owner(&self) -> Option<(MachineId, Option<u32>)> {
        let name = match self.0.rsplit_once("-l") {
            // Only the canonical spelling: with two names, one object would count as two.
            Some((name, lun)) => {
                lun.parse::<u8>().is_ok_and(|n| n > 0 && n.to_string() == lun).then_some(name)?
            }
            None => self.0.as_str(),
        };
        match name.split_once('.') {
            Some((machine, n)) => Some((machine.parse().ok()?, Some(n.parse().ok()?))),
            None => Some((name.parse().ok()?, None)),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResourceId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        let bytes = s.as_bytes();
        if bytes.len() <= 64 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| inner(*b)) {
            Ok(Self(s.to_owned()))
        } else {
            Err(Error::invalid("resource", format!("{s:?} is not a resource name: 1 to 64 of [a-z0-9.-]")))
        }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(ResourceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_name_tells_its_owner() {
        let m = MachineId::generate();
        assert_eq!(ResourceId::generation(m, 7).owner(), Some((m, Some(7))));
        assert_eq!(ResourceId::machine(m).owner(), Some((m, None)));
        assert_eq!(ResourceId::manual(TargetId::generate()).owner(), None);
        let again: ResourceId = ResourceId::generation(m, 7).to_string().parse().unwrap();
        assert_eq!(again, ResourceId::generation(m, 7));
    }

    #[test]
    fn the_name_of_a_lun_tells_its_owner_too() {
        let m = MachineId::generate();
        let (generation, kept) = (ResourceId::generation(m, u32::MAX), ResourceId::machine(m));
        assert_eq!(
            (generation.clone().on_lun(0), kept.clone().on_lun(0)),
            (generation.clone(), kept.clone())
        );
        assert_eq!(kept.clone().on_lun(2).as_str(), format!("{}-l2", m.simple()));
        let mut names = std::collections::BTreeSet::new();
        for lun in 0..=u8::MAX {
            for (id, n) in [(&generation, Some(u32::MAX)), (&kept, None)] {
                let name = id.clone().on_lun(lun);
                assert_eq!(name.owner(), Some((m, n)), "{name}");
                assert_eq!(name.as_str().parse::<ResourceId>().unwrap(), name, "every backend takes it");
                names.insert(name);
            }
        }
        assert_eq!(names.len(), 512, "each has a name of its own");
        for foreign in ["-l0", "-l02", "-l256", "-l", "-l2-l3", "-l2.1", "-m2", "-l2x", ".-l2", ".x-l2"] {
            let name = format!("{}{foreign}", m.simple());
            if let Ok(name) = name.parse::<ResourceId>() {
                assert_eq!(name.owner(), None, "{name}");
            }
        }
        assert_eq!(ResourceId::manual(TargetId::generate()).on_lun(2).owner(), None);
    }

    #[test]
    fn resource_names_are_safe_as_file_names() {
        for bad in ["", ".", "..", "a/b", "-a", "a.", "A", "a_b", "a b"] {
            assert!(bad.parse::<ResourceId>().is_err(), "{bad:?}");
        }
    }
}
