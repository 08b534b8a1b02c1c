//! A connection that sends and receives PDUs one by one.
//!
//! Invariants: the input holds at most one PDU of the declared length, and the bytes that arrived after it; output that is queued and not
//! yet sent stays queued when a future is dropped, and a part of a PDU that was received stays in the input. So every call can be dropped
//! half-way and made again (except [`send_raw`](Connection::send_raw)).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::Error;
use super::headers::Numbers;
use crate::bytes::u8at;
use crate::conn::{InBuf, OutBuf};
use crate::negotiate::Params;
use crate::pdu::{Bhs, Frame, Framing, frame, opcode};

/// The longest data segment that a PDU can have.
const MAX_SEGMENT: usize = 0xff_ffff;
/// The longest data segment before another length was declared (RFC 7143 section 13.12).
const DEFAULT_SEGMENT: usize = 8192;
/// Maximum data of one command that [`Connection::collect`] accepts.
const MAX_COLLECTED: usize = 64 << 20;
/// How long to wait for an answer, unless the caller sets another time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A PDU from the target.
#[derive(Debug, Clone)]
pub struct Pdu {
    /// Its header.
    pub bhs: Bhs,
    /// Its data segment.
    pub data: Vec<u8>,
}

impl Pdu {
    /// The operation code.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.bhs.opcode()
    }

    /// The header's 32-bit word at `at`.
    #[must_use]
    pub fn word(&self, at: usize) -> u32 {
        self.bhs.word(at)
    }

    /// The SCSI status of a SCSI Response, or of a Data-In that has one.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.bhs.0[3]
    }

    /// Sense key, ASC and ASCQ of a SCSI Response with fixed-format sense data (SPC-4 section 4.5.3); zeros if there is none.
    #[must_use]
    pub fn sense(&self) -> (u8, u8, u8) {
        (u8at(&self.data, 4) & 0xf, u8at(&self.data, 14), u8at(&self.data, 15))
    }
}

/// A connection to a target.
///
/// Every call can be dropped half-way and made again, except [`send_raw`](Connection::send_raw): queued output stays queued, and a part of
/// a PDU that was received is kept.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    input: InBuf,
    out: OutBuf,
    /// Sequence numbers and tags.
    pub numbers: Numbers,
    /// The logical unit to which commands are sent.
    pub lun: u8,
    /// How long a complete answer may take, and how long the target may accept no output.
    pub patience: Duration,
    terms: Params,
    max_data: usize,
    pub(super) keys: Vec<(String, String)>,
}

impl Connection {
    /// Connects, and sends nothing.
    ///
    /// # Errors
    /// A network error.
    pub async fn connect(portal: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(portal).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Uses a new stream, and sends nothing.
    #[must_use]
    pub fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            input: InBuf::default(),
            out: OutBuf::default(),
            numbers: Numbers::default(),
            lun: 0,
            patience: PATIENCE,
            terms: Params::default(),
            max_data: DEFAULT_SEGMENT,
            keys: Vec::new(),
        }
    }

    /// The values that the login agreed on; before it, the RFC's defaults.
    #[must_use]
    pub fn terms(&self) -> &Params {
        &self.terms
    }

    /// The target's value for a text key in its login.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&str> {
        self.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Applies the values that a login agreed on. `max_data` is the length that was declared to the target.
    pub(super) fn agree(&mut self, terms: Params, max_data: usize) {
        self.out.set_digests(terms.digests);
        self.terms = terms;
        self.max_data = max_data;
    }

    /// The socket, the numbers and the agreed values, for a program that does its own input and output from here on.
    ///
    /// # Errors
    /// Output is queued, or input was received and not yet read.
    pub fn into_std(self) -> Result<(std::net::TcpStream, Numbers, Params), Error> {
        if !(self.out.is_empty() && self.input.filled().is_empty()) {
            return Err(Error::Invalid("PDUs are under way"));
        }
        Ok((self.stream.into_std()?, self.numbers, self.terms))
    }

    /// A request header with the next task tag and CmdSN; see [`Numbers::request`].
    pub fn request(&mut self, op: u8, flags: u8) -> Bhs {
        self.numbers.request(op, flags)
    }

    /// Queues a PDU after those that are queued already. Adds its length and digests.
    ///
    /// # Errors
    /// The data is longer than a PDU can carry.
    pub fn queue(&mut self, bhs: Bhs, data: &[u8]) -> Result<(), Error> {
        if data.len() > MAX_SEGMENT {
            return Err(Error::Invalid("a data segment of more than 16,777,215 bytes"));
        }
        self.out.push(bhs, data);
        Ok(())
    }

    /// Sends the queued output, and receives nothing in the meantime. If the future is dropped half-way, the rest stays queued.
    ///
    /// # Errors
    /// A network error; or the target accepts nothing for as long as [`patience`](Self::patience).
    pub async fn flush(&mut self) -> Result<(), Error> {
        while !self.out.is_empty() {
            timeout(self.patience, self.stream.writable())
                .await
                .map_err(|_| Error::Timeout(self.patience))??;
            self.write_some()?;
        }
        Ok(())
    }

    /// Sends the queued output, and then this PDU. If the future is dropped half-way, the PDU is queued or not; however often that happens,
    /// at most one PDU is added to the queue.
    ///
    /// # Errors
    /// Like [`queue`](Self::queue) and [`flush`](Self::flush).
    pub async fn send(&mut self, bhs: Bhs, data: &[u8]) -> Result<(), Error> {
        self.flush().await?;
        self.queue(bhs, data)?;
        self.flush().await
    }

    /// Sends the queued output, and then these bytes unchanged. If the future is dropped half-way, it is not known how many were sent.
    ///
    /// # Errors
    /// A network error.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.flush().await?;
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Sends a SCSI command with its immediate data to [`lun`](Self::lun); returns its task tag.
    ///
    /// # Errors
    /// Like [`send`](Self::send).
    pub async fn command(&mut self, flags: u8, cdb: &[u8], expected: u32, data: &[u8]) -> Result<u32, Error> {
        let bhs = self.numbers.command(self.lun, flags, cdb, expected);
        self.send(bhs, data).await?;
        Ok(bhs.itt())
    }

    /// Sends one Data-Out PDU with these fields.
    ///
    /// # Errors
    /// Like [`send`](Self::send).
    pub async fn data_out(
        &mut self,
        itt: u32,
        ttt: u32,
        data_sn: u32,
        offset: u32,
        last: bool,
        data: &[u8],
    ) -> Result<(), Error> {
        let bhs = self.numbers.data_out(self.lun, itt, ttt, data_sn, offset, last);
        self.send(bhs, data).await
    }

    /// The next PDU, whatever it is; sends queued output while it waits. Digests are checked, and StatSN if the PDU has one. If the future
    /// is dropped half-way, nothing is lost.
    ///
    /// # Errors
    /// A network error, the end of the connection, no complete PDU in time, or a PDU that violates the protocol.
    pub async fn receive(&mut self) -> Result<Pdu, Error> {
        let frame = self.frame().await?;
        let pdu = Pdu { bhs: frame.bhs, data: self.data(&frame).to_vec() };
        self.consume(&frame);
        Ok(pdu)
    }

    /// The data of Data-In PDUs up to the PDU that ends them: a Data-In with status, or any other PDU. The target's pings are answered.
    ///
    /// # Errors
    /// Like [`receive`](Self::receive); or a Data-In out of order, or more than 64 MiB.
    pub async fn collect(&mut self) -> Result<(Vec<u8>, Pdu), Error> {
        let (mut all, mut data_sn) = (Vec::new(), 0);
        loop {
            let pdu = self.receive().await?;
            if let Some(pong) = self.numbers.pong(&pdu.bhs) {
                self.queue(pong, &[])?;
                continue;
            }
            if pdu.opcode() != opcode::DATA_IN {
                return Ok((all, pdu));
            }
            in_order(&pdu.bhs, data_sn, all.len())?;
            if all.len() + pdu.data.len() > MAX_COLLECTED {
                return Err(Error::Protocol("more than 64 MiB of data for one command".into()));
            }
            data_sn += 1;
            all.extend_from_slice(&pdu.data);
            if pdu.bhs.flags() & 1 != 0 {
                return Ok((all, pdu));
            }
        }
    }

    /// Waits for a complete PDU at the front of the input; see [`receive`](Self::receive). It stays there until it is consumed.
    pub(super) async fn frame(&mut self) -> Result<Frame, Error> {
        let patience = self.patience;
        let frame = timeout(patience, self.exchange()).await.map_err(|_| Error::Timeout(patience))??;
        if frame.bhs.opcode() != opcode::LOGIN_RESPONSE {
            self.numbers.heard(&frame.bhs)?;
        }
        Ok(frame)
    }

    /// A frame's data segment.
    pub(super) fn data(&self, frame: &Frame) -> &[u8] {
        &self.input.filled()[frame.data.clone()]
    }

    /// Removes a frame from the input.
    pub(super) fn consume(&mut self, frame: &Frame) {
        self.input.consume(frame.total);
    }

    /// Sends and receives at the same time, so that two sides with much to send never wait for each other.
    pub(super) async fn exchange(&mut self) -> Result<Frame, Error> {
        loop {
            let need = match frame(self.input.filled(), self.terms.digests, self.max_data)? {
                Framing::Pdu(frame) => return Ok(frame),
                Framing::Need(need) => need,
            };
            let sending = !self.out.is_empty();
            let interest = if sending { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let ready = self.stream.ready(interest).await?;
            if sending && ready.is_writable() {
                self.write_some()?;
            }
            if ready.is_readable() {
                match self.stream.try_read(self.input.space_for(need)) {
                    Ok(0) => return Err(Error::Closed),
                    Ok(n) => self.input.filled_by(n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }

    /// Sends what the socket accepts.
    fn write_some(&mut self) -> Result<(), Error> {
        match self.stream.try_write(self.out.pending()) {
            Ok(n) => {
                self.out.sent(n);
                self.out.shrink();
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Checks that a Data-In is the next one, by its DataSN and offset (RFC 7143 section 11.7.5).
pub(super) fn in_order(bhs: &Bhs, data_sn: u32, offset: usize) -> Result<(), Error> {
    let (came_sn, came_at) = (bhs.word(36), bhs.word(40));
    if came_sn == data_sn && usize::try_from(came_at).is_ok_and(|at| at == offset) {
        return Ok(());
    }
    Err(Error::Protocol(format!(
        "Data-In with DataSN {came_sn} and offset {came_at}, expected {data_sn} and {offset}"
    )))
}
