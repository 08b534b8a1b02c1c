//! One connection of a load generator to an iSCSI target: login, and the bytes of commands and answers (RFC 7143).
//!
//! Made to cost little, so that the target is what is measured: blocking sockets, one buffer for what goes out and one for
//! what comes in, many commands to a system call. It takes what Linux takes: unsolicited and immediate data where the target
//! allows them, R2T where it does not. No CHAP and no digests: they cost both sides alike.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

const BHS: usize = 48;
const NO_TAG: u32 = u32::MAX;
const FINAL: u8 = 0x80;
/// What we take in one PDU.
const MAX_DATA: u32 = 256 << 10;
/// How long an answer may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which way a command moves data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// READ(10).
    Read,
    /// WRITE(10).
    Write,
}

/// A logged-in session.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    lun: u8,
    cmd_sn: u32,
    exp_stat_sn: u32,
    /// What was negotiated.
    terms: Terms,
    out: Vec<u8>,
    input: Box<[u8]>,
    filled: std::ops::Range<usize>,
    /// Bytes of a Data-In's data that are still to be skipped.
    skip: usize,
}

/// What a login agreed on, as far as writes depend on it.
#[derive(Debug, Clone, Copy)]
struct Terms {
    immediate: bool,
    initial_r2t: bool,
    first_burst: usize,
    /// The target's MaxRecvDataSegmentLength.
    segment: usize,
}

impl Connection {
    /// Logs in without a proof.
    ///
    /// # Errors
    /// The network, a refusal, or an answer that is none.
    pub fn login(portal: SocketAddr, target: &str, initiator: &str, lun: u8) -> Result<Self> {
        let stream = TcpStream::connect(portal)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut me = Self {
            stream,
            lun,
            cmd_sn: 1,
            exp_stat_sn: 0,
            terms: Terms { immediate: true, initial_r2t: true, first_burst: 65536, segment: 8192 },
            out: Vec::new(),
            input: vec![0; 512 << 10].into_boxed_slice(),
            filled: 0..0,
            skip: 0,
        };
        let names =
            format!("InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0AuthMethod=None\0");
        me.login_step(0x81, &names)?;
        let keys = format!(
            "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength={MAX_DATA}\0\
             FirstBurstLength={MAX_DATA}\0MaxBurstLength=1048576\0MaxConnections=1\0ErrorRecoveryLevel=0\0MaxOutstandingR2T=1\0\
             DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0"
        );
        let answer = me.login_step(0x87, &keys)?;
        for (key, value) in answer.split('\0').filter_map(|pair| pair.split_once('=')) {
            let number = || value.parse::<usize>().with_context(|| format!("{key}={value}"));
            match key {
                "InitialR2T" => me.terms.initial_r2t = value == "Yes",
                "ImmediateData" => me.terms.immediate = value == "Yes",
                "FirstBurstLength" => me.terms.first_burst = number()?,
                "MaxRecvDataSegmentLength" => me.terms.segment = number()?,
                _ => {}
            }
        }
        me.clear_attention()?;
        Ok(me)
    }

    fn login_step(&mut self, flags: u8, text: &str) -> Result<String> {
        let mut bhs = [0; BHS];
        bhs[0] = 0x43;
        bhs[1] = flags;
        // ISID of the "random" kind (RFC 7143 section 11.12.5); a session's own, so that many live side by side.
        bhs[8] = 0x80;
        bhs[9..13].copy_from_slice(&std::process::id().to_be_bytes());
        bhs[12..14].copy_from_slice(&self.stream.local_addr()?.port().to_be_bytes());
        put(&mut bhs, 24, self.cmd_sn);
        put(&mut bhs, 28, self.exp_stat_sn);
        self.queue(bhs, text.as_bytes())?;
        self.send()?;
        let (answer, data) = self.receive_whole()?;
        ensure!(answer[0] & 0x3f == 0x23, "opcode {:#04x} in answer to a login", answer[0]);
        ensure!(answer[36] == 0, "login refused: {:02x}{:02x}", answer[36], answer[37]);
        self.exp_stat_sn = word(&answer, 24).wrapping_add(1);
        Ok(String::from_utf8(data)?)
    }

    /// TEST UNIT READY until the unit has told all its attentions.
    fn clear_attention(&mut self) -> Result<()> {
        for _ in 0..8 {
            let bhs = self.command_header(NO_TAG - 1, FINAL | 0x01, 0);
            self.queue(bhs, &[])?;
            self.send()?;
            let (answer, _) = self.receive_whole()?;
            self.exp_stat_sn = word(&answer, 24).wrapping_add(1);
            if answer[3] == 0 {
                return Ok(());
            }
        }
        bail!("the unit does not become ready")
    }

    /// Queues a command for blocks of 512 bytes; nothing is sent before [`send`](Self::send).
    ///
    /// # Errors
    /// The length is out of range.
    pub fn command(&mut self, tag: u32, direction: Direction, lba: u32, data: Transfer<'_>) -> Result<()> {
        let len = data.len();
        let (flags, opcode) = match direction {
            Direction::Read => (FINAL | 0x41, 0x28),
            Direction::Write => (FINAL | 0x21, 0x2a),
        };
        let mut bhs = self.command_header(tag, flags, u32::try_from(len)?);
        bhs[32] = opcode;
        bhs[34..38].copy_from_slice(&lba.to_be_bytes());
        bhs[39..41].copy_from_slice(&u16::try_from(len / 512)?.to_be_bytes());
        let Transfer::Out(bytes) = data else { return self.queue(bhs, &[]) };
        let Terms { immediate, initial_r2t, first_burst, segment } = self.terms;
        let first = if immediate { len.min(first_burst).min(segment) } else { 0 };
        let unasked = if initial_r2t { first } else { len.min(first_burst) };
        if unasked > first {
            bhs[1] &= !FINAL;
        }
        self.queue(bhs, &bytes[..first])?;
        self.data_out(tag, NO_TAG, &bytes[..unasked], first)
    }

    /// Queues Data-Out PDUs for `bytes[from..]`.
    fn data_out(&mut self, tag: u32, transfer_tag: u32, bytes: &[u8], from: usize) -> Result<()> {
        let (mut at, mut data_sn) = (from, 0);
        while at < bytes.len() {
            let end = (at + self.terms.segment).min(bytes.len());
            let mut bhs = [0; BHS];
            bhs[0] = 0x05;
            bhs[1] = if end == bytes.len() { FINAL } else { 0 };
            bhs[9] = self.lun;
            put(&mut bhs, 16, tag);
            put(&mut bhs, 20, transfer_tag);
            put(&mut bhs, 28, self.exp_stat_sn);
            put(&mut bhs, 36, data_sn);
            put(&mut bhs, 40, u32::try_from(at)?);
            self.queue(bhs, &bytes[at..end])?;
            (at, data_sn) = (end, data_sn + 1);
        }
        Ok(())
    }

    fn command_header(&mut self, tag: u32, flags: u8, expected: u32) -> [u8; BHS] {
        let mut bhs = [0; BHS];
        bhs[0] = 0x01;
        bhs[1] = flags;
        bhs[9] = self.lun;
        put(&mut bhs, 16, tag);
        put(&mut bhs, 20, expected);
        put(&mut bhs, 24, self.cmd_sn);
        put(&mut bhs, 28, self.exp_stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }

    fn queue(&mut self, mut bhs: [u8; BHS], data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len())?;
        bhs[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
        self.out.extend_from_slice(&bhs);
        self.out.extend_from_slice(data);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        Ok(())
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).context("sending")?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits for bytes and tells `done` the tag of every command that they end. Data is counted and dropped; a request for
    /// data is answered from `payload`, which every write of this connection has as its data.
    ///
    /// # Errors
    /// The connection broke, or a command ended otherwise than with GOOD.
    pub fn receive(&mut self, payload: &[u8], mut done: impl FnMut(u32)) -> Result<()> {
        self.fill()?;
        loop {
            let skipped = self.skip.min(self.filled.len());
            self.filled.start += skipped;
            self.skip -= skipped;
            if self.skip > 0 || self.filled.len() < BHS {
                return Ok(());
            }
            let mut bhs = [0; BHS];
            bhs.copy_from_slice(&self.input[self.filled.start..self.filled.start + BHS]);
            self.filled.start += BHS;
            let len = data_len(&bhs);
            self.skip = len.next_multiple_of(4);
            let tag = word(&bhs, 16);
            match bhs[0] & 0x3f {
                0x21 => {
                    ensure!(bhs[2] == 0 && bhs[3] == 0, "response {:#04x}, status {:#04x}", bhs[2], bhs[3]);
                    self.exp_stat_sn = word(&bhs, 24).wrapping_add(1);
                    done(tag);
                }
                0x25 if bhs[1] & 1 != 0 => {
                    ensure!(bhs[3] == 0, "status {:#04x}", bhs[3]);
                    self.exp_stat_sn = word(&bhs, 24).wrapping_add(1);
                    done(tag);
                }
                0x25 => {}
                0x31 => {
                    let at = usize::try_from(word(&bhs, 40))?;
                    let end = at + usize::try_from(word(&bhs, 44))?;
                    ensure!(end <= payload.len(), "asked for data up to {end}, there are {}", payload.len());
                    self.data_out(tag, word(&bhs, 20), &payload[..end], at)?;
                }
                // A ping that wants an answer, or not.
                0x20 if word(&bhs, 20) == NO_TAG => {}
                0x20 => {
                    let mut pong = [0; BHS];
                    pong[0] = 0x40;
                    pong[1] = FINAL;
                    put(&mut pong, 16, NO_TAG);
                    pong[20..24].copy_from_slice(&bhs[20..24]);
                    put(&mut pong, 24, self.cmd_sn);
                    put(&mut pong, 28, self.exp_stat_sn);
                    self.queue(pong, &[])?;
                }
                other => bail!("opcode {other:#04x} from the target"),
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.start > 0 {
            self.input.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let n = self.stream.read(&mut self.input[self.filled.end..]).context("waiting for the target")?;
        ensure!(n > 0, "the target closed the connection");
        self.filled.end += n;
        Ok(())
    }

    /// One whole PDU, for the login.
    fn receive_whole(&mut self) -> Result<([u8; BHS], Vec<u8>)> {
        loop {
            if self.filled.len() >= BHS {
                let at = self.filled.start;
                let mut bhs = [0; BHS];
                bhs.copy_from_slice(&self.input[at..at + BHS]);
                let len = data_len(&bhs);
                let total = BHS + len.next_multiple_of(4);
                if self.filled.len() >= total {
                    self.filled.start += total;
                    return Ok((bhs, self.input[at + BHS..at + BHS + len].to_vec()));
                }
            }
            self.fill()?;
        }
    }
}

/// What a command moves.
#[derive(Debug, Clone, Copy)]
pub enum Transfer<'a> {
    /// So many bytes come.
    In(usize),
    /// These go.
    Out(&'a [u8]),
}

impl Transfer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::In(len) => *len,
            Self::Out(bytes) => bytes.len(),
        }
    }
}

fn put(bhs: &mut [u8; BHS], at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn word(bhs: &[u8; BHS], at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn data_len(bhs: &[u8; BHS]) -> usize {
    usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7])
}
