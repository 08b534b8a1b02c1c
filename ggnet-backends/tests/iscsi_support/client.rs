//! An initiator of one logical unit, as the behaviour suite of targets wants it: it logs in once and never again by itself.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU8, Ordering},
};

use async_trait::async_trait;
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::ChapPair,
    ports::{Access, TargetEndpoint},
    testkit::suite::TargetClient,
};
use md5::{Digest as _, Md5};
use tokio::sync::Mutex as AsyncMutex;

use super::initiator::{Initiator, Pdu};

const SECTOR: usize = 512;
/// What a target takes within a command, whatever it declares (RFC 7143, section 13.12).
const CHUNK: usize = 8192;
const SCSI_COMMAND: u8 = 0x01;
const LOGIN: u8 = 0x43;
const LOGOUT: u8 = 0x06;
const SCSI_RESPONSE: u8 = 0x21;
const NOP_OUT: u8 = 0x00;
const NOP_IN: u8 = 0x20;
const IMMEDIATE: u8 = 0x40;
const DATA_IN: u8 = 0x25;
const LOGOUT_RESPONSE: u8 = 0x26;
/// Login stages in the flags: security to itself, security to operational, operational to full feature.
const IN_SECURITY: u8 = 0x00;
const TO_OPERATIONAL: u8 = 0x81;
const TO_FULL_FEATURE: u8 = 0x87;
/// Every key that a target could ask for in return, so that one request is enough.
const OPERATIONAL: &str = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0\
    MaxRecvDataSegmentLength=65536\0MaxBurstLength=262144\0FirstBurstLength=65536\0MaxConnections=1\0\
    MaxOutstandingR2T=1\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0ErrorRecoveryLevel=0\0\
    DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0";
const UNIT_ATTENTION: u8 = 6;

/// Logs in as `access` says; any name where everybody may.
pub async fn log_in(endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
    let (name, chap, mutual) = match access {
        Access::Initiator { name, chap, mutual } => (name.to_string(), chap.as_ref(), mutual.as_ref()),
        Access::Shared => ("iqn.2026-11.local.ggnet:anybody".to_owned(), None, None),
    };
    let wire = Initiator::connect(endpoint.listen[0]).await.map_err(broken)?;
    let mut client = Client { wire, lun: endpoint.lun };
    client.login(&name, endpoint.iqn.as_str(), chap, mutual).await?;
    Ok(Box::new(Connected(AsyncMutex::new(client))))
}

/// What proves that one knows a secret (RFC 1994 section 4.1).
fn response(id: u8, pair: &ChapPair, challenge: &str) -> String {
    let hash = Md5::new()
        .chain_update([id])
        .chain_update(pair.secret.expose())
        .chain_update(from_hex(challenge))
        .finalize();
    hash.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn broken(e: std::io::Error) -> Error {
    Error::io("Talking to the target", e)
}

fn protocol(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

/// An initiator of one logical unit.
struct Client {
    wire: Initiator,
    lun: u8,
}

impl Client {
    /// With `mutual` the target is asked for its proof, and left without the right one.
    async fn login(
        &mut self,
        name: &str,
        target: &str,
        chap: Option<&ChapPair>,
        mutual: Option<&ChapPair>,
    ) -> Result<()> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let isid = [0x80, 0, 0, 0, 0, NEXT.fetch_add(1, Ordering::Relaxed)];
        let mut say = format!("InitiatorName={name}\0TargetName={target}\0SessionType=Normal\0");
        if let Some(pair) = chap {
            let method = self.stage(IN_SECURITY, isid, &(say + "AuthMethod=CHAP\0")).await?;
            if method.get("AuthMethod").map(String::as_str) != Some("CHAP") {
                return Err(protocol(format!("no CHAP: {method:?}")));
            }
            let asked = self.stage(IN_SECURITY, isid, "CHAP_A=5\0").await?;
            let (Some(id), Some(challenge)) = (asked.get("CHAP_I"), asked.get("CHAP_C")) else {
                return Err(protocol(format!("no challenge: {asked:?}")));
            };
            let id: u8 = id.parse().map_err(|_| protocol("the challenge's number"))?;
            let response = response(id, pair, challenge);
            let mut proof = format!("CHAP_N={}\0CHAP_R={response}\0", pair.user);
            // Another one than it gave: else it could have its own answered.
            let ours = format!("0x{}", "5a".repeat(16));
            if mutual.is_some() {
                proof.push_str(&format!("CHAP_I=7\0CHAP_C={ours}\0"));
            }
            let answer = self.stage(TO_OPERATIONAL, isid, &proof).await?;
            if let Some(own) = mutual {
                let given = (answer.get("CHAP_N"), answer.get("CHAP_R").map(|r| r.to_lowercase()));
                if given != (Some(&own.user), Some(self::response(7, own, &ours))) {
                    return Err(Error::new(
                        ErrorKind::Permission,
                        format!("The target did not prove itself: {answer:?}"),
                    ));
                }
            }
            say = String::new();
        }
        self.stage(TO_FULL_FEATURE, isid, &(say + OPERATIONAL)).await?;
        Ok(())
    }

    /// One login request; the keys of the answer.
    async fn stage(&mut self, flags: u8, isid: [u8; 6], keys: &str) -> Result<HashMap<String, String>> {
        let mut bhs = [0; 48];
        bhs[0] = LOGIN;
        bhs[1] = flags;
        bhs[8..14].copy_from_slice(&isid);
        bhs[24..28].copy_from_slice(&self.wire.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.wire.exp_stat_sn.to_be_bytes());
        self.wire.send(bhs, keys.as_bytes()).await.map_err(broken)?;
        let answer = self.wire.receive().await.map_err(broken)?;
        self.wire.exp_stat_sn = answer.word(24).wrapping_add(1);
        let kind = match (answer.bhs[36], answer.bhs[37]) {
            (0, 0) if answer.bhs[1] == flags => {
                let text = String::from_utf8(answer.data).unwrap();
                let pair = |p: &str| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
                return Ok(text.split('\0').filter_map(pair).collect());
            }
            (2, 1 | 2) => ErrorKind::Permission,
            (2, 3) => ErrorKind::NotFound,
            (3, 1) => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Err(Error::new(
            kind,
            format!("Login status {:02x?}, flags {:#x}", &answer.bhs[36..38], answer.bhs[1]),
        ))
    }

    /// A SCSI command with its data, and the data that came back. A unit attention is news, not a refusal: once more.
    async fn command(&mut self, cdb: &[u8], expected: usize, data: &[u8]) -> Result<Vec<u8>> {
        loop {
            let (read, end) = self.try_command(cdb, expected, data).await?;
            match end.status() {
                0 => return Ok(read),
                2 if end.data.len() > 4 && end.data[4] & 0xf == UNIT_ATTENTION => {}
                status => return Err(protocol(format!("SCSI status {status:#x}, sense {:02x?}", end.data))),
            }
        }
    }

    async fn try_command(&mut self, cdb: &[u8], expected: usize, data: &[u8]) -> Result<(Vec<u8>, Pdu)> {
        // Final; reads or writes where it has data.
        let flags = match (expected, data.is_empty()) {
            (0, _) => 0x80,
            (_, true) => 0xc0,
            (_, false) => 0xa0,
        };
        let mut bhs = self.wire.request(SCSI_COMMAND, flags);
        bhs[9] = self.lun;
        bhs[20..24].copy_from_slice(&u32::try_from(expected).unwrap().to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.wire.send(bhs, data).await.map_err(broken)?;
        let mut read = Vec::new();
        loop {
            let pdu = self.answer().await?;
            match pdu.opcode() {
                SCSI_RESPONSE => return Ok((read, pdu)),
                DATA_IN => {
                    assert_eq!(pdu.word(40) as usize, read.len(), "data in its order");
                    read.extend(&pdu.data);
                    if pdu.bhs[1] & 1 != 0 {
                        return Ok((read, pdu));
                    }
                }
                other => return Err(protocol(format!("opcode {other:#x} instead of an answer"))),
            }
        }
    }

    /// The next PDU that is no ping. The kernel's target pings a session that was idle for 15 s, and closes one that does not answer.
    async fn answer(&mut self) -> Result<Pdu> {
        loop {
            let pdu = self.wire.receive().await.map_err(broken)?;
            if pdu.opcode() != NOP_IN {
                return Ok(pdu);
            }
            if pdu.word(20) != u32::MAX {
                let mut pong = [0; 48];
                (pong[0], pong[1]) = (NOP_OUT | IMMEDIATE, 0x80);
                pong[8..16].copy_from_slice(&pdu.bhs[8..16]);
                pong[16..20].fill(0xff);
                pong[20..24].copy_from_slice(&pdu.bhs[20..24]);
                pong[24..28].copy_from_slice(&self.wire.cmd_sn.to_be_bytes());
                pong[28..32].copy_from_slice(&self.wire.exp_stat_sn.to_be_bytes());
                self.wire.send(pong, &[]).await.map_err(broken)?;
            }
        }
    }
}

/// READ(10) or WRITE(10).
fn cdb(opcode: u8, offset: u64, len: usize) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&u32::try_from(offset / SECTOR as u64).unwrap().to_be_bytes());
    cdb[7..9].copy_from_slice(&u16::try_from(len / SECTOR).unwrap().to_be_bytes());
    cdb
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").expect("a challenge in hexadecimal");
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

struct Connected(AsyncMutex<Client>);

#[async_trait]
impl TargetClient for Connected {
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let read = self.0.lock().await.command(&cdb(0x28, offset, len), len, &[]).await?;
        assert_eq!(read.len(), len, "GOOD means all of it");
        Ok(read)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut client = self.0.lock().await;
        for (n, chunk) in (0..).zip(data.chunks(CHUNK)) {
            let at = offset + n * CHUNK as u64;
            client.command(&cdb(0x2a, at, chunk.len()), chunk.len(), chunk).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.0.lock().await.command(&cdb(0x35, 0, 0), 0, &[]).await.map(|_| ())
    }

    async fn logout(self: Box<Self>) -> Result<()> {
        let mut client = self.0.into_inner();
        let bhs = client.wire.request(LOGOUT, 0x80);
        client.wire.send(bhs, &[]).await.map_err(broken)?;
        let answer = client.answer().await?;
        if (answer.opcode(), answer.bhs[2]) != (LOGOUT_RESPONSE, 0) {
            return Err(protocol(format!("Logout was answered {:02x?}", answer.bhs)));
        }
        Ok(())
    }
}
