//! The floor: a server that receives the requests of a target's initiators, sends the same bytes, and does nothing else.
//!
//! ```text
//!  receive what is there ─▶ each command: pread into the output, or pwrite from the input ─▶ one send for all answers ─▶ (again)
//! ```
//!
//! It reads and writes one raw file through the page cache, copies what it must and no more often than our target does, and receives in
//! pieces of the same size. CPU per request above it is what the following cost, all of which it leaves out:
//! * SCSI: LUNs, checks of the CDB, the end of the disk, reservations, unit attentions, sense data, residuals;
//! * iSCSI: checks of CmdSN, the task table and task management, R2T and Data-Out, reads of more than one Data-In, digests, CHAP,
//!   pings; a login is answered by accepting every offer;
//! * limits of memory, and of peers that do not read; device calls that would wait, which block the connection here;
//! * statistics, logs, timers, a clean stop; layers.
//!
//! [`serve`] is the floor: one blocking thread for a connection. [`serve_on_tokio`] differs in how it waits only, by the runtime that our
//! target uses: beside the floor it shows what the runtime costs.
//!
//! For measurements on the loopback: anyone who connects reads and writes the file, and a request that is not understood closes the connection.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const BHS: usize = 48;
const FINAL: u8 = 0x80;
const BLOCK: u64 = 512;
/// Most data of one PDU, as our target takes it.
const SEGMENT: usize = 256 << 10;
/// What is received at least, while no larger PDU stands at the front.
const CHUNK: usize = 64 << 10;
/// What is received beyond the end of a larger one.
const LOOKAHEAD: usize = 4 << 10;
/// Output that is sent before more requests are answered.
const OUT_HIGH: usize = 512 << 10;
/// Commands that an initiator may have in flight.
const WINDOW: u32 = 128;

type Bhs = [u8; BHS];

/// Serves one connection on this thread, until its initiator closes it.
///
/// # Errors
/// The network, the file, or a request that the floor has no answer to.
pub fn serve(mut stream: &TcpStream, file: &File) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut output) = (Input::new(), Output::new());
    loop {
        let n = stream.read(input.space())?;
        if n == 0 {
            return Ok(());
        }
        input.end += n;
        while input.answer(file, &mut output)? {
            stream.write_all(output.queued())?;
            output.len = 0;
        }
    }
}

/// The same in a task of tokio's. A wait for the file blocks the runtime's thread.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on_tokio(stream: &mut tokio::net::TcpStream, file: &File) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut output) = (Input::new(), Output::new());
    loop {
        let n = stream.read(input.space()).await?;
        if n == 0 {
            return Ok(());
        }
        input.end += n;
        while input.answer(file, &mut output)? {
            stream.write_all(output.queued()).await?;
            output.len = 0;
        }
    }
}

/// Bytes that came and are not answered.
struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { buf: vec![0; BHS + SEGMENT + CHUNK].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Room for what comes next. Like our target's: a large PDU is received to its end and little further, so that nothing large is moved.
    fn space(&mut self) -> &mut [u8] {
        self.buf.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let need = pdu_len(&self.buf[..self.end]);
        let to = if need > CHUNK { need + LOOKAHEAD } else { self.end + CHUNK };
        &mut self.buf[self.end..to]
    }

    /// Answers every whole PDU, as far as there is room in the output. Whether there is something to send.
    fn answer(&mut self, file: &File, output: &mut Output) -> Result<bool> {
        while output.len < OUT_HIGH {
            let filled = &self.buf[self.start..self.end];
            let len = pdu_len(filled);
            ensure!(len <= BHS + SEGMENT, "a PDU of {len} bytes");
            let Some((bhs, data)) = filled.get(..len).and_then(|pdu| pdu.split_first_chunk()) else { break };
            output.answer(bhs, &data[..data_len(bhs)], file)?;
            self.start += len;
        }
        Ok(output.len > 0)
    }
}

/// Answers to send.
struct Output {
    buf: Box<[u8]>,
    len: usize,
    stat_sn: u32,
}

impl Output {
    fn new() -> Self {
        Self { buf: vec![0; OUT_HIGH + BHS + SEGMENT].into_boxed_slice(), len: 0, stat_sn: 0 }
    }

    fn queued(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    fn answer(&mut self, request: &Bhs, data: &[u8], file: &File) -> Result<()> {
        match request[0] & 0x3f {
            0x01 => self.command(request, data, file),
            0x03 => self.login(request, data),
            // A logout.
            0x06 => self.push(header(request, 0x26, FINAL), 0, |_| Ok(())),
            other => bail!("opcode {other:#04x}: neither a login, a command nor a logout"),
        }
    }

    fn command(&mut self, request: &Bhs, data: &[u8], file: &File) -> Result<()> {
        let len = usize::try_from(word(request, 20))?;
        let lba = match request[32] {
            // READ(10) and WRITE(10).
            0x28 | 0x2a => u64::from(word(request, 34)),
            _ => u64::from(word(request, 34)) << 32 | u64::from(word(request, 38)),
        };
        let offset = || lba.checked_mul(BLOCK).context("an address beyond any disk");
        let data_in = header(request, 0x25, FINAL | 0x01);
        match request[32] {
            // READ(10) and READ(16).
            0x28 | 0x88 => {
                let offset = offset()?;
                return self.push(data_in, len, |room| file.read_exact_at(room, offset));
            }
            // READ CAPACITY(16), which other initiators ask for first.
            0x9e => {
                ensure!(len >= 32, "{len} bytes for a capacity");
                let last = file.metadata()?.len() / BLOCK - 1;
                return self.push(data_in, len, |room| {
                    room.fill(0);
                    room[..8].copy_from_slice(&last.to_be_bytes());
                    room[8..16].copy_from_slice(&(BLOCK << 32).to_be_bytes());
                    Ok(())
                });
            }
            // WRITE(10) and WRITE(16).
            0x2a | 0x8a => {
                ensure!(data.len() == len, "a write of {len} bytes with {} of immediate data", data.len());
                file.write_all_at(data, offset()?)?;
            }
            // TEST UNIT READY.
            0x00 => {}
            other => bail!("SCSI opcode {other:#04x}"),
        }
        self.push(header(request, 0x21, FINAL), 0, |_| Ok(()))
    }

    /// Accepts a step of a login: the stages are as the initiator wants them, and so is what it offers.
    fn login(&mut self, request: &Bhs, data: &[u8]) -> Result<()> {
        let operational = request[1] & 0x0c == 0x04;
        let mut text = String::new();
        for (key, value) in std::str::from_utf8(data)?.split('\0').filter_map(|pair| pair.split_once('=')) {
            let value = match key {
                // Not offered but said; the answer to a target's name says its portal group.
                "TargetName" => {
                    text.push_str("TargetPortalGroupTag=1\0");
                    continue;
                }
                "InitiatorName" | "InitiatorAlias" | "SessionType" | "MaxRecvDataSegmentLength" => continue,
                "AuthMethod" | "HeaderDigest" | "DataDigest" => "None",
                _ => value,
            };
            text.extend([key, "=", value, "\0"]);
        }
        if operational {
            text.push_str(&format!("MaxRecvDataSegmentLength={SEGMENT}\0"));
        }
        // The transit bit and both stages.
        let mut answer = header(request, 0x23, request[1] & 0x8f);
        // The ISID, and a TSIH.
        answer[8..14].copy_from_slice(&request[8..14]);
        answer[15] = 1;
        self.push(answer, text.len(), |room| {
            room.copy_from_slice(text.as_bytes());
            Ok(())
        })
    }

    /// Queues an answer with status, and `len` bytes of data that `fill` puts there.
    fn push(
        &mut self,
        mut bhs: Bhs,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        ensure!(len <= SEGMENT, "{len} bytes in one PDU");
        let data = self.len + BHS;
        let end = data + len.next_multiple_of(4);
        fill(&mut self.buf[data..data + len])?;
        self.buf[data + len..end].fill(0);
        bhs[5..8].copy_from_slice(&u32::try_from(len)?.to_be_bytes()[1..]);
        put(&mut bhs, 24, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        self.buf[self.len..data].copy_from_slice(&bhs);
        self.len = end;
        Ok(())
    }
}

/// The header of an answer, all but its length and StatSN.
fn header(request: &Bhs, opcode: u8, flags: u8) -> Bhs {
    let mut bhs = [0; BHS];
    bhs[0] = opcode;
    bhs[1] = flags;
    bhs[16..20].copy_from_slice(&request[16..20]);
    let immediate = request[0] & 0x40 != 0;
    let expected = word(request, 24).wrapping_add(u32::from(!immediate));
    put(&mut bhs, 28, expected);
    put(&mut bhs, 32, expected.wrapping_add(WINDOW - 1));
    bhs
}

/// Bytes of the PDU at the front; of a header while that is not whole.
fn pdu_len(filled: &[u8]) -> usize {
    filled.first_chunk().map_or(BHS, |bhs| BHS + data_len(bhs).next_multiple_of(4))
}

fn data_len(bhs: &Bhs) -> usize {
    usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7])
}

fn word(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn put(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LEN: usize = 1 << 20;

    /// What a client does against both ways to serve, each with a file of its own; then what is in the file.
    fn on_both(client: impl Fn(TcpStream) + Sync) -> [Vec<u8>; 2] {
        [false, true].map(|on_tokio| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&crate::noise(LEN), 0).unwrap();
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let portal = listener.local_addr().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| client(TcpStream::connect(portal).unwrap()));
                let (stream, _) = listener.accept().unwrap();
                if on_tokio {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    runtime.block_on(async {
                        stream.set_nonblocking(true).unwrap();
                        let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
                        serve_on_tokio(&mut stream, &file).await.unwrap();
                    });
                } else {
                    serve(&stream, &file).unwrap();
                }
            });
            let mut left = vec![0; LEN];
            file.read_exact_at(&mut left, 0).unwrap();
            left
        })
    }

    fn request(opcode: u8, flags: u8, tag: u32, data: &[u8]) -> Vec<u8> {
        let mut bhs = [0; BHS];
        bhs[0] = opcode;
        bhs[1] = flags;
        bhs[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        put(&mut bhs, 16, tag);
        put(&mut bhs, 24, tag);
        let mut pdu = [&bhs, data].concat();
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        pdu
    }

    fn read_10(tag: u32, lba: u32, len: u32) -> Vec<u8> {
        let mut pdu = request(0x01, 0xc1, tag, &[]);
        pdu[20..24].copy_from_slice(&len.to_be_bytes());
        pdu[32] = 0x28;
        pdu[34..38].copy_from_slice(&lba.to_be_bytes());
        pdu
    }

    fn write_16(tag: u32, lba: u64, data: &[u8]) -> Vec<u8> {
        let mut pdu = request(0x01, 0xa1, tag, data);
        pdu[20..24].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        pdu[32] = 0x8a;
        pdu[34..42].copy_from_slice(&lba.to_be_bytes());
        pdu
    }

    fn receive(stream: &mut TcpStream) -> (Bhs, Vec<u8>) {
        let mut bhs = [0; BHS];
        stream.read_exact(&mut bhs).unwrap();
        let mut data = vec![0; data_len(&bhs).next_multiple_of(4)];
        stream.read_exact(&mut data).unwrap();
        data.truncate(data_len(&bhs));
        (bhs, data)
    }

    #[test]
    fn a_login_is_accepted_as_it_is_offered() {
        on_both(|mut stream| {
            let offers = "InitiatorName=iqn.a\0TargetName=iqn.b\0HeaderDigest=None,CRC32C\0InitialR2T=No\0FirstBurstLength=65536\0";
            stream.write_all(&request(0x43, 0x87, 7, offers.as_bytes())).unwrap();
            let (bhs, text) = receive(&mut stream);
            assert_eq!((bhs[0], bhs[1], word(&bhs, 16), bhs[36]), (0x23, 0x87, 7, 0));
            assert_eq!(word(&bhs, 28), 7, "an immediate command uses up no CmdSN");
            assert_eq!(
                String::from_utf8(text).unwrap(),
                "TargetPortalGroupTag=1\0HeaderDigest=None\0InitialR2T=No\0FirstBurstLength=65536\0MaxRecvDataSegmentLength=262144\0"
            );
        });
    }

    #[test]
    fn many_reads_at_once_bring_what_is_in_the_file() {
        on_both(|mut stream| {
            let disk = crate::noise(LEN);
            let lens = [512, 4096, 128 << 10, SEGMENT, 4096];
            let requests: Vec<u8> =
                (0..).zip(lens).flat_map(|(n, len)| read_10(n, n * 8, u32::try_from(len).unwrap())).collect();
            stream.write_all(&requests).unwrap();
            for (n, len) in lens.into_iter().enumerate() {
                let (bhs, data) = receive(&mut stream);
                let tag = u32::try_from(n).unwrap();
                assert_eq!((bhs[0], bhs[1], bhs[3]), (0x25, 0x81, 0));
                assert_eq!([16, 24, 28].map(|at| word(&bhs, at)), [tag, tag, tag + 1]);
                assert!(data == disk[n * 4096..n * 4096 + len], "read {n}");
            }
        });
    }

    #[test]
    fn many_writes_at_once_are_in_the_file() {
        let new: Vec<u8> = crate::noise(LEN).into_iter().rev().collect();
        let left = on_both(|mut stream| {
            for (n, data) in (0..).zip(new.chunks(128 << 10)) {
                stream.write_all(&write_16(n, u64::from(n) * 256, data)).unwrap();
            }
            for tag in 0..8 {
                let (bhs, data) = receive(&mut stream);
                assert_eq!((bhs[0], bhs[3], word(&bhs, 16), data.len()), (0x21, 0, tag, 0));
            }
        });
        assert!(left.into_iter().all(|file| file == new));
    }
}
