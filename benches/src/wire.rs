//! One connection of a load generator: the bytes of commands and answers over a blocking socket.
//!
//! Made to cost little, so that the target is what is measured: one buffer for what goes out and one for what comes in, many commands to a
//! system call, data counted and not kept. It logs in as every initiator and takes what Linux takes: unsolicited and immediate data where
//! the target allows them, R2T where it does not. No CHAP and no digests: they cost both sides alike.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ggnet_iscsi::initiator::{
    Account, Bhs, FINAL, Initiator, NO_TAG, Numbers, Params, Transfer, cdb, opcode, unsolicited,
};

const BHS: usize = 48;
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
    numbers: Numbers,
    terms: Params,
    out: Vec<u8>,
    input: Box<[u8]>,
    filled: std::ops::Range<usize>,
    /// Bytes of a Data-In's data that are still to be skipped.
    skip: usize,
}

impl Connection {
    /// Logs in without a proof, and waits until the unit has told all its attentions.
    ///
    /// # Errors
    /// The network, a refusal, or an answer that is none.
    pub fn login(portal: SocketAddr, target: &str, initiator: &str, lun: u8) -> Result<Self> {
        // A session's own ISID (RFC 7143 section 11.12.5), so that many live side by side.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let ([a, b, ..], [c, d]) =
            (std::process::id().to_le_bytes(), NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let isid = [0x80, a, b, 0, c, d];
        let account = Account { isid, lun, ..Account::new(portal, target, initiator) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stream, numbers, terms) = runtime.block_on(async {
            let mut initiator = Initiator::login(account).await?;
            initiator.execute(&cdb::TEST_UNIT_READY, Transfer::None).await?;
            initiator.into_connection().into_std()
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            lun,
            numbers,
            terms,
            out: Vec::new(),
            input: vec![0; 512 << 10].into_boxed_slice(),
            filled: 0..0,
            skip: 0,
        })
    }

    /// Queues a command for blocks of 512 bytes; nothing is sent before [`send`](Self::send).
    ///
    /// # Errors
    /// The length is out of range.
    pub fn command(&mut self, tag: u32, direction: Direction, lba: u32, data: Transfer<'_>) -> Result<()> {
        let len = data.len();
        let op = match direction {
            Direction::Read => 0x28,
            Direction::Write => 0x2a,
        };
        let cdb = cdb::ten(op, 0, lba, u16::try_from(len / 512)?);
        let mut bhs = self.numbers.command(self.lun, data.flags(), &cdb, u32::try_from(len)?);
        bhs.set_word(16, tag);
        let Transfer::Out(bytes) = data else { return self.queue(bhs, &[]) };
        let (immediate, unasked) = unsolicited(&self.terms, len);
        if unasked > immediate {
            bhs.0[1] &= !FINAL;
        }
        self.queue(bhs, &bytes[..immediate])?;
        self.data_out(tag, NO_TAG, bytes, immediate..unasked)
    }

    /// Queues Data-Out PDUs for a range of a command's data.
    fn data_out(&mut self, tag: u32, ttt: u32, bytes: &[u8], range: std::ops::Range<usize>) -> Result<()> {
        let segment = usize::try_from(self.terms.peer_max_data)?;
        for (bhs, range) in self.numbers.burst(self.lun, tag, ttt, range, segment) {
            self.queue(bhs, &bytes[range])?;
        }
        Ok(())
    }

    fn queue(&mut self, mut bhs: Bhs, data: &[u8]) -> Result<()> {
        ensure!(data.len() < 1 << 24, "{} bytes in one PDU", data.len());
        bhs.set_data_len(data.len());
        self.out.extend_from_slice(&bhs.0);
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
            if self.skip > 0 {
                return Ok(());
            }
            let Some(head) = self.input[self.filled.clone()].first_chunk::<BHS>() else { return Ok(()) };
            let bhs = Bhs(*head);
            self.filled.start += BHS;
            self.skip = bhs.ahs_len() + bhs.data_len().next_multiple_of(4);
            self.numbers.heard(&bhs)?;
            match bhs.opcode() {
                opcode::SCSI_RESPONSE => {
                    let (response, status) = (bhs.0[2], bhs.0[3]);
                    ensure!(response == 0 && status == 0, "response {response:#04x}, status {status:#04x}");
                    done(bhs.itt());
                }
                opcode::DATA_IN if bhs.flags() & 1 != 0 => {
                    ensure!(bhs.0[3] == 0, "status {:#04x}", bhs.0[3]);
                    done(bhs.itt());
                }
                opcode::DATA_IN => {}
                opcode::R2T => {
                    let at = usize::try_from(bhs.word(40))?;
                    let end = at + usize::try_from(bhs.word(44))?;
                    ensure!(end <= payload.len(), "asked for data up to {end}, there are {}", payload.len());
                    self.data_out(bhs.itt(), bhs.ttt(), payload, at..end)?;
                }
                opcode::NOP_IN => {
                    if let Some(pong) = self.numbers.pong(&bhs) {
                        self.queue(pong, &[])?;
                    }
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
}
