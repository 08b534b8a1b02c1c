//! A connection's buffers.
//!
//! Invariants: both buffers grow to the size of the largest PDU and no further, keep their memory while they are busy and free it when
//! idle. Memory that was written once is never cleared again: the buffer's length is its high-water mark and cursors mark the valid part,
//! so that a read from a device goes into the socket's buffer without being zeroed first.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::AsyncWrite;

use super::digest::{DIGEST_LEN, digest};
use super::pdu::{BHS_LEN, Bhs, Digests, padded};

/// The minimum to read if the length of the next PDU is not known.
const READ_CHUNK: usize = 64 << 10;
/// What is read in addition to a large PDU: the headers of the PDUs that follow.
const LOOKAHEAD: usize = 4 << 10;
/// A buffer that is larger than this is freed when idle.
const KEEP: usize = 16 << 10;
/// Up to this size the output doubles when it must grow.
const GROWTH: usize = 128 << 10;

/// Bytes that were received and not yet consumed.
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

    /// Space to read into, if a PDU of `need` bytes is (in part) at the front.
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

    /// Space for the missing part of a PDU of `need` bytes, and no more: in the login phase no client has authenticated, so none gets a
    /// larger buffer.
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

    /// Frees memory if the buffer is empty.
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

/// The place for a PDU's data; see [`OutBuf::reserve`].
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

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.buf.len()
    }

    /// Bytes of memory that a PDU with this much data would add.
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

    /// Reserves space for a PDU with `len` bytes of data. Nothing of it is sent before [`commit`](Self::commit); a slot that is never
    /// committed costs nothing.
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

    /// The reserved space for data; its contents are undefined.
    pub(crate) fn data(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.buf[slot.data..slot.data + slot.len]
    }

    /// Writes the header before the data, and the digests; from here on the PDU is queued for sending.
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

    /// Sends everything and closes this direction of the connection, as far as the peer accepts it.
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
