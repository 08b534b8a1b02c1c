//! GGnet's behaviour suite on the ethers file.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ethers_dhcp::EthersFile;
use ggnet_core::{
    ports::DhcpBackend,
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, Foreign, instance},
};

const OPERATORS: &str = "00:16:3e:00:00:01 printer\n";
const ANOTHERS: &str = "00:16:3e:00:00:02 pc-9 # ggnet 11111111 0123 0123456789abcdef\n";

struct Folder {
    dir: tempfile::TempDir,
    now: Mutex<Option<Arc<EthersFile>>>,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), now: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ethers")
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for Folder {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        let backend = self.reopen().await;
        let _ = std::fs::remove_file(self.path());
        backend
    }

    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        // A killed process does nothing more; what an earlier one of this process has begun must have ended.
        let earlier = self.now.lock().unwrap().take();
        if let Some(earlier) = earlier {
            let _ = earlier.list().await;
        }
        let file = Arc::new(EthersFile::new(self.path(), instance()));
        *self.now.lock().unwrap() = Some(file.clone());
        file
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let had = std::fs::read_to_string(self.path()).unwrap_or_default();
        std::fs::write(self.path(), format!("{OPERATORS}{ANOTHERS}{had}")).unwrap();
        Some(Box::new(Lines(self.path())))
    }

    fn has_foreign(&self) -> bool {
        true
    }
}

/// An operator's line, and one of another GGnet.
struct Lines(PathBuf);

#[async_trait]
impl Foreign for Lines {
    async fn check(&self) -> Result<(), String> {
        let text = std::fs::read_to_string(&self.0).map_err(|e| e.to_string())?;
        if text.starts_with(&format!("{OPERATORS}{ANOTHERS}")) { Ok(()) } else { Err(text) }
    }
}

/// A machine that asks the DHCP server which reads the file: with a boot file for everybody it knows.
#[async_trait]
impl DhcpFixture for Folder {
    fn can_ask(&self) -> bool {
        true
    }

    async fn ask(&self, mac: ggnet_core::nouns::MacAddr) -> DhcpAnswer {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let knows = text.lines().any(|line| line.starts_with(&mac.to_string()));
        DhcpAnswer { boot_file: knows.then(|| "ipxe.efi".to_owned()), address: None }
    }
}

ggnet_core::dhcp_behaviour!(
    ethers,
    Folder::new(),
    not_run: [a_reserved_address_is_given, what_is_answered_is_observed]
);
