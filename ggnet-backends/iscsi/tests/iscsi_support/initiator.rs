//! A small initiator: enough of RFC 7143 to say things that well-behaved ones do not.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Pdu {
    pub bhs: [u8; 48],
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs[at..at + 4].try_into().unwrap())
    }

    pub fn status(&self) -> u8 {
        self.bhs[3]
    }

    /// Sense key, ASC, ASCQ of a fixed-format SCSI response.
    pub fn sense(&self) -> (u8, u8, u8) {
        (self.data[4], self.data[14], self.data[15])
    }
}

pub struct Initiator {
    stream: TcpStream,
    pub cmd_sn: u32,
    pub itt: u32,
    pub exp_stat_sn: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    pub keys: Vec<(String, String)>,
}

pub struct Login<'a> {
    pub name: &'a str,
    pub target: Option<&'a str>,
    pub isid: [u8; 6],
    pub keys: &'a [(&'a str, &'a str)],
}

impl Default for Login<'_> {
    fn default() -> Self {
        Self {
            name: "iqn.2024-01.org.example:pc",
            target: Some(super::IQN),
            isid: [0x80, 0, 0, 0, 0, 1],
            keys: &[],
        }
    }
}

impl Initiator {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            cmd_sn: 1,
            itt: 1,
            exp_stat_sn: 0,
            header_digest: false,
            data_digest: false,
            keys: Vec::new(),
        })
    }

    /// Connects and logs in without authentication; the status of a refusal as error.
    pub async fn login(address: SocketAddr, login: Login<'_>) -> Result<Self, (u8, u8)> {
        let mut me = Self::connect(address).await.unwrap();
        let mut text = format!("InitiatorName={}\0", login.name);
        match login.target {
            Some(target) => text += &format!("TargetName={target}\0SessionType=Normal\0"),
            None => text += "SessionType=Discovery\0",
        }
        for (key, value) in login.keys {
            text += &format!("{key}={value}\0");
        }
        let mut bhs = [0; 48];
        bhs[0] = 0x43;
        bhs[1] = 0x87;
        bhs[8..14].copy_from_slice(&login.isid);
        bhs[24..28].copy_from_slice(&me.cmd_sn.to_be_bytes());
        me.send(bhs, text.as_bytes()).await.unwrap();
        let answer = me.receive().await.map_err(|_| (0xff, 0xff))?;
        if answer.bhs[36] != 0 {
            return Err((answer.bhs[36], answer.bhs[37]));
        }
        assert_eq!(answer.bhs[1], 0x87, "granted the transit");
        me.exp_stat_sn = answer.word(24) + 1;
        for pair in String::from_utf8(answer.data).unwrap().split('\0').filter_map(|p| p.split_once('=')) {
            me.header_digest |= pair == ("HeaderDigest", "CRC32C");
            me.data_digest |= pair == ("DataDigest", "CRC32C");
            me.keys.push((pair.0.into(), pair.1.into()));
        }
        Ok(me)
    }

    pub fn key(&self, name: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub async fn send(&mut self, mut bhs: [u8; 48], data: &[u8]) -> io::Result<()> {
        bhs[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        let mut wire = bhs.to_vec();
        if self.header_digest {
            wire.extend(crc32c::crc32c(&bhs).to_le_bytes());
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        wire.extend(&padded);
        if self.data_digest && !data.is_empty() {
            wire.extend(crc32c::crc32c(&padded).to_le_bytes());
        }
        self.stream.write_all(&wire).await
    }

    /// Sends two PDUs without data so that they arrive together; errors are not looked at.
    pub async fn send_both(&mut self, first: [u8; 48], second: [u8; 48]) {
        let _ = self.stream.write_all(&[first, second].concat()).await;
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next PDU; an error when the connection has ended. Checks digests and, where it carries status, StatSN.
    pub async fn receive(&mut self) -> io::Result<Pdu> {
        tokio::time::timeout(Duration::from_secs(30), self.receive_pdu()).await.expect("an answer in time")
    }

    async fn receive_pdu(&mut self) -> io::Result<Pdu> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs).await?;
        let mut sum = [0; 4];
        if self.header_digest {
            self.stream.read_exact(&mut sum).await?;
            assert_eq!(crc32c::crc32c(&bhs).to_le_bytes(), sum, "header digest");
        }
        let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data).await?;
        if self.data_digest && len > 0 {
            self.stream.read_exact(&mut sum).await?;
            assert_eq!(crc32c::crc32c(&data).to_le_bytes(), sum, "data digest");
        }
        data.truncate(len);
        let pdu = Pdu { bhs, data };
        let carries = match pdu.opcode() {
            0x25 => pdu.bhs[1] & 1 != 0,
            0x20 => pdu.word(16) != u32::MAX,
            0x31 | 0x23 => false,
            _ => true,
        };
        if carries {
            assert_eq!(pdu.word(24), self.exp_stat_sn, "StatSN grows by one");
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        Ok(pdu)
    }

    /// A request header with the next task tag and command number.
    pub fn request(&mut self, opcode: u8, flags: u8) -> [u8; 48] {
        let mut bhs = [0; 48];
        bhs[0] = opcode;
        bhs[1] = flags;
        self.itt += 1;
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        if opcode & 0x40 == 0 {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        bhs
    }

    /// Sends a SCSI command with immediate data; returns its task tag.
    pub async fn command(&mut self, flags: u8, cdb: &[u8], expected: u32, data: &[u8]) -> u32 {
        let mut bhs = self.request(0x01, flags);
        bhs[20..24].copy_from_slice(&expected.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.send(bhs, data).await.unwrap();
        self.itt
    }

    /// Sends a data segment for a transfer tag.
    pub async fn data_out(&mut self, itt: u32, ttt: u32, sn: u32, offset: u32, last: bool, data: &[u8]) {
        self.try_data_out(itt, ttt, sn, offset, last, data).await.unwrap();
    }

    /// The same, with the error of a connection that has ended.
    pub async fn try_data_out(
        &mut self,
        itt: u32,
        ttt: u32,
        sn: u32,
        offset: u32,
        last: bool,
        data: &[u8],
    ) -> io::Result<()> {
        let mut bhs = [0; 48];
        bhs[0] = 0x05;
        bhs[1] = if last { 0x80 } else { 0 };
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
        bhs[36..40].copy_from_slice(&sn.to_be_bytes());
        bhs[40..44].copy_from_slice(&offset.to_be_bytes());
        self.send(bhs, data).await
    }

    /// READ(10); the data and the PDU with the status.
    pub async fn read(&mut self, lba: u32, blocks: u16, block: u32) -> (Vec<u8>, Pdu) {
        let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        self.command(0xc1, &cdb, u32::from(blocks) * block, &[]).await;
        self.collect().await
    }

    /// Collects Data-In until the status.
    pub async fn collect(&mut self) -> (Vec<u8>, Pdu) {
        let mut all = Vec::new();
        let mut sn = 0;
        loop {
            let pdu = self.receive().await.unwrap();
            if pdu.opcode() != 0x25 {
                return (all, pdu);
            }
            assert_eq!((pdu.word(36), pdu.word(40) as usize), (sn, all.len()), "DataSN and offset");
            sn += 1;
            all.extend(&pdu.data);
            if pdu.bhs[1] & 1 != 0 {
                return (all, pdu);
            }
        }
    }

    /// WRITE(10) with all data immediate.
    pub async fn write(&mut self, lba: u32, fua: bool, data: &[u8]) -> Pdu {
        let cdb = write_cdb(lba, u16::try_from(data.len() / 512).unwrap(), fua);
        self.command(0xa1, &cdb, u32::try_from(data.len()).unwrap(), data).await;
        self.receive().await.unwrap()
    }
}

pub fn write_cdb(lba: u32, blocks: u16, fua: bool) -> [u8; 10] {
    let mut cdb = [0x2a, if fua { 8 } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}
