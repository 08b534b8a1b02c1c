//! [`Sealer`]: CHAP credentials at rest, sealed with XChaCha20-Poly1305 under a key file of mode 0600.
//!
//! CHAP needs the secret itself (RFC 1994), and it outlives our restart in the guest's iBFT, so it is stored recoverable: sealed,
//! so that a copy or a backup of the database alone tells nothing. The associated data is the session's id and the generation's
//! number, so that a sealed value moved to another row does not open.
//!
//! Invariants: the key file appears whole or not at all (written aside, synced, linked to its name, which never replaces one);
//! it is 32 random bytes; nonces are 24 random bytes, one per sealing. A key that does not fit is `Corrupt` when a value is
//! opened; what that means for the store is `key`'s to say.
//!
//! A sealed value: version byte 1, nonce, ciphertext with tag. The plaintext: the user's length in 2 bytes, user, secret.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use chacha20poly1305::{
    Key, KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{ChapPair, Generation, Secret, SessionId},
};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const NONCE: usize = 24;

/// The key itself.
pub(super) type KeyBytes = Zeroizing<[u8; 32]>;

/// Seals and opens the credentials of sessions.
pub(super) struct Sealer {
    cipher: XChaCha20Poly1305,
    key_file: PathBuf,
}

impl Sealer {
    /// By this key; errors name the file that it is of.
    pub(super) fn new(key: &KeyBytes, key_file: &Path) -> Self {
        Self { cipher: XChaCha20Poly1305::new(&Key::from(**key)), key_file: key_file.to_owned() }
    }

    /// Reads the key file, or makes it. Blocking.
    pub(super) fn open(key_file: &Path) -> Result<Self> {
        let key = match read_key(key_file)? {
            Some(key) => key,
            None => make_key(key_file)?,
        };
        Ok(Self::new(&key, key_file))
    }

    /// Seals a generation's credentials; nothing for a generation without.
    pub(super) fn seal(&self, session: SessionId, generation: &Generation) -> Result<Option<Vec<u8>>> {
        let Some(chap) = &generation.chap else { return Ok(None) };
        let user = chap.user.as_bytes();
        let length = u16::try_from(user.len())
            .map_err(|_| Error::invalid("chap", "The CHAP user name is longer than 65535 bytes"))?;
        let mut plain = Zeroizing::new(Vec::with_capacity(2 + user.len() + chap.secret.expose().len()));
        plain.extend_from_slice(&length.to_be_bytes());
        plain.extend_from_slice(user);
        plain.extend_from_slice(chap.secret.expose().as_bytes());

        let nonce: [u8; NONCE] = random()?;
        let aad = associated_data(session, generation.number);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad })
            .map_err(|_| Error::internal("The credentials could not be sealed"))?;
        Ok(Some([&[VERSION][..], &nonce, &sealed].concat()))
    }

    /// Opens what [`Self::seal`] gave. `Corrupt`, naming the key file, when it does not open.
    pub(super) fn open_sealed(&self, session: SessionId, number: u32, sealed: &[u8]) -> Result<ChapPair> {
        let bad = || {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "The credentials of session {session}, generation {number}, do not open with the key file {}: \
                     it is not the key that sealed them, or the record was altered",
                    self.key_file.display()
                ),
            )
            .with_subject(session.to_string())
            .with_hint(
                "Restart the server: it ends a session whose record is damaged, and says what to do about a key file \
                 that does not fit",
            )
        };
        let (version, rest) = sealed.split_first().ok_or_else(bad)?;
        let (nonce, text) = rest.split_at_checked(NONCE).ok_or_else(bad)?;
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| bad())?;
        if *version != VERSION {
            return Err(bad());
        }
        let aad = associated_data(session, number);
        let plain = self
            .cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: text, aad: &aad })
            .map(Zeroizing::new)
            .map_err(|_| bad())?;
        let (length, rest) = plain.split_first_chunk::<2>().ok_or_else(bad)?;
        let (user, secret) =
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or_else(bad)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| bad());
        Ok(ChapPair { user: text(user)?, secret: Secret::new(text(secret)?) })
    }
}

fn associated_data(session: SessionId, number: u32) -> Vec<u8> {
    let mut aad = session.to_string().into_bytes();
    aad.extend_from_slice(&number.to_be_bytes());
    aad
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::internal("The operating system gave no random bytes").with_source(e))?;
    Ok(bytes)
}

/// The key in the file; none: there is no such file. `Invalid`: it is not a key. Blocking.
pub(super) fn read_key(path: &Path) -> Result<Option<KeyBytes>> {
    let doing = |what: &str| format!("{what} the key file {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(doing("Opening"), e)),
    };
    super::tighten(path)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(33));
    file.take(33).read_to_end(&mut bytes).map_err(|e| Error::io(doing("Reading"), e))?;
    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| {
        Error::invalid("store.key_file", format!("The key file {} is not 32 bytes long", path.display()))
            .with_hint("Put the right key file back from a backup; if it is lost: `ggnet-server key reset`")
    })?;
    Ok(Some(Zeroizing::new(key)))
}

/// A new random key.
pub(super) fn new_key() -> Result<KeyBytes> {
    Ok(Zeroizing::new(random::<32>()?))
}

/// Puts a new key into the file; the loser of a race takes the winner's key.
fn make_key(path: &Path) -> Result<KeyBytes> {
    let key = new_key()?;
    if write_key(path, &key)? {
        return Ok(key);
    }
    read_key(path)?.ok_or_else(|| Error::internal(format!("{} vanished", path.display())))
}

/// Puts this key into the file in place of another, which is kept beside it as `<path>.old-<n>`; gives that name. Blocking.
pub(super) fn replace_key(path: &Path, key: &KeyBytes) -> Result<Option<PathBuf>> {
    let mut kept = None;
    for n in 1_u32.. {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".old-{n}"));
        let aside = PathBuf::from(aside);
        // A link, because a rename would replace what an earlier reset kept.
        match fs::hard_link(path, &aside) {
            Ok(()) => {
                fs::remove_file(path)
                    .map_err(|e| Error::io(format!("Moving the key file {} away", path.display()), e))?;
                kept = Some(aside);
                break;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
            Err(e) => return Err(Error::io(format!("Keeping the key file {}", path.display()), e)),
        }
    }
    if !write_key(path, key)? {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("Somebody made the key file {}", path.display()),
        ));
    }
    Ok(kept)
}

/// Writes a key beside its name and links it there; false: there is a file already.
fn write_key(path: &Path, key: &KeyBytes) -> Result<bool> {
    let tag: [u8; 8] = random()?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".new-{:016x}", u64::from_be_bytes(tag)));
    let aside = PathBuf::from(aside);
    let doing = || format!("Creating the key file {}", path.display());

    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        // The umask may have taken bits away.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(&**key)?;
        file.sync_all()?;
        fs::hard_link(&aside, path)
    };
    let linked = write();
    let removed = fs::remove_file(&aside);
    match linked {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(Error::io(doing(), e)),
    }
    removed.map_err(|e| Error::io(doing(), e))?;
    super::files::sync_folder(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use ggnet_core::testkit::suite::store::{generation, image, machine, version};

    use super::*;

    fn sealed_one(sealer: &Sealer) -> (SessionId, Generation, Vec<u8>) {
        let (session, of) = (SessionId::generate(), version(image("a").id, 1));
        let generation = generation(machine(1).id, &of, 7);
        let sealed = sealer.seal(session, &generation).unwrap().unwrap();
        (session, generation, sealed)
    }

    #[test]
    fn only_the_key_and_the_place_it_was_sealed_for_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(&folder.path().join("key")).unwrap();
        let (session, generation, sealed) = sealed_one(&sealer);
        assert_eq!(sealer.open_sealed(session, 7, &sealed).unwrap(), generation.chap.clone().unwrap());
        // The same key, read again.
        let again = Sealer::open(&folder.path().join("key")).unwrap();
        assert_eq!(again.open_sealed(session, 7, &sealed).unwrap(), generation.chap.clone().unwrap());
        assert_ne!(sealed, sealer.seal(session, &generation).unwrap().unwrap(), "a nonce was used twice");

        let other_key = Sealer::open(&folder.path().join("other")).unwrap();
        let mut refusals = vec![
            other_key.open_sealed(session, 7, &sealed),
            sealer.open_sealed(SessionId::generate(), 7, &sealed),
            sealer.open_sealed(session, 8, &sealed),
        ];
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            refusals.push(sealer.open_sealed(session, 7, &altered));
            refusals.push(sealer.open_sealed(session, 7, &sealed[..at]));
        }
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_generation_without_credentials_has_nothing_to_seal() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(&folder.path().join("key")).unwrap();
        let (session, mut generation, _) = sealed_one(&sealer);
        generation.chap = None;
        assert_eq!(sealer.seal(session, &generation).unwrap(), None);
    }

    #[test]
    fn many_that_make_the_key_at_once_get_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let sealers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Sealer::open(&path).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let (session, _, sealed) = sealed_one(&sealers[0]);
        for sealer in &sealers {
            sealer.open_sealed(session, 7, &sealed).unwrap();
        }
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["key"], "something was left beside the key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
