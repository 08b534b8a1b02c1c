//! [`Principal`]: who acts, from where, and with which request. Every command has one, and so has every audit row.
//!
//! What a principal may do is in [`authorization`](crate::authorization).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{MacAddr, id::string_serde};
use crate::error::Error;

/// What a user may do; each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees everything but credentials, and changes nothing.
    Viewer,
    /// Runs the machines: registers and changes them, starts and stops their sessions.
    Operator,
    /// Everything, including images and exports.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The part of GGnet that acts without a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SystemPart {
    /// The reconciler.
    Reconciler,
    /// The server's own work, such as at its first start. In audit rows from before parts had names: any part.
    #[default]
    Upkeep,
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum PrincipalKind {
    /// The holder of an administrator token.
    #[serde(alias = "admin")]
    Token {
        /// The token's name.
        #[serde(default = "first_token")]
        name: String,
    },
    /// A user of a frontend that has users.
    User {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// A machine that boots.
    Machine {
        /// Its MAC address, as it claims.
        mac: MacAddr,
    },
    /// GGnet itself.
    System {
        /// Which part of it.
        #[serde(default)]
        what: SystemPart,
    },
    /// The person who runs `ggnet-server` on its host: `token reset`, `key reset`.
    Host,
    /// A program that embeds the library.
    Embedder,
}

/// The name of the token that always exists.
fn first_token() -> String {
    "admin".to_owned()
}

/// Who acts, from where, and with which request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Principal {
    /// Who.
    #[serde(flatten)]
    pub kind: PrincipalKind,
    /// The client's address, if the frontend knows it.
    #[serde(default, alias = "address", skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The request; the log has the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
}

impl Principal {
    const fn new(kind: PrincipalKind) -> Self {
        Self { kind, from: None, request: None }
    }

    /// The holder of the token of this name.
    #[must_use]
    pub const fn token(name: String) -> Self {
        Self::new(PrincipalKind::Token { name })
    }

    /// The holder of the administrator token.
    #[must_use]
    pub fn administrator() -> Self {
        Self::token(first_token())
    }

    /// A user of a frontend that has users.
    #[must_use]
    pub const fn user(name: String, role: Role) -> Self {
        Self::new(PrincipalKind::User { name, role })
    }

    /// A machine that boots.
    #[must_use]
    pub const fn machine(mac: MacAddr) -> Self {
        Self::new(PrincipalKind::Machine { mac })
    }

    /// GGnet itself.
    #[must_use]
    pub const fn system(what: SystemPart) -> Self {
        Self::new(PrincipalKind::System { what })
    }

    /// The person who runs `ggnet-server` on its host.
    #[must_use]
    pub const fn host() -> Self {
        Self::new(PrincipalKind::Host)
    }

    /// A program that embeds the library, and decides by itself who may do what.
    #[must_use]
    pub const fn embedder() -> Self {
        Self::new(PrincipalKind::Embedder)
    }

    /// From this address.
    #[must_use]
    pub fn at(mut self, from: Option<String>) -> Self {
        self.from = from;
        self
    }

    /// With this request.
    #[must_use]
    pub fn asking(mut self, request: Option<RequestId>) -> Self {
        self.request = request;
        self
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PrincipalKind::Token { name } => write!(f, "token {name}")?,
            PrincipalKind::User { name, .. } => write!(f, "user {name}")?,
            PrincipalKind::Machine { mac } => write!(f, "machine {mac}")?,
            PrincipalKind::System { what: SystemPart::Reconciler } => f.write_str("GGnet's reconciler")?,
            PrincipalKind::System { what: SystemPart::Upkeep } => f.write_str("GGnet")?,
            PrincipalKind::Host => f.write_str("the server's host")?,
            PrincipalKind::Embedder => f.write_str("embedder")?,
        }
        match &self.from {
            Some(from) => write!(f, " at {from}"),
            None => Ok(()),
        }
    }
}

/// The id of a request: 1 to 64 of `[A-Za-z0-9._-]`, so that it can be used unchanged in a log, a header and a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=64).contains(&s.len()) && s.bytes().all(plain) {
            Ok(Self(s.to_owned()))
        } else {
            Err(Error::invalid("request", "A request id is 1 to 64 of letters, digits, '.', '_' and '-'"))
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(RequestId);

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        let mac: MacAddr = "52:54:00:00:00:01".parse().unwrap();
        let all = [
            Principal::administrator(),
            Principal::user("ann".to_owned(), Role::Operator),
            Principal::machine(mac),
            Principal::system(SystemPart::Reconciler),
            Principal::system(SystemPart::Upkeep),
            Principal::host(),
            Principal::embedder(),
        ];
        for bare in all {
            let whole = bare.clone().at(Some("192.0.2.7".to_owned())).asking("r-1".parse().ok());
            for principal in [bare, whole] {
                let text = to_value(&principal).unwrap();
                assert_eq!(from_value::<Principal>(text.clone()).unwrap(), principal, "{text}");
            }
        }
    }

    #[test]
    fn actors_of_before_are_read() {
        let mac: MacAddr = "52:54:00:00:00:01".parse().unwrap();
        let at = Some("192.0.2.7".to_owned());
        for (before, now) in [
            (json!({ "kind": "admin", "address": "192.0.2.7" }), Principal::administrator().at(at.clone())),
            (json!({ "kind": "admin", "address": null }), Principal::administrator()),
            (
                json!({ "kind": "machine", "mac": mac, "address": "192.0.2.7" }),
                Principal::machine(mac).at(at),
            ),
            (json!({ "kind": "system" }), Principal::system(SystemPart::Upkeep)),
            (json!({ "kind": "embedder" }), Principal::embedder()),
        ] {
            assert_eq!(from_value::<Principal>(before.clone()).unwrap(), now, "{before}");
        }
    }

    #[test]
    fn a_request_id_is_short_and_plain() {
        let (long, too_long) = ("a".repeat(64), "a".repeat(65));
        for good in ["1", "0190b3c4-7e1a-7f00-8000-000000000001", long.as_str()] {
            assert_eq!(good.parse::<RequestId>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\nb", "é", "<script>", too_long.as_str()] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
