//! OMAPI, dhcpd's protocol for changing its host declarations while it runs: a client for the few requests that GGnet makes.
//!
//! ```text
//!   connect ─▶ both send version and header size ─▶ OPEN authenticator (by the key's name) ─▶ its handle is our authenticator id
//!     remove: OPEN host by name ─▶ not found: done | its handle ─▶ DELETE ─▶ STATUS
//!     add:    OPEN host, create and exclusive ─▶ UPDATE
//! ```
//! A message consists of a header of six 32-bit numbers, two lists of named values, each terminated by an empty name, and a signature: HMAC
//! with the shared key over everything except the first number. (`common/omapi` in ISC's source is the only description; ISC's own client
//! `omshell` cuts a text after about a thousand bytes, interprets the rest as commands, and exits with code 0.)
//!
//! Invariants: the key leaves this module only as signatures; a response is accepted only if it is signed; nothing that dhcpd sends makes
//! us read without a limit.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ggnet_core::{Error, ErrorKind, Result};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use zeroize::Zeroizing;

use super::text::Declaration;
use crate::dhcp::files;

/// Time limit for one response of dhcpd, which writes its lease file first.
const TIMEOUT: Duration = Duration::from_secs(20);
const VERSION: u32 = 100;
const HEADER: u32 = 24;
/// No response to our requests is a tenth of this.
const LARGEST: usize = 1 << 16;

const OPEN: u32 = 1;
const UPDATE: u32 = 3;
const STATUS: u32 = 5;
const DELETE: u32 = 6;
/// ISC_R_NOTFOUND.
const NOT_FOUND: u32 = 23;

/// How messages are signed; `algorithm` of the key in dhcpd's main file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAlgorithm {
    /// HMAC-SHA256.
    #[default]
    HmacSha256,
    /// HMAC-MD5, the only algorithm that dhcpd before 4.4 supports.
    HmacMd5,
}

/// The OMAPI address of dhcpd, and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OmapiConfig {
    /// `omapi-port` in dhcpd's main file, on this host.
    #[serde(default = "local")]
    pub address: SocketAddr,
    /// The name of `omapi-key`.
    pub key_name: String,
    /// A file with the key's secret, in base64, as in dhcpd's main file.
    pub key_file: PathBuf,
    /// The key's algorithm.
    #[serde(default)]
    pub algorithm: KeyAlgorithm,
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 7911))
}

/// The key.
struct Key {
    algorithm: KeyAlgorithm,
    secret: Zeroizing<Vec<u8>>,
}

impl Key {
    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let unusable = |_| Error::internal("HMAC rejected the key, although it accepts any length");
        Ok(match self.algorithm {
            KeyAlgorithm::HmacSha256 => {
                let mac = Hmac::<sha2::Sha256>::new_from_slice(&self.secret).map_err(unusable)?;
                mac.chain_update(bytes).finalize().into_bytes().to_vec()
            }
            KeyAlgorithm::HmacMd5 => {
                let mac = Hmac::<md5::Md5>::new_from_slice(&self.secret).map_err(unusable)?;
                mac.chain_update(bytes).finalize().into_bytes().to_vec()
            }
        })
    }

    /// The algorithm's name in the protocol.
    fn algorithm(&self) -> &'static str {
        match self.algorithm {
            KeyAlgorithm::HmacSha256 => "hmac-sha256.SIG-ALG.REG.INT.",
            KeyAlgorithm::HmacMd5 => "hmac-md5.SIG-ALG.REG.INT.",
        }
    }

    fn signature_length(&self) -> u32 {
        match self.algorithm {
            KeyAlgorithm::HmacSha256 => 32,
            KeyAlgorithm::HmacMd5 => 16,
        }
    }
}

/// dhcpd's OMAPI port and our key for it.
pub(super) struct Omapi {
    address: SocketAddr,
    key_name: String,
    key: Key,
}

impl Omapi {
    /// Reads the key. Blocking.
    ///
    /// # Errors
    /// `Invalid` for a key without a name or one that is not base64; errors of reading the file, which name it.
    pub(super) fn open(config: &OmapiConfig) -> Result<Self> {
        if config.key_name.is_empty() {
            return Err(Error::invalid("omapi.key_name", "The OMAPI key has no name"));
        }
        let path = &config.key_file;
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|e| files::error("Reading", path, e))?;
        let secret = BASE64_STANDARD.decode(text.trim()).map(Zeroizing::new);
        let secret = secret.ok().filter(|secret| !secret.is_empty()).ok_or_else(|| {
            let message = format!("{} does not contain a key in base64", path.display());
            Error::invalid("omapi.key_file", message)
                .with_hint("Write only the text between the quotes of `secret \"…\"` into it")
        })?;
        let key = Key { algorithm: config.algorithm, secret };
        Ok(Self { address: config.address, key_name: config.key_name.clone(), key })
    }

    /// A connection on which dhcpd has accepted our key. If the future is dropped, the connection is closed.
    ///
    /// # Errors
    /// `Unavailable` if nothing responds; `Permission` if dhcpd rejects the key.
    pub(super) async fn connect(&self) -> Result<Session<'_>> {
        let subject = format!("OMAPI of dhcpd at {}", self.address);
        let named = |e: Error| e.with_subject(subject.clone());
        let failed = |e| {
            let hint =
                "Set omapi-port and omapi-key in dhcpd's main file, and the same port in omapi.address";
            named(Error::io(format!("Connecting to {subject}"), e).with_hint(hint))
        };
        let stream = within(TcpStream::connect(self.address)).await.map_err(named)?.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut session = Session { stream, omapi: self, authenticator: None, transaction: 0 };
        session.begin().await.map_err(named)?;
        Ok(session)
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T> {
    timeout(TIMEOUT, work).await.map_err(|_| {
        Error::new(ErrorKind::Timeout, format!("No OMAPI response from dhcpd within {TIMEOUT:?}"))
    })
}

/// A connection on which our key was accepted.
pub(super) struct Session<'a> {
    stream: TcpStream,
    omapi: &'a Omapi,
    authenticator: Option<u32>,
    transaction: u32,
}

type Values = Vec<(String, Vec<u8>)>;

/// A response of dhcpd.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    authenticator: u32,
    operation: u32,
    handle: u32,
    answers: u32,
    message: Values,
    object: Values,
    signature: Vec<u8>,
    /// The bytes that the signature covers.
    signed: Vec<u8>,
}

impl Answer {
    fn number(&self, name: &str) -> Option<u32> {
        let (_, value) = self.message.iter().find(|(n, _)| n == name)?;
        Some(u32::from_be_bytes(value.as_slice().try_into().ok()?))
    }

    /// The error that dhcpd reports, if any.
    fn failure(&self) -> Option<(u32, String)> {
        let result = self.number("result").filter(|result| *result != 0);
        let result = match (self.operation, result) {
            (STATUS, Some(result)) => result,
            _ => return None,
        };
        let text = self.message.iter().find(|(name, _)| name == "message").map(|(_, text)| text.as_slice());
        let text = String::from_utf8_lossy(text.unwrap_or_default()).replace(char::is_control, "?");
        Some((result, if text.is_empty() { format!("result {result}") } else { text }))
    }
}

impl Session<'_> {
    async fn begin(&mut self) -> Result<()> {
        let mut greeting = VERSION.to_be_bytes().to_vec();
        greeting.extend(HEADER.to_be_bytes());
        self.send(&greeting).await?;
        let theirs = within(async {
            Ok::<_, std::io::Error>((self.stream.read_u32().await?, self.stream.read_u32().await?))
        });
        let (version, header) = theirs.await?.map_err(|e| lost(&e))?;
        if (version, header) != (VERSION, HEADER) {
            let message = format!(
                "dhcpd uses OMAPI version {version} with headers of {header} bytes, which GGnet does not support"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let key = &self.omapi.key;
        let object = vec![text("name", &self.omapi.key_name), text("algorithm", key.algorithm())];
        let refused = |why: String| {
            let message = format!("dhcpd rejects the OMAPI key {:?}: {why}", self.omapi.key_name);
            Error::new(ErrorKind::Permission, message)
                .with_hint("omapi.key_name, key_file and algorithm must match dhcpd's main file")
        };
        let answer = self.ask(OPEN, 0, vec![text("type", "authenticator")], object).await?;
        match answer.failure() {
            Some((_, why)) => Err(refused(why)),
            None if answer.operation != UPDATE || answer.handle == 0 => Err(unexpected(&answer)),
            None => {
                self.authenticator = Some(answer.handle);
                // A wrong secret is only reported for the first signed request.
                match self.find("ggnet").await {
                    Ok(_) => Ok(()),
                    Err(e) if e.kind() == ErrorKind::Timeout => Err(e),
                    Err(e) => Err(refused(e.explain())),
                }
            }
        }
    }

    /// Removes a declaration, if it exists.
    ///
    /// # Errors
    /// The error that dhcpd reports; `Unavailable` if the connection is lost, and then the declaration may have been removed.
    pub(super) async fn remove(&mut self, name: &str) -> Result<()> {
        let Some(handle) = self.find(name).await? else { return Ok(()) };
        let answer = self.ask(DELETE, handle, vec![], vec![]).await?;
        match answer.failure() {
            Some((NOT_FOUND, _)) => Ok(()),
            Some((_, why)) => Err(declined("remove", name, &why)),
            None => Ok(()),
        }
    }

    /// Adds a declaration; its name must not exist yet.
    ///
    /// # Errors
    /// As [`Session::remove`].
    pub(super) async fn add(&mut self, host: &Declaration) -> Result<()> {
        let one = 1_u32.to_be_bytes().to_vec();
        let message = vec![
            text("type", "host"),
            ("create".to_owned(), one.clone()),
            ("exclusive".to_owned(), one.clone()),
        ];
        let mut object = vec![
            text("name", &host.name),
            ("hardware-address".to_owned(), host.mac.octets().to_vec()),
            // The hardware type of Ethernet.
            ("hardware-type".to_owned(), one),
            text("statements", &host.statements),
        ];
        if let Some(address) = host.address {
            object.push(("ip-address".to_owned(), address.octets().to_vec()));
        }
        let answer = self.ask(OPEN, 0, message, object).await?;
        match answer.failure() {
            Some((_, why)) => Err(declined("add", &host.name, &why)),
            None if answer.operation != UPDATE => Err(unexpected(&answer)),
            None => Ok(()),
        }
    }

    /// The handle of a declaration, if it exists.
    async fn find(&mut self, name: &str) -> Result<Option<u32>> {
        let answer = self.ask(OPEN, 0, vec![text("type", "host")], vec![text("name", name)]).await?;
        match answer.failure() {
            Some((NOT_FOUND, _)) => Ok(None),
            Some((_, why)) => Err(declined("find", name, &why)),
            None if answer.operation != UPDATE => Err(unexpected(&answer)),
            None => Ok(Some(answer.handle)),
        }
    }

    /// Sends one request and returns its response after checking the signature.
    async fn ask(&mut self, operation: u32, handle: u32, message: Values, object: Values) -> Result<Answer> {
        self.transaction = self.transaction.wrapping_add(1);
        let (authenticator, length) = match self.authenticator {
            Some(id) => (id, self.omapi.key.signature_length()),
            None => (0, 0),
        };
        let mut bytes = Vec::new();
        for number in [authenticator, length, operation, handle, self.transaction, 0] {
            bytes.extend(number.to_be_bytes());
        }
        put(&mut bytes, &message)?;
        put(&mut bytes, &object)?;
        if self.authenticator.is_some() {
            let signature = self.omapi.key.sign(&bytes[4..])?;
            bytes.extend(signature);
        }
        self.send(&bytes).await?;
        let answer = within(read(&mut self.stream)).await??;
        if answer.answers != self.transaction {
            return Err(unexpected(&answer));
        }
        if let Some(id) = self.authenticator {
            let signature = self.omapi.key.sign(&answer.signed)?;
            if answer.authenticator != id || !bool::from(answer.signature.ct_eq(&signature)) {
                let message = "An OMAPI response from dhcpd is not signed with our key";
                return Err(Error::new(ErrorKind::Permission, message));
            }
        }
        Ok(answer)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        within(self.stream.write_all(bytes)).await?.map_err(|e| lost(&e))
    }
}

fn text(name: &str, value: &str) -> (String, Vec<u8>) {
    (name.to_owned(), value.as_bytes().to_vec())
}

/// A list of named values and its terminator.
fn put(bytes: &mut Vec<u8>, values: &Values) -> Result<()> {
    let long = |_| Error::internal("A value for OMAPI is too long");
    for (name, value) in values {
        bytes.extend(u16::try_from(name.len()).map_err(long)?.to_be_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(u32::try_from(value.len()).map_err(long)?.to_be_bytes());
        bytes.extend(value);
    }
    bytes.extend([0, 0]);
    Ok(())
}

/// Reads one message.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer> {
    let mut all = Vec::new();
    let mut header = [0; 6];
    for number in &mut header {
        *number = number_of(take(stream, &mut all, 4).await?);
    }
    let [authenticator, length, operation, handle, _, answers] = header;
    let message = list(stream, &mut all).await?;
    let object = list(stream, &mut all).await?;
    let signed = all[4..].to_vec();
    let signature = take(stream, &mut all, usize::try_from(length).unwrap_or(LARGEST)).await?.to_vec();
    Ok(Answer { authenticator, operation, handle, answers, message, object, signature, signed })
}

async fn list(stream: &mut (impl AsyncRead + Unpin), all: &mut Vec<u8>) -> Result<Values> {
    let mut values = Values::new();
    loop {
        let length = number_of(take(stream, all, 2).await?) as usize;
        if length == 0 {
            return Ok(values);
        }
        let name = String::from_utf8_lossy(take(stream, all, length).await?).into_owned();
        let length = number_of(take(stream, all, 4).await?) as usize;
        values.push((name, take(stream, all, length).await?.to_vec()));
    }
}

/// Reads the next bytes and appends them to those before.
async fn take<'a>(
    stream: &mut (impl AsyncRead + Unpin),
    all: &'a mut Vec<u8>,
    length: usize,
) -> Result<&'a [u8]> {
    let begin = all.len();
    if length > LARGEST - begin.min(LARGEST) {
        let message = format!("An OMAPI message from dhcpd is longer than {LARGEST} bytes");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    all.resize(begin + length, 0);
    stream.read_exact(&mut all[begin..]).await.map_err(|e| lost(&e))?;
    Ok(&all[begin..])
}

/// A number of at most four bytes.
fn number_of(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn lost(e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("dhcpd closed the OMAPI connection: {e}"))
}

fn declined(doing: &str, name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("dhcpd could not {doing} {name} through OMAPI: {why}"))
}

fn unexpected(answer: &Answer) -> Error {
    let message = format!(
        "dhcpd sent an unexpected OMAPI response: operation {}, transaction {}",
        answer.operation, answer.answers
    );
    Error::new(ErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    /// The request of omshell from ISC 4.4.3 to dhcpd for a host, and the response; the key is "0123456789abcdef".
    const ASKED: &str = "00000001 00000020 00000001 00000000 6b8b4568 00000000 0004 74797065 00000004 686f7374 0000 \
        0004 6e616d65 00000011 67676e65742d30646462613131652d6d32 0000";
    const SIGNED: &str = "6ab5898413752d25d048e57583a347cb938b4b7376323809689b09bbde5f581d";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().filter(char::is_ascii_hexdigit).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn a_request_is_written_and_signed_as_iscs_own_client_does() {
        let mut written = Vec::new();
        for number in [1, 32, OPEN, 0, 0x6b8b_4568, 0] {
            written.extend(u32::to_be_bytes(number));
        }
        put(&mut written, &vec![text("type", "host")]).unwrap();
        put(&mut written, &vec![text("name", "ggnet-0ddba11e-m2")]).unwrap();
        assert_eq!(written, bytes(ASKED));
        let secret = Zeroizing::new(b"0123456789abcdef".to_vec());
        let key = Key { algorithm: KeyAlgorithm::HmacSha256, secret };
        assert_eq!(key.sign(&written[4..]).unwrap(), bytes(SIGNED));
        let all = [written, bytes(SIGNED)].concat();
        let read = run(read(&mut all.as_slice())).unwrap();
        assert_eq!(
            (read.operation, read.object, read.signature.len()),
            (OPEN, vec![text("name", "ggnet-0ddba11e-m2")], 32)
        );
    }

    #[test]
    fn a_failure_has_a_number_and_words() {
        let told = |result: u32, words: &str| Answer {
            operation: STATUS,
            message: vec![("result".into(), result.to_be_bytes().into()), text("message", words)],
            ..Answer::default()
        };
        assert_eq!(told(23, "not\u{1b} found").failure(), Some((NOT_FOUND, "not? found".into())));
        assert_eq!(told(9, "").failure(), Some((9, "result 9".into())));
        assert_eq!(told(0, "").failure(), None);
        assert_eq!(Answer { operation: UPDATE, ..told(23, "") }.failure(), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused_within_bounds(
            header in proptest::collection::vec(any::<u32>(), 6),
            rest in proptest::collection::vec(any::<u8>(), 0..4000),
        ) {
            let mut all: Vec<u8> = header.into_iter().flat_map(u32::to_be_bytes).collect();
            all.extend(rest);
            match run(read(&mut all.as_slice())) {
                Ok(answer) => prop_assert!(answer.signed.len() + 4 + answer.signature.len() <= all.len()),
                Err(e) => prop_assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{e}"),
            }
        }
    }
}
