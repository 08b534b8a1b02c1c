//! The `Store` backend "sqlite": the port's behaviour suite, and what only a store in a file can get wrong.

#![allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
#![cfg(feature = "store-sqlite")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod crash;
mod files;
mod group;
mod keys;
mod model;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use ggnet_backends::store::sqlite::{SqliteConfig, SqliteStore};
use ggnet_core::{ports::Store, testkit::suite::Fixture};
use tempfile::TempDir;

fn config(folder: &Path) -> SqliteConfig {
    SqliteConfig { path: folder.join("ggnet.db"), key_file: folder.join("ggnet.key") }
}

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(config(folder)).await.unwrap()
}

struct Sqlite(TempDir);

impl Sqlite {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

#[async_trait]
impl Fixture<dyn Store> for Sqlite {
    async fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(open(self.0.path()).await)
    }
    async fn reopen(&self) -> Arc<dyn Store> {
        Arc::new(open(self.0.path()).await)
    }
}

ggnet_core::store_behaviour!(behaviour, Sqlite::new());
