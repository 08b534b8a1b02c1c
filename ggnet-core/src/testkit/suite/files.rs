//! Files and bytes for the suites: patterned images, checksums, and calls that may wait for a disk.

use std::{fs::File, io::Write as _, path::Path, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::block::BlockDevice;

/// A small generator of numbers, the same in every run, so that a failure can be repeated.
pub struct Numbers(u64);

impl Numbers {
    pub fn from(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number below `limit` (xorshift64).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.below(u64::MAX).to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// An image of `len` bytes: noise, with a hole of zeros in the middle.
pub fn image(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Numbers::from(seed).bytes(len);
    bytes[len / 3..len / 2].fill(0);
    bytes
}

/// Runs what may wait for a disk where it may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the case's own assertion, above")
}

pub async fn write_file(path: &Path, bytes: Vec<u8>) {
    let path = path.to_owned();
    blocking(move || {
        let mut file = File::create(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        file.write_all(&bytes).expect("write the test's file");
        file.sync_all().expect("sync the test's file");
    })
    .await;
}

pub async fn read_file(path: &Path) -> Vec<u8> {
    let path = path.to_owned();
    blocking(move || std::fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))).await
}

pub async fn checksum(path: &Path) -> Vec<u8> {
    Sha256::digest(read_file(path).await).to_vec()
}

/// The names in a folder.
pub async fn names(dir: &Path) -> Vec<String> {
    let dir = dir.to_owned();
    blocking(move || {
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display()));
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    })
    .await
}

/// Reads a range, quickly where that is possible, as a target does.
pub fn read_now(device: &dyn BlockDevice, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0xee; len];
    if !device.try_read_at(&mut buf, offset)? {
        device.read_at(&mut buf, offset)?;
    }
    Ok(buf)
}

/// Writes a range, quickly where that is possible, as a target does.
pub fn write_now(device: &dyn BlockDevice, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    if device.try_write_at(bytes, offset)? {
        return Ok(());
    }
    device.write_at(bytes, offset)
}

pub async fn read(device: &Arc<dyn BlockDevice>, offset: u64, len: usize) -> Vec<u8> {
    let device = Arc::clone(device);
    blocking(move || {
        read_now(device.as_ref(), offset, len).unwrap_or_else(|e| panic!("read {len} bytes at {offset}: {e}"))
    })
    .await
}

pub async fn write(device: &Arc<dyn BlockDevice>, offset: u64, bytes: Vec<u8>) {
    let device = Arc::clone(device);
    blocking(move || {
        let len = bytes.len();
        write_now(device.as_ref(), offset, &bytes)
            .unwrap_or_else(|e| panic!("write {len} bytes at {offset}: {e}"));
    })
    .await;
}
