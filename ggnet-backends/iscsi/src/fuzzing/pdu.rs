//! PDU framing. Input: a byte of choices (digests, whether they are correct, the data limit, the chunk size of the stream), then the
//! stream.

use super::super::conn::{InBuf, OutBuf};
use super::super::digest::{DIGEST_LEN, digest};
use super::super::pdu::{BHS_LEN, Bhs, Digests, FrameError, Framing, frame, padded};
use super::super::scsi::lun_number;
use super::Input;

/// The longest additional header segments.
const MAX_AHS: usize = 255 * 4;

/// Frames a stream, once from one buffer and once in pieces as from a socket, and encodes the result again.
pub fn pdu(input: &[u8]) {
    let mut input = Input(input);
    let choice = input.byte();
    let digests = Digests { header: choice & 1 != 0, data: choice & 2 != 0 };
    let max = [64, 512, 8192, 262_144][usize::from(choice >> 3 & 3)];
    let mut stream = input.0.to_vec();
    if choice & 4 != 0 {
        // Nobody guesses a checksum: without this nothing behind one would ever be reached.
        sign(&mut stream, digests, max);
    }
    let mut rest = &stream[..];
    let mut found = Vec::new();
    let end = loop {
        match framed(rest, digests, max) {
            Ok(Framing::Pdu(f)) => {
                let data = &rest[f.data];
                encoded_again(f.bhs, data, digests, max);
                fields(&f.bhs);
                found.push((f.bhs, data.to_vec()));
                rest = &rest[f.total..];
            }
            Ok(Framing::Need(_)) => break None,
            Err(e) => break Some(e),
        }
    };
    let chunk = [1, 13, 48, 1460][usize::from(choice >> 5 & 3)];
    streamed(&stream, chunk, digests, max, &found, end);
}

/// One call, and the properties of its answer.
fn framed(buf: &[u8], digests: Digests, max: usize) -> Result<Framing, FrameError> {
    let most = BHS_LEN + MAX_AHS + DIGEST_LEN + padded(max) + DIGEST_LEN;
    let answer = frame(buf, digests, max);
    match &answer {
        Ok(Framing::Need(n)) => assert!(*n > buf.len() && *n <= most, "needs {n} with {} at hand", buf.len()),
        Ok(Framing::Pdu(f)) => {
            assert!(f.total <= buf.len() && f.total <= most, "{} of {} bytes", f.total, buf.len());
            assert!(f.data.start >= BHS_LEN && f.data.end <= f.total && f.data.len() <= max, "{:?}", f.data);
            assert_eq!(f.data.len(), f.bhs.data_len());
            // Less of it is no PDU yet, and never another one.
            for short in [0, BHS_LEN - 1, BHS_LEN, f.data.start, f.data.end, f.total - 1] {
                let before = frame(&buf[..short.min(f.total - 1)], digests, max);
                assert!(matches!(before, Ok(Framing::Need(n)) if n <= f.total), "{before:?} of a part");
            }
            // What follows does not matter.
            let alone = frame(&buf[..f.total], digests, max);
            assert!(matches!(alone, Ok(Framing::Pdu(a)) if a.total == f.total && a.data == f.data));
        }
        Err(FrameError::TooLong(len)) => assert!(*len > max, "{len} is not too long"),
        Err(FrameError::HeaderDigest) => assert!(digests.header, "a digest that was not agreed on"),
        Err(FrameError::DataDigest(_)) => assert!(digests.data, "a digest that was not agreed on"),
    }
    answer
}

/// A PDU that was encoded is framed as the same PDU.
fn encoded_again(mut bhs: Bhs, data: &[u8], digests: Digests, max: usize) {
    // We never send additional header segments.
    bhs.0[4] = 0;
    let mut out = OutBuf::default();
    out.set_digests(digests);
    out.push(bhs, data);
    let Ok(Framing::Pdu(f)) = frame(out.pending(), digests, max) else {
        unreachable!("what we sent is no PDU")
    };
    assert_eq!((f.bhs, &out.pending()[f.data], f.total), (bhs, data, out.len()));
}

/// The header's fields have the values of the wire.
fn fields(bhs: &Bhs) {
    let wire = &bhs.0;
    assert_eq!(u32::from_be_bytes([wire[16], wire[17], wire[18], wire[19]]), bhs.itt());
    assert_eq!(u32::from_be_bytes([wire[20], wire[21], wire[22], wire[23]]), bhs.ttt());
    assert_eq!(u32::from_be_bytes([wire[24], wire[25], wire[26], wire[27]]), bhs.cmd_sn());
    assert_eq!((bhs.lun()[..] == wire[8..16], bhs.cdb()[..] == wire[32..]), (true, true));
    assert_eq!(wire[0], bhs.opcode() | if bhs.immediate() { 0x40 } else { 0 } | wire[0] & 0x80);
    assert_eq!(bhs.is_final(), bhs.flags() & 0x80 != 0);
    assert!(lun_number(&bhs.lun()).is_none_or(|n| n < 1 << 14), "a unit number of more than 14 bits");
}

/// The same stream in pieces through the connection's buffer gives the same PDUs and the same end, with limited memory.
fn streamed(
    stream: &[u8],
    chunk: usize,
    digests: Digests,
    max: usize,
    found: &[(Bhs, Vec<u8>)],
    end: Option<FrameError>,
) {
    let mut input = InBuf::default();
    let mut need = BHS_LEN;
    let mut seen = 0;
    let mut broken = None;
    'stream: for piece in stream.chunks(chunk) {
        input.space(need)[..piece.len()].copy_from_slice(piece);
        input.filled_by(piece.len());
        loop {
            match framed(input.filled(), digests, max) {
                Ok(Framing::Pdu(f)) => {
                    let got = (f.bhs, input.filled()[f.data.clone()].to_vec());
                    assert_eq!(found.get(seen), Some(&got), "another PDU in pieces");
                    seen += 1;
                    input.consume(f.total);
                }
                Ok(Framing::Need(n)) => break need = n,
                Err(e) => {
                    broken = Some(e);
                    break 'stream;
                }
            }
        }
        input.shrink();
    }
    assert_eq!((seen, broken), (found.len(), end), "another end in pieces");
}

/// Writes the correct digests to the positions that follow from the stream's own lengths.
fn sign(stream: &mut [u8], digests: Digests, max: usize) {
    let mut at = 0;
    while let Some(head) = stream.get(at..).and_then(|s| s.first_chunk::<BHS_LEN>()) {
        let bhs = Bhs(*head);
        let (headers, len) = (at + BHS_LEN + bhs.ahs_len(), bhs.data_len());
        let data = headers + if digests.header { DIGEST_LEN } else { 0 };
        if data > stream.len() || len > max {
            return;
        }
        if digests.header {
            let sum = digest(&stream[at..headers]);
            stream[headers..data].copy_from_slice(&sum);
        }
        at = data + padded(len);
        if digests.data && len > 0 {
            if at + DIGEST_LEN > stream.len() {
                return;
            }
            let sum = digest(&stream[data..at]);
            stream[at..at + DIGEST_LEN].copy_from_slice(&sum);
            at += DIGEST_LEN;
        }
    }
}
