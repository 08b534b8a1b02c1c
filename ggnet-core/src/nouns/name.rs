//! [`Name`]: the name an operator gives to a machine, an image or a target.

use std::{fmt, str::FromStr};

use crate::error::{Error, code};

/// 1 to 63 of `[a-z0-9-]`, first and last alphanumeric, as a DNS label (RFC 1123 2.1), because a machine's name becomes its
/// host name. Upper case is folded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let folded = s.to_ascii_lowercase();
        let bytes = folded.as_bytes();
        let alnum = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        if bytes.len() <= 63
            && alnum(bytes.first())
            && alnum(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            Ok(Self(folded))
        } else {
            Err(Error::invalid(
                "name",
                format!(
                    "{s:?} is not a name: 1 to 63 letters, digits or hyphens, first and last a letter or digit"
                ),
            )
            .with_code(code::name_invalid(s)))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

crate::nouns::id::string_serde!(Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        assert_eq!("PC-17".parse::<Name>().unwrap().as_str(), "pc-17");
        for bad in ["", "-a", "a-", "a b", "pc_2", "pc 2\"; } host evil {", "a.b", &"x".repeat(64), "ä"] {
            assert_eq!(bad.parse::<Name>().unwrap_err().field(), Some("name"), "{bad}");
        }
    }
}
