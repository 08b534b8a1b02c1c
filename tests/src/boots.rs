//! A registered machine that boots by our own initiator: its script over HTTP, a login, reads and a write, a logout.
//!
//! What a firmware or an operating system would report as an error is one here, as it is for [`account::log_in`]. A script that is
//! answered 503 is asked for again, as iPXE does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ggnet_core::nouns::MacAddr;
use ggnet_iscsi::initiator::Account;
use reqwest::StatusCode;

use crate::account::{self, PATIENCE, SECTOR};
use crate::server::script_path;

/// Where a boot writes. The image has another content there.
const LBA: u64 = 64;

/// A machine and what it knows before it boots: its MAC address, and who gives it its script.
#[derive(Debug)]
pub struct Machine {
    script: String,
    mac: MacAddr,
    client: reqwest::Client,
    boots: u64,
}

impl Machine {
    /// A machine of the server at `url` (`http://10.78.0.1:8080`).
    ///
    /// # Errors
    /// The MAC address is none, or no client can be made on this host.
    pub fn new(url: &str, mac: &str) -> Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            // A machine that is switched on has no connection from its last life.
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(60))
            .build()?;
        Ok(Self { script: format!("{url}{}", script_path(mac)), mac: mac.parse()?, client, boots: 0 })
    }

    /// What the script says about this machine's disk.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or says 503 for longer than [`PATIENCE`].
    pub async fn account(&self) -> Result<Account> {
        let since = Instant::now();
        loop {
            let response = self.client.get(&self.script).send().await?;
            match response.status() {
                StatusCode::OK => {
                    let [.., a, b, c] = self.mac.octets();
                    return account::from_script(&response.text().await?, [0x80, 0, 0, a, b, c]);
                }
                StatusCode::SERVICE_UNAVAILABLE if since.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => bail!("{} is answered {other}: {}", self.script, response.text().await?),
            }
        }
    }

    /// Boots, finds the image, writes and reads back, and is switched off. Under `discard` each boot's disk is clean, which is checked.
    ///
    /// # Errors
    /// The machine would not have booted, or has seen an I/O error.
    pub async fn boot(&mut self) -> Result<()> {
        let what = format!("boot {} of {}", self.boots, self.mac);
        self.try_boot().await.context(what)?;
        self.boots += 1;
        Ok(())
    }

    async fn try_boot(&self) -> Result<()> {
        let mark = format!("boot {} of {}", self.boots, self.mac);
        let mut sector = [0; SECTOR];
        sector[..mark.len()].copy_from_slice(mark.as_bytes());
        let mut disk = account::log_in(self.account().await?).await?;
        disk.read(0, 1).await?;
        let before = disk.read(LBA, 1).await?;
        ensure!(
            !before.starts_with(b"boot "),
            "another boot's write: {:?}",
            String::from_utf8_lossy(&before[..40])
        );
        disk.write(LBA, &sector).await?;
        ensure!(disk.read(LBA, 1).await? == sector, "not what was written");
        // A connection that is lost meanwhile is closed as well.
        let _ = disk.logout().await;
        Ok(())
    }
}
