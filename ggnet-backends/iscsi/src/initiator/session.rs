//! A session with one logical unit.
//!
//! ```text
//!              submit                  R2T: data goes out
//!   caller ─────────────▶ in flight ◀────────────────────▶ target
//!      ▲                      │ status
//!      └─ next_outcome ◀── ended ◀─┘
//! ```
//!
//! Invariants: no more commands are open than the depth and the target's window allow; a command's data never grows beyond what it
//! requested; a target's R2T is answered only within the data of its command. A call that is dropped half-way loses nothing of the session:
//! queued output is sent by the next call, and the answer to a command that no caller waits for is received and dropped.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::account::Account;
use super::cdb;
use super::connection::{Connection, in_order};
use super::error::Error;
use super::headers::{Transfer, unsolicited};
use crate::bytes::{be16, be32, sat32};
use crate::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, opcode};

/// Commands in flight, unless the caller sets another number.
const DEPTH: usize = 32;
/// The pause between two attempts to log in.
const PAUSE: Duration = Duration::from_millis(100);
/// The number of unit attentions in a row after which the command fails. There are fewer kinds of them.
const ATTENTIONS: usize = 16;
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const UNIT_ATTENTION: u8 = 6;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its initiator task tag, as [`Initiator::submit`] returned it.
    pub tag: u32,
    /// The SCSI status; 0 is GOOD.
    pub status: u8,
    /// The sense data, if there is any.
    pub sense: Vec<u8>,
    /// The data that it read.
    pub data: Vec<u8>,
}

impl Outcome {
    fn is_attention(&self) -> bool {
        self.status == CHECK_CONDITION && self.sense.get(2).is_some_and(|key| key & 0xf == UNIT_ATTENTION)
    }
}

/// A command in flight.
#[derive(Debug)]
struct Task {
    /// The data that was received.
    data: Vec<u8>,
    /// Maximum length of the data to receive.
    expected: usize,
    data_sn: u32,
    /// The data that an R2T may request, and its offset in the command's data.
    out: Vec<u8>,
    out_at: usize,
    /// Whether no caller waits for it.
    abandoned: bool,
}

/// A session with one logical unit of a target. It outlives its connection if the caller wants that
/// ([`login_within`](Initiator::login_within)).
///
/// Every method can be dropped half-way: the session continues as if the call had returned an error, and the target may have executed a
/// command that was sent.
#[derive(Debug)]
pub struct Initiator {
    account: Account,
    connection: Connection,
    /// How long to try to log in again after the connection was lost; zero: do not try.
    patience: Duration,
    /// Whether the connection was lost and no new login has succeeded yet.
    lost: bool,
    logins: u64,
    depth: usize,
    tasks: HashMap<u32, Task>,
    ended: VecDeque<Outcome>,
    /// The length of a logical block, once it is known.
    block: Option<usize>,
}

impl Initiator {
    /// Logs in. If the connection is lost, so is the session.
    ///
    /// # Errors
    /// Like [`Connection::login`].
    pub async fn login(account: Account) -> Result<Self, Error> {
        Self::login_within(account, Duration::ZERO).await
    }

    /// Logs in, and retries for this time while the target cannot be reached or answers that it cannot serve now (status class 3). Whenever
    /// the connection is lost, it logs in again in the same way, and [`execute`](Self::execute) sends its command again. This is what an
    /// operating system does: its disk waits.
    ///
    /// # Errors
    /// Like [`Connection::login`]; the last error when the time is over.
    pub async fn login_within(account: Account, patience: Duration) -> Result<Self, Error> {
        let connection = connect(&account, patience).await?;
        Ok(Self {
            account,
            connection,
            patience,
            lost: false,
            logins: 1,
            depth: DEPTH,
            tasks: HashMap::new(),
            ended: VecDeque::new(),
            block: None,
        })
    }

    /// The maximum number of commands in flight; the target's window may allow fewer.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth.max(1);
        self
    }

    /// How often it has logged in.
    #[must_use]
    pub fn logins(&self) -> u64 {
        self.logins
    }

    /// The number of commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tasks.len()
    }

    /// The connection, to send PDUs that a session would never send.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The connection, without the session.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// Logs in again, and tries for as long as the session's patience. Commands in flight are dropped: it is not known whether the target
    /// executed them.
    ///
    /// # Errors
    /// Like [`Connection::login`].
    pub async fn reconnect(&mut self) -> Result<(), Error> {
        self.lost = true;
        self.tasks.clear();
        self.connection = connect(&self.account, self.patience).await?;
        self.lost = false;
        self.logins += 1;
        Ok(())
    }

    /// Reads whole blocks, at most as many as one command may.
    ///
    /// # Errors
    /// Like [`execute`](Self::execute); or fewer bytes were received.
    pub async fn read(&mut self, lba: u64, blocks: u32) -> Result<Vec<u8>, Error> {
        let len = usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(self.block().await?);
        let data = self.execute(&cdb::read(lba, blocks), Transfer::In(len)).await?;
        if data.len() != len {
            return Err(Error::Protocol(format!("GOOD after {} bytes of a read of {len}", data.len())));
        }
        Ok(data)
    }

    /// Writes whole blocks, at most as many as one command may. When it returns, the target has acknowledged them.
    ///
    /// # Errors
    /// Like [`execute`](Self::execute).
    pub async fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Error> {
        let block = self.block().await?;
        if !data.len().is_multiple_of(block) {
            return Err(Error::Invalid("data that ends inside a block"));
        }
        let blocks = sat32(data.len() / block);
        self.execute(&cdb::write(lba, blocks), Transfer::Out(data)).await.map(drop)
    }

    /// SYNCHRONIZE CACHE: when it returns, acknowledged writes are on the medium.
    ///
    /// # Errors
    /// Like [`execute`](Self::execute).
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.execute(&cdb::SYNCHRONIZE_CACHE, Transfer::None).await.map(drop)
    }

    /// UNMAP: the target may discard these blocks.
    ///
    /// # Errors
    /// Like [`execute`](Self::execute).
    pub async fn unmap(&mut self, lba: u64, blocks: u32) -> Result<(), Error> {
        let (cdb, list) = cdb::unmap(lba, blocks);
        self.execute(&cdb, Transfer::Out(&list)).await.map(drop)
    }

    /// The length of a logical block in bytes. The target is asked only once.
    ///
    /// # Errors
    /// Like [`execute`](Self::execute); or an invalid length.
    pub async fn block(&mut self) -> Result<usize, Error> {
        if let Some(block) = self.block {
            return Ok(block);
        }
        let capacity = self.execute(&cdb::READ_CAPACITY, Transfer::In(cdb::CAPACITY_LEN)).await?;
        let block = usize::try_from(be32(&capacity, 4)).unwrap_or(0);
        if !(512..=1 << 20).contains(&block) {
            return Err(Error::Protocol(format!("expected a capacity, the target says {capacity:02x?}")));
        }
        self.block = Some(block);
        Ok(block)
    }

    /// Executes one command and returns the data that it read. A unit attention is not a failure: the command is sent again, as operating
    /// systems do. With patience it is also sent again after a lost connection. Outcomes of other commands stay available for
    /// [`next_outcome`](Self::next_outcome). If the future is dropped half-way, the target may execute the command or not; its answer is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Scsi`] if it ended with another status than GOOD; after any other error the session has ended.
    pub async fn execute(&mut self, cdb: &[u8], transfer: Transfer<'_>) -> Result<Vec<u8>, Error> {
        let mut attentions = 0;
        loop {
            let outcome = match self.attempt(cdb, transfer).await {
                Err(e) if e.is_lost() && !self.patience.is_zero() => {
                    self.reconnect().await?;
                    continue;
                }
                other => other?,
            };
            if outcome.status == GOOD {
                return Ok(outcome.data);
            }
            attentions += 1;
            if !outcome.is_attention() || attentions == ATTENTIONS {
                return Err(Error::Scsi { status: outcome.status, sense: outcome.sense });
            }
        }
    }

    async fn attempt(&mut self, cdb: &[u8], transfer: Transfer<'_>) -> Result<Outcome, Error> {
        let tag = self.submit(cdb, transfer).await?;
        let waiting = Waiting { session: self, tag };
        loop {
            let session = &mut *waiting.session;
            let at = session.ended.iter().position(|outcome| outcome.tag == tag);
            if let Some(outcome) = at.and_then(|at| session.ended.remove(at)) {
                return Ok(outcome);
            }
            session.step().await?;
        }
    }

    /// Starts a command and returns its tag, as soon as the window and the depth have space for it; while it waits, it receives PDUs. The
    /// command is sent by this call or by the next one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the CDB is too long, or if as many outcomes wait for [`next_outcome`](Self::next_outcome) as the depth allows
    /// commands; after any other error the session has ended.
    pub async fn submit(&mut self, cdb: &[u8], transfer: Transfer<'_>) -> Result<u32, Error> {
        if self.lost {
            return Err(Error::Closed);
        }
        if cdb.len() > 16 {
            return Err(Error::Invalid("a CDB of more than 16 bytes"));
        }
        let Ok(expected) = u32::try_from(transfer.len()) else {
            return Err(Error::Invalid("a transfer of 4 GiB or more"));
        };
        loop {
            if self.ended.len() >= self.depth {
                return Err(Error::Invalid("no more commands before the outcomes of others are taken"));
            }
            let open = self.tasks.len() + self.ended.len();
            if open < self.depth && self.connection.numbers.has_room() {
                break;
            }
            self.step().await?;
        }
        let connection = &mut self.connection;
        let data = match transfer {
            Transfer::Out(data) => data,
            Transfer::None | Transfer::In(_) => &[],
        };
        let (immediate, unasked) = unsolicited(connection.terms(), data.len());
        let mut flags = transfer.flags();
        if unasked > immediate {
            flags &= !FINAL;
        }
        let bhs = connection.numbers.command(connection.lun, flags, cdb, expected);
        connection.queue(bhs, &data[..immediate])?;
        let tag = bhs.itt();
        burst(connection, tag, NO_TAG, immediate..unasked, data, 0)?;
        let task = Task {
            data: Vec::new(),
            expected: if matches!(transfer, Transfer::In(_)) { transfer.len() } else { 0 },
            data_sn: 0,
            out: data[unasked..].to_vec(),
            out_at: unasked,
            abandoned: false,
        };
        self.tasks.insert(tag, task);
        Ok(tag)
    }

    /// The outcome of a [submitted](Self::submit) command: of any of them, in the order in which they end.
    ///
    /// # Errors
    /// [`Error::Invalid`] if none is in flight; after any other error the session has ended.
    pub async fn next_outcome(&mut self) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.ended.pop_front() {
                return Ok(outcome);
            }
            if self.tasks.is_empty() {
                return Err(Error::Invalid("no command is in flight"));
            }
            self.step().await?;
        }
    }

    /// Logs out (RFC 7143 section 11.14) and returns when the target has answered. It does not wait for commands in flight.
    ///
    /// # Errors
    /// A network error, or the target refuses.
    pub async fn logout(mut self) -> Result<(), Error> {
        // Reason 0: close the session. Immediate, so that a closed window does not hold it up.
        let bhs = self.connection.request(opcode::LOGOUT | IMMEDIATE, FINAL);
        self.connection.queue(bhs, &[])?;
        loop {
            let pdu = self.connection.receive().await?;
            match (pdu.opcode(), pdu.bhs.0[2]) {
                (opcode::LOGOUT_RESPONSE, 0) => return Ok(()),
                (opcode::LOGOUT_RESPONSE, response) => {
                    return Err(Error::Protocol(format!("logout answered with response {response:#04x}")));
                }
                // Answers to what was in flight.
                _ => {}
            }
        }
    }

    /// Receives and handles one PDU.
    async fn step(&mut self) -> Result<(), Error> {
        let frame = self.connection.frame().await?;
        let bhs = frame.bhs;
        match bhs.opcode() {
            opcode::DATA_IN => {
                let data = self.connection.data(&frame);
                let task = find(&mut self.tasks, &bhs)?;
                in_order(&bhs, task.data_sn, task.data.len())?;
                if task.data.len() + data.len() > task.expected {
                    return Err(Error::Protocol(format!(
                        "Data-In up to byte {} of a command that expects {}",
                        task.data.len() + data.len(),
                        task.expected
                    )));
                }
                task.data.extend_from_slice(data);
                task.data_sn += 1;
                if bhs.flags() & 1 != 0 {
                    self.end(&bhs, Vec::new());
                }
            }
            opcode::SCSI_RESPONSE => {
                find(&mut self.tasks, &bhs)?;
                if bhs.0[2] != 0 {
                    return Err(Error::Protocol(format!(
                        "SCSI Response with response code {:#04x}",
                        bhs.0[2]
                    )));
                }
                let data = self.connection.data(&frame);
                let sense = data.get(2..).unwrap_or_default();
                let sense = sense[..usize::from(be16(data, 0)).min(sense.len())].to_vec();
                self.end(&bhs, sense);
            }
            opcode::R2T => self.answer(&bhs)?,
            // A ping, which may want an answer; an asynchronous message: what it announces, the connection's end, is seen by itself.
            opcode::NOP_IN | opcode::ASYNC_MESSAGE => {
                if let Some(pong) = self.connection.numbers.pong(&bhs) {
                    self.connection.queue(pong, &[])?;
                }
            }
            opcode::REJECT => {
                return Err(Error::Protocol(format!("the target rejected a PDU, reason {:#04x}", bhs.0[2])));
            }
            other => return Err(Error::Protocol(format!("the target sent opcode {other:#04x}"))),
        }
        self.connection.consume(&frame);
        Ok(())
    }

    /// Sends the data that an R2T requests (RFC 7143 section 11.8).
    fn answer(&mut self, bhs: &Bhs) -> Result<(), Error> {
        let task = find(&mut self.tasks, bhs)?;
        let [from, len] = [40, 44].map(|at| usize::try_from(bhs.word(at)).unwrap_or(usize::MAX));
        let most = usize::try_from(self.connection.terms().max_burst).unwrap_or(usize::MAX);
        let there = task.out_at..task.out_at + task.out.len();
        let to = from.saturating_add(len);
        if len == 0 || len > most || from < there.start || to > there.end {
            return Err(Error::Protocol(format!(
                "R2T for {len} bytes at {from}, expected 1 to {most} within {there:?}"
            )));
        }
        burst(&mut self.connection, bhs.itt(), bhs.ttt(), from..to, &task.out, task.out_at)
    }

    /// Handles the end of a command.
    fn end(&mut self, bhs: &Bhs, sense: Vec<u8>) {
        if let Some(task) = self.tasks.remove(&bhs.itt()).filter(|task| !task.abandoned) {
            self.ended.push_back(Outcome { tag: bhs.itt(), status: bhs.0[3], sense, data: task.data });
        }
    }
}

/// The command that a PDU belongs to.
fn find<'a>(tasks: &'a mut HashMap<u32, Task>, bhs: &Bhs) -> Result<&'a mut Task, Error> {
    let (op, tag) = (bhs.opcode(), bhs.itt());
    tasks.get_mut(&tag).ok_or_else(|| {
        Error::Protocol(format!("PDU of opcode {op:#04x} for task {tag:#x}, which is not in flight"))
    })
}

/// Queues the Data-Out PDUs for a range of a command's data, of which `data` begins at `base`.
fn burst(
    connection: &mut Connection,
    tag: u32,
    ttt: u32,
    bytes: Range<usize>,
    data: &[u8],
    base: usize,
) -> Result<(), Error> {
    let segment = usize::try_from(connection.terms().peer_max_data).unwrap_or(usize::MAX);
    for (bhs, range) in connection.numbers.burst(connection.lun, tag, ttt, bytes, segment) {
        connection.queue(bhs, &data[range.start - base..range.end - base])?;
    }
    Ok(())
}

/// Logs in, and retries for as long as there is patience.
async fn connect(account: &Account, patience: Duration) -> Result<Connection, Error> {
    let since = Instant::now();
    loop {
        match Connection::login(account).await {
            Err(e) if e.is_lost() && since.elapsed() < patience => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

/// Waits for a command; if it is dropped before the command has ended, the session handles the command's end.
struct Waiting<'a> {
    session: &'a mut Initiator,
    tag: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.session.tasks.get_mut(&self.tag) {
            task.abandoned = true;
        }
    }
}
