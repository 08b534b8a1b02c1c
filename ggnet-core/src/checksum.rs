//! SHA-256 of files: an image's identity.
//!
//! Hashing is CPU and disk work, so it runs on a blocking thread. Invariant: the thread stops within one buffer's time of the token's
//! cancellation or of the future's drop; nothing is left behind, because nothing is written.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result, code},
    ports::image_converter::Progress,
};

/// Large enough that the calls cost nothing compared to the hashing, small enough to react to a cancellation at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The SHA-256 of a file's bytes as 64 lower-case hexadecimal digits.
///
/// `progress` gets per mille of the length that the file had at the start; it is called from the blocking thread, and only when the number
/// grows. Errors: `NotFound` and `Permission` from opening; `Unavailable`, not retryable, when cancelled. Dropping the future cancels.
pub async fn sha256_file(path: &Path, progress: Progress, cancel: CancellationToken) -> Result<String> {
    let stop = cancel.child_token();
    let dropped = stop.clone().drop_guard();
    let owned: PathBuf = path.to_owned();
    let work = tokio::task::spawn_blocking(move || hash(&owned, &progress, &stop));
    let result = tokio::select! {
        biased;
        result = work => result,
        // A read that hangs (a dead mount) cannot be interrupted: its thread ends when it does.
        () = cancel.cancelled() => return Err(was_cancelled(path)),
    };
    dropped.disarm();
    result.map_err(|e| Error::internal("The thread that was hashing a file died").with_source(e))?
}

/// The SHA-256 of bytes in memory, in the same form as [`sha256_file`].
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn was_cancelled(path: &Path) -> Error {
    let message = format!("The checksum of {} was cancelled", path.display());
    Error::new(code::import_cancelled(), message).retryable(false)
}

fn hash(path: &Path, progress: &Progress, stop: &CancellationToken) -> Result<String> {
    let doing = || format!("Reading {} for its checksum", path.display());
    let mut file = File::open(path).map_err(|e| Error::io(doing(), e))?;
    let meta = file.metadata().map_err(|e| Error::io(doing(), e))?;
    if !meta.is_file() {
        return Err(Error::invalid("path", format!("{} is not a regular file", path.display())));
    }
    let total = meta.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut done: u64 = 0;
    let mut reported: u16 = 0;
    loop {
        if stop.is_cancelled() {
            return Err(was_cancelled(path));
        }
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(doing(), e)),
        };
        hasher.update(&buffer[..n]);
        done = done.saturating_add(n as u64);
        let now = per_mille(done, total);
        if now > reported {
            reported = now;
            progress(now);
        }
    }
    if reported < 1000 {
        progress(1000);
    }
    Ok(hex(&hasher.finalize()))
}

/// A file that grows while it is read stays at 1000.
fn per_mille(done: u64, total: u64) -> u16 {
    let share = u128::from(done) * 1000 / u128::from(total.max(1));
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::ErrorKind;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(bytes).unwrap();
        f.flush().unwrap();
        f
    }

    fn quiet() -> Progress {
        Arc::new(|_| {})
    }

    #[tokio::test]
    async fn the_known_answers_of_fips_180() {
        let million = vec![b'a'; 1_000_000];
        let cases: [(&[u8], &str); 4] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        for (bytes, want) in cases {
            let f = file(bytes);
            assert_eq!(sha256_file(f.path(), quiet(), CancellationToken::new()).await.unwrap(), want);
            assert_eq!(sha256_bytes(bytes), want);
        }
    }

    #[tokio::test]
    async fn progress_only_grows_and_ends_at_1000() {
        let f = file(&vec![7u8; 3 * BUFFER_BYTES + 5]);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let progress: Progress = Arc::new(move |n| sink.lock().unwrap().push(n));
        sha256_file(f.path(), progress, CancellationToken::new()).await.unwrap();
        let seen = seen.lock().unwrap().clone();
        assert!(seen.is_sorted() && seen.len() >= 4, "{seen:?}");
        assert_eq!(seen.last(), Some(&1000));
    }

    #[tokio::test]
    async fn a_cancelled_checksum_says_so() {
        let f = file(b"abc");
        let cancel = CancellationToken::new();
        cancel.cancel();
        let e = sha256_file(f.path(), quiet(), cancel).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable);
        assert!(!e.is_retryable() && e.message().contains("cancelled"), "{e}");
    }

    #[tokio::test]
    async fn a_missing_file_and_a_folder_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing =
            sha256_file(&dir.path().join("x"), quiet(), CancellationToken::new()).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let folder = sha256_file(dir.path(), quiet(), CancellationToken::new()).await.unwrap_err();
        assert_eq!(folder.field(), Some("path"));
    }
}
