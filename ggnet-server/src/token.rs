//! The administrator token: 256 random bits, printed once, stored as its SHA-256.
//!
//! A fast hash is enough: the token is random, so a dictionary attack is impossible.

use ggnet_core::{
    Result,
    nouns::{AuditAction, AuditRow, AuditSubject, Principal, Secret, Timestamp},
    ports::{Batch, Store, Write},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const SETTING: &str = "admin_token_sha256";
/// 43 characters of 62 are 256 bits.
const LENGTH: usize = 43;

/// The stored hash, against which requests are checked.
#[derive(Clone)]
pub struct TokenHash(String);

impl TokenHash {
    /// Whether this is the token; compares the hashes in constant time.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        hash(token).as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// Loads the stored hash; none before the first start.
    pub async fn load(store: &dyn Store) -> Result<Option<Self>> {
        Ok(store.setting(SETTING).await?.map(Self))
    }

    /// Generates a token and its hash; stores nothing.
    pub fn generate() -> Result<(Secret, Self)> {
        let token = Secret::random(LENGTH)?;
        let hash = Self(hash(token.expose()));
        Ok((token, hash))
    }

    /// Replaces the stored hash: from now on only this token is valid. Adds an audit row with `by`.
    pub async fn store(&self, store: &dyn Store, by: &Principal, now: Timestamp) -> Result<()> {
        let subject = AuditSubject::Token("admin".to_owned());
        let row = AuditRow::new(now, by, AuditAction::TokenReset, subject);
        let write = Write::Setting { key: SETTING.to_owned(), value: self.0.clone() };
        store.commit(Batch::new().write(write).audit(row)).await.map(drop)
    }
}

fn hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}
