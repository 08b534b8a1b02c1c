//! A connection's buffers.
//!
//! Invariants: both buffers grow to what the largest PDU needs and no further, keep their memory while they are busy
//! and give it back when idle. Memory once written is never cleared again: the buffers' length is their high-water mark
//! and cursors say what is valid, so that a read from a device lands in the socket's buffer without being zeroed first.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::AsyncWrite;

use super::digest::{DIGEST_LEN, digest};
use super::pdu::{BHS_LEN, Bhs, Digests, padded};

/// What is read at least when nothing is known of what comes.
const READ_CHUNK: usize = 64 << 10;
/// What is read beyond a large PDU whose end is known: its followers' headers.
const LOOKAHEAD: usize = 4 << 10;
/// A buffer larger than this is given back when idle.
const KEEP: usize = 16 << 10;
/// Up to here the output doubles when it must grow.
const GROWTH: usize = 128 << 10;

/// Bytes that came and were not yet consumed.
#[derive(Debug, Default)]
pub(crate) struct InBuf {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl InBuf {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room to read into, when a PDU of `need` bytes stands (in part) at the front.
    pub(crate) fn space(&mut self, need: usize) -> &mut [u8] {
        let have = self.end - self.start;
        let want =
            if need > READ_CHUNK { need.saturating_sub(have) + LOOKAHEAD } else { READ_CHUNK.max(need) };
        if self.buf.len() < self.end + want {
            if self.start > 0 {
                self.buf.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, have);
            }
            if self.buf.len() < have + want {
                // Not more than needed: a vector that grows by itself doubles.
                self.buf.reserve_exact(have + want - self.buf.len());
                self.buf.resize(have + want, 0);
            }
        }
        let end = self.end;
        &mut self.buf[end..end + want]
    }

    /// Room for what is missing of a PDU of `need` bytes, and no more: in the login phase nobody has shown yet that it is worth a buffer.
    pub(crate) fn space_for(&mut self, need: usize) -> &mut [u8] {
        let have = self.end - self.start;
        self.buf.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, have);
        if self.buf.len() < need.max(have + 1) {
            self.buf.resize(need.max(have + 1), 0);
        }
        &mut self.buf[have..]
    }

    pub(crate) fn filled_by(&mut self, n: usize) {
        self.end += n;
    }

    /// Gives memory back when nothing is in it.
    pub(crate) fn shrink(&mut self) {
        if self.start == self.end && self.buf.len() > KEEP {
            *self = Self::default();
        }
    }
}

/// Bytes to send.
#[derive(Debug, Default)]
pub(crate) struct OutBuf {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    digests: Digests,
}

/// Where a PDU's data goes; see [`OutBuf::reserve`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    header: usize,
    data: usize,
    len: usize,
}

impl OutBuf {
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    pub(crate) fn pending(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes of memory that are held.
    pub(crate) fn held(&self) -> usize {
        self.buf.len()
    }

    /// Bytes of memory that a PDU with so many bytes of data would add.
    pub(crate) fn growth(&self, len: usize) -> usize {
        (self.len() + BHS_LEN + DIGEST_LEN + padded(len) + DIGEST_LEN).saturating_sub(self.buf.len())
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    pub(crate) fn shrink(&mut self) {
        if self.is_empty() && self.buf.len() > KEEP {
            let digests = self.digests;
            *self = Self { digests, ..Self::default() };
        }
    }

    /// Room for a PDU with `len` bytes of data. Nothing is sent of it before [`commit`](Self::commit); a slot that is
    /// never committed costs nothing.
    pub(crate) fn reserve(&mut self, len: usize) -> Slot {
        let most = BHS_LEN + DIGEST_LEN + padded(len) + DIGEST_LEN;
        if self.buf.len() < self.end + most {
            if self.start > 0 {
                self.buf.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            if self.buf.len() < self.end + most {
                // One answer is seldom the last: a small buffer doubles, a large one grows by a step.
                let size = (self.end + most).max((self.buf.len() * 2).min(GROWTH)).next_multiple_of(KEEP);
                self.buf.reserve_exact(size - self.buf.len());
                self.buf.resize(size, 0);
            }
        }
        let header = self.end;
        let data = header + BHS_LEN + if self.digests.header { DIGEST_LEN } else { 0 };
        Slot { header, data, len }
    }

    /// The reserved room for data; its content is undefined.
    pub(crate) fn data(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.buf[slot.data..slot.data + slot.len]
    }

    /// Puts the header before the data and the digests around them: from here on the PDU is to be sent.
    pub(crate) fn commit(&mut self, slot: Slot, mut bhs: Bhs) {
        bhs.set_data_len(slot.len);
        self.buf[slot.header..slot.header + BHS_LEN].copy_from_slice(&bhs.0);
        if self.digests.header {
            let at = slot.header + BHS_LEN;
            self.buf[at..at + DIGEST_LEN].copy_from_slice(&digest(&bhs.0));
        }
        let end = slot.data + slot.len;
        let padded_end = slot.data + padded(slot.len);
        self.buf[end..padded_end].fill(0);
        self.end = padded_end;
        if self.digests.data && slot.len > 0 {
            let sum = digest(&self.buf[slot.data..padded_end]);
            self.buf[padded_end..padded_end + DIGEST_LEN].copy_from_slice(&sum);
            self.end += DIGEST_LEN;
        }
    }

    /// Sends all of it and closes the connection's direction, as far as the peer takes it.
    pub(crate) async fn flush<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) {
        poll_fn(|cx| {
            while !self.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, self.pending()) {
                    Poll::Ready(Ok(n)) if n > 0 => self.sent(n),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Pin::new(&mut *stream).poll_shutdown(cx).map(|_| ())
        })
        .await;
    }

    /// Queues a PDU.
    pub(crate) fn push(&mut self, bhs: Bhs, data: &[u8]) {
        let slot = self.reserve(data.len());
        self.data(slot).copy_from_slice(data);
        self.commit(slot, bhs);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pdu::{Framing, frame, opcode};
    use super::*;

    #[test]
    fn what_is_pushed_is_framed_again() {
        for digests in [Digests::default(), Digests { header: true, data: true }] {
            let mut out = OutBuf::default();
            out.set_digests(digests);
            let mut sent = Vec::new();
            for (i, len) in [0usize, 1, 4, 5000, 3].into_iter().enumerate() {
                let mut bhs = Bhs::new(opcode::NOP_IN, 0x80);
                bhs.set_word(16, u32::try_from(i).unwrap());
                out.push(bhs, &vec![7; len]);
                // Send in odd pieces, so that the buffer moves.
                let n = out.len().min(37);
                sent.extend_from_slice(&out.pending()[..n]);
                out.sent(n);
            }
            sent.extend_from_slice(out.pending());
            let mut input = InBuf::default();
            let mut lens = Vec::new();
            for piece in sent.chunks(1000) {
                input.space(48)[..piece.len()].copy_from_slice(piece);
                input.filled_by(piece.len());
                while let Framing::Pdu(f) = frame(input.filled(), digests, 8192).unwrap() {
                    assert_eq!(f.bhs.itt() as usize, lens.len());
                    assert!(input.filled()[f.data.clone()].iter().all(|b| *b == 7));
                    lens.push(f.data.len());
                    input.consume(f.total);
                }
            }
            assert_eq!(lens, [0, 1, 4, 5000, 3]);
        }
    }
}
