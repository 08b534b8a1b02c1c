//! The administrator token: 256 random bits, shown once, stored as its SHA-256.
//!
//! A fast hash is right here: the token is random, not chosen, so there is nothing to guess from a dictionary.

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
    /// Whether this is the token; takes the same time for every wrong one.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        hash(token).as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// The stored hash; none before the first start.
    pub async fn load(store: &dyn Store) -> Result<Option<Self>> {
        Ok(store.setting(SETTING).await?.map(Self))
    }

    /// Makes a new token and its hash; nothing is stored.
    pub fn generate() -> Result<(Secret, Self)> {
        let token = Secret::random(LENGTH)?;
        let hash = Self(hash(token.expose()));
        Ok((token, hash))
    }

    /// Stores the hash in place of the old one: from now on this token counts. The audit says that `by` did it.
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
