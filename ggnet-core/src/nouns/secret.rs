//! Secrets in memory: never printed, never serialised, wiped when dropped.

use std::fmt;

use zeroize::Zeroize;

use crate::error::{Error, Result};

/// A secret text. `Debug` shows nothing of it and there is no `Display` or `Serialize`: code that needs the text calls [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// `length` random characters of `[A-Za-z0-9]` from the operating system's generator.
    pub fn random(length: usize) -> Result<Self> {
        const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let mut out = String::with_capacity(length);
        let mut pool = [0u8; 64];
        while out.len() < length {
            getrandom::fill(&mut pool)
                .map_err(|e| Error::internal("The operating system gave no random bytes").with_source(e))?;
            // 248 = 4 * 62: above it a remainder would favour the first letters.
            for byte in pool.iter().filter(|b| **b < 248).take(length - out.len()) {
                out.push(char::from(ALPHABET[usize::from(byte % 62)]));
            }
        }
        pool.zeroize();
        Ok(Self(out))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One direction's CHAP credentials (RFC 1994 with MD5: iPXE knows no other algorithm).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapPair {
    /// CHAP_N.
    pub user: String,
    /// The shared secret: 16 characters of `[A-Za-z0-9]`, because Microsoft's initiator accepts 12 to 16.
    pub secret: Secret,
}

impl ChapPair {
    /// A fresh pair for `user`.
    pub fn random(user: impl Into<String>) -> Result<Self> {
        Ok(Self { user: user.into(), secret: Secret::random(16)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let pair = ChapPair::random("pc-1").unwrap();
        assert_eq!(pair.secret.expose().len(), 16);
        assert!(pair.secret.expose().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(!format!("{pair:?}").contains(pair.secret.expose()));
        assert_ne!(pair, ChapPair::random("pc-1").unwrap());
    }
}
