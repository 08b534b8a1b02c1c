//! An iSCSI initiator for whole-system tests: it does what Linux does when its target goes away and comes back.
//!
//! ```text
//!            login: 0000                          connection lost
//!  down ───────────────────▶ logged in ─────────────────────────────▶ down, the command is kept
//!   ▲ │                          │
//!   │ └─ refused TCP, 03xx ──┐   └─ GOOD ──▶ the command is done
//!   └────── a pause ◀────────┘   └─ UNIT ATTENTION ──▶ the command again (the kernel's middle layer does so, too)
//! ```
//! Invariants: a command whose connection ended is sent again on the next one, and is done when a GOOD came for it.
//! What an operating system would report as an I/O error is an error here: a login status of class 2, a SCSI status other
//! than GOOD, a malformed answer, or no session for as long as [`PATIENCE`] (open-iscsi's `replacement_timeout`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ggnet_core::boot_text::san::{Host, SanUri};
use md5::{Digest as _, Md5};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The size of a logical block, in bytes.
pub const SECTOR: usize = 512;
/// The most sectors in one command: what may ride with a command before anything was negotiated.
pub const MAX_SECTORS: u16 = 16;
/// How long a lost session is tried for.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to log in.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer is waited for before the connection counts as lost.
const ANSWER: Duration = Duration::from_secs(60);

const CHECK_CONDITION: u8 = 2;
const UNIT_ATTENTION: u8 = 6;

/// Whom to log in to, and as whom.
#[derive(Debug, Clone)]
pub struct Account {
    /// The portal.
    pub portal: SocketAddr,
    /// The target's name.
    pub target: String,
    /// Our own name.
    pub initiator: String,
    /// The CHAP user name and secret; none: it logs in without.
    pub chap: Option<(String, String)>,
    /// The LUN, below 256.
    pub lun: u8,
    /// Our half of the session's identifier; the same at every login.
    pub isid: [u8; 6],
}

impl Account {
    /// What a machine's boot script tells its initiator.
    ///
    /// # Errors
    /// It is no script of a machine with a disk.
    pub fn from_script(script: &str, isid: [u8; 6]) -> Result<Self> {
        let word = |key: &str| {
            let found = script.lines().find_map(|line| line.trim().strip_prefix(key)?.split(' ').next());
            found.with_context(|| format!("no {key:?} in {script}"))
        };
        let san: SanUri = word("sanhook ")?.parse()?;
        let Host::Ip(server) = san.server else {
            bail!("the disk is at {}, which is no address", san.server)
        };
        Ok(Self {
            portal: (server, san.port).into(),
            target: san.target.to_string(),
            initiator: word("set initiator-iqn ")?.to_owned(),
            chap: word("set username ")
                .ok()
                .zip(word("set password ").ok())
                .map(|(u, s)| (u.to_owned(), s.to_owned())),
            lun: san.lun,
            isid,
        })
    }
}

/// A disk over iSCSI that outlives its connections.
#[derive(Debug)]
pub struct Initiator {
    account: Account,
    link: Option<Link>,
    logins: u64,
}

/// A login that has stopped.
#[derive(Debug)]
pub struct Stalled(TcpStream);

impl Stalled {
    /// Waits until the target closes the connection.
    ///
    /// # Errors
    /// It says something instead.
    pub async fn closed(mut self) -> Result<()> {
        match self.0.read(&mut [0]).await {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => bail!("the target said something to a login that waits"),
        }
    }
}

/// Why a command has not ended with GOOD.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The connection; the command is tried again.
    Connection,
    /// For good.
    Failed(anyhow::Error),
}

impl From<std::io::Error> for Lost {
    fn from(_: std::io::Error) -> Self {
        Self::Connection
    }
}

impl From<anyhow::Error> for Lost {
    fn from(e: anyhow::Error) -> Self {
        Self::Failed(e)
    }
}

impl From<Lost> for anyhow::Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Connection => anyhow::anyhow!("the connection was lost"),
            Lost::Failed(e) => e,
        }
    }
}

impl Initiator {
    /// Logs in.
    ///
    /// # Errors
    /// An I/O error in the sense of the module.
    pub async fn login(account: Account) -> Result<Self> {
        let mut me = Self { account, link: None, logins: 0 };
        me.up().await?;
        Ok(me)
    }

    /// Begins a login and returns after the target's CHAP challenge, or before the first request: what happens when an initiator
    /// waits for something else. The connection is open as long as the value is kept.
    ///
    /// # Errors
    /// An I/O error in the sense of the module.
    pub async fn stall(account: &Account, after_challenge: bool) -> Result<Stalled> {
        let begun = async {
            let mut link = Link::connect(account).await?;
            if after_challenge {
                link.challenge(account).await?;
            }
            Ok(link)
        };
        begun.await.map(|link: Link| Stalled(link.stream)).map_err(|lost: Lost| lost.into())
    }

    /// How often it has logged in.
    #[must_use]
    pub fn logins(&self) -> u64 {
        self.logins
    }

    /// Reads `count` sectors (at most [`MAX_SECTORS`]).
    ///
    /// # Errors
    /// An I/O error in the sense of the module.
    pub async fn read(&mut self, lba: u32, count: u16) -> Result<Vec<u8>> {
        let len = usize::from(count) * SECTOR;
        let got = self.command(&cdb(0x28, lba, count), Transfer::In(len)).await?;
        ensure!(got.len() == len, "{} bytes for a read of {len} at sector {lba}", got.len());
        Ok(got)
    }

    /// Writes whole sectors (at most [`MAX_SECTORS`]). When it returns, the target has acknowledged them.
    ///
    /// # Errors
    /// An I/O error in the sense of the module.
    pub async fn write(&mut self, lba: u32, data: &[u8]) -> Result<()> {
        let count = u16::try_from(data.len() / SECTOR)?;
        self.command(&cdb(0x2a, lba, count), Transfer::Out(data)).await.map(drop)
    }

    /// SYNCHRONIZE CACHE.
    ///
    /// # Errors
    /// An I/O error in the sense of the module.
    pub async fn flush(&mut self) -> Result<()> {
        self.command(&cdb(0x35, 0, 0), Transfer::None).await.map(drop)
    }

    /// Logs out and closes; a connection that is lost meanwhile is closed as well.
    pub async fn logout(mut self) {
        if let Some(mut link) = self.link.take() {
            let request = link.request(0x06, 0x80);
            if link.send(request, &[]).await.is_ok() {
                while link.receive().await.is_ok_and(|p| p.opcode() != 0x26) {}
            }
        }
    }

    /// Does a command, over as many connections as it takes.
    async fn command(&mut self, cdb: &[u8; 10], transfer: Transfer<'_>) -> Result<Vec<u8>> {
        loop {
            let lun = self.account.lun;
            let link = self.up().await?;
            match link.command(lun, cdb, &transfer).await {
                Ok(data) => return Ok(data),
                Err(Lost::Connection) => self.link = None,
                Err(Lost::Failed(e)) => {
                    return Err(e.context(format!("{} command {:#04x}", self.account.initiator, cdb[0])));
                }
            }
        }
    }

    /// The connection, logged in; made anew as often as it takes.
    async fn up(&mut self) -> Result<&mut Link> {
        let since = Instant::now();
        loop {
            if self.link.is_some() {
                break;
            }
            match Link::login(&self.account).await {
                Ok(link) => {
                    self.link = Some(link);
                    self.logins += 1;
                }
                Err(Lost::Failed(e)) => return Err(e.context(self.account.initiator.clone())),
                Err(Lost::Connection) if since.elapsed() > PATIENCE => {
                    bail!("{}: no session for {} s", self.account.initiator, PATIENCE.as_secs());
                }
                Err(Lost::Connection) => tokio::time::sleep(PAUSE).await,
            }
        }
        self.link.as_mut().context("no connection")
    }
}

/// What a command moves.
pub(crate) enum Transfer<'a> {
    None,
    In(usize),
    Out(&'a [u8]),
}

/// A READ(10), WRITE(10) or SYNCHRONIZE CACHE(10).
fn cdb(operation: u8, lba: u32, count: u16) -> [u8; 10] {
    let mut cdb = [operation, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}

/// A PDU (RFC 7143 section 11).
pub(crate) struct Pdu {
    pub(crate) bhs: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bhs[at], self.bhs[at + 1], self.bhs[at + 2], self.bhs[at + 3]])
    }
}

/// One connection, from its login on. Who is hostile ([`hostile`](crate::hostile)) sends over it what an [`Initiator`] never would.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    cmd_sn: u32,
    itt: u32,
    exp_stat_sn: u32,
}

impl Link {
    async fn connect(account: &Account) -> Result<Self, Lost> {
        let stream = TcpStream::connect(account.portal).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Over a new connection; nothing is sent.
    pub(crate) fn over(stream: TcpStream) -> Self {
        Self { stream, cmd_sn: 1, itt: 1, exp_stat_sn: 0 }
    }

    /// The login up to the target's challenge, whose text is returned.
    async fn challenge(&mut self, account: &Account) -> Result<String, Lost> {
        let names = format!(
            "InitiatorName={}\0TargetName={}\0SessionType=Normal\0AuthMethod=CHAP\0",
            account.initiator, account.target
        );
        self.login_step(account.isid, 0x81, &names).await?;
        self.login_step(account.isid, 0x00, "CHAP_A=5\0").await
    }

    /// Connects and logs in, in the order of open-iscsi (RFC 7143 sections 6 and 12.1.3).
    pub(crate) async fn login(account: &Account) -> Result<Self, Lost> {
        let mut me = Self::connect(account).await?;
        match &account.chap {
            Some((user, secret)) => me.prove(account, user, secret).await?,
            None => {
                let names = format!(
                    "InitiatorName={}\0TargetName={}\0SessionType=Normal\0AuthMethod=None\0",
                    account.initiator, account.target
                );
                me.login_step(account.isid, 0x81, &names).await?;
            }
        }
        let keys = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0\
                    MaxRecvDataSegmentLength=262144\0ErrorRecoveryLevel=0\0";
        me.login_step(account.isid, 0x87, keys).await?;
        Ok(me)
    }

    /// The security stage with CHAP.
    async fn prove(&mut self, account: &Account, user: &str, secret: &str) -> Result<(), Lost> {
        let challenge = self.challenge(account).await?;
        let get = |key: &str| {
            let text = challenge.split('\0').find_map(|p| p.strip_prefix(key)?.strip_prefix('='));
            text.with_context(|| format!("no {key} in {challenge:?}"))
        };
        let id: u8 = get("CHAP_I")?.parse().context("CHAP_I")?;
        let bytes = get("CHAP_C")?
            .strip_prefix("0x")
            .and_then(from_hex)
            .context("CHAP_C is no hexadecimal number")?;
        let digest = Md5::new().chain_update([id]).chain_update(secret).chain_update(bytes).finalize();
        let response: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        let proof = format!("CHAP_N={user}\0CHAP_R=0x{response}\0");
        self.login_step(account.isid, 0x81, &proof).await?;
        Ok(())
    }

    /// One request and its answer's text.
    pub(crate) async fn login_step(&mut self, isid: [u8; 6], flags: u8, text: &str) -> Result<String, Lost> {
        let mut bhs = [0; 48];
        bhs[0] = 0x43;
        bhs[1] = flags;
        bhs[8..14].copy_from_slice(&isid);
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.send(bhs, text.as_bytes()).await?;
        let answer = self.receive().await?;
        if answer.opcode() != 0x23 {
            return Err(anyhow::anyhow!("opcode {:#04x} in answer to a login", answer.opcode()).into());
        }
        match (answer.bhs[36], answer.bhs[37]) {
            (0, 0) => {}
            // "Service unavailable" and the like: open-iscsi tries again.
            (3, _) => return Err(Lost::Connection),
            (class, detail) => {
                return Err(anyhow::anyhow!("login refused with status {class:02x}{detail:02x}").into());
            }
        }
        self.exp_stat_sn = answer.word(24).wrapping_add(1);
        Ok(String::from_utf8(answer.data).context("the answer's text")?)
    }

    /// A request header with the next task tag and command number.
    pub(crate) fn request(&mut self, opcode: u8, flags: u8) -> [u8; 48] {
        let mut bhs = [0; 48];
        bhs[0] = opcode;
        bhs[1] = flags;
        self.itt = self.itt.wrapping_add(1);
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }

    pub(crate) async fn command(
        &mut self,
        lun: u8,
        cdb: &[u8; 10],
        transfer: &Transfer<'_>,
    ) -> Result<Vec<u8>, Lost> {
        let (flags, expected, data) = match transfer {
            Transfer::None => (0x81, 0, &[][..]),
            Transfer::In(len) => (0xc1, *len, &[][..]),
            Transfer::Out(data) => (0xa1, data.len(), *data),
        };
        let expected = u32::try_from(expected).context("too long")?;
        loop {
            let mut bhs = self.request(0x01, flags);
            bhs[9] = lun;
            bhs[20..24].copy_from_slice(&expected.to_be_bytes());
            bhs[32..42].copy_from_slice(cdb);
            self.send(bhs, data).await?;
            let (got, status, sense) = self.collect().await?;
            match status {
                0 => return Ok(got),
                CHECK_CONDITION if sense.get(2).is_some_and(|key| key & 0xf == UNIT_ATTENTION) => {}
                _ => return Err(anyhow::anyhow!("SCSI status {status:#04x}, sense {sense:02x?}").into()),
            }
        }
    }

    /// Everything up to a command's status: its data, the status, the sense data.
    async fn collect(&mut self) -> Result<(Vec<u8>, u8, Vec<u8>), Lost> {
        let mut all = Vec::new();
        loop {
            let pdu = self.receive().await?;
            match pdu.opcode() {
                // Data-In, with the status in the last one or not.
                0x25 => {
                    if usize::try_from(pdu.word(40)).ok() != Some(all.len()) {
                        return Err(anyhow::anyhow!("Data-In out of order").into());
                    }
                    all.extend(&pdu.data);
                    if pdu.bhs[1] & 1 != 0 {
                        return Ok((all, pdu.bhs[3], Vec::new()));
                    }
                }
                0x21 if pdu.bhs[2] == 0 => {
                    return Ok((all, pdu.bhs[3], pdu.data.get(2..).unwrap_or_default().to_vec()));
                }
                // A ping that wants an answer.
                0x20 if pdu.word(20) != u32::MAX => {
                    let mut pong = [0; 48];
                    pong[0] = 0x40;
                    pong[1] = 0x80;
                    pong[16..20].fill(0xff);
                    pong[20..24].copy_from_slice(&pdu.bhs[20..24]);
                    pong[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
                    pong[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
                    self.send(pong, &[]).await?;
                }
                // An asynchronous message: what it announces, the connection's end, is seen by itself.
                0x20 | 0x32 => {}
                other => {
                    return Err(anyhow::anyhow!("opcode {other:#04x}, response {:#04x}", pdu.bhs[2]).into());
                }
            }
        }
    }

    pub(crate) async fn send(&mut self, mut bhs: [u8; 48], data: &[u8]) -> std::io::Result<()> {
        let len = u32::try_from(data.len()).map_err(std::io::Error::other)?;
        bhs[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
        let mut wire = bhs.to_vec();
        wire.extend(data);
        wire.resize(48 + data.len().next_multiple_of(4), 0);
        self.stream.write_all(&wire).await
    }

    pub(crate) async fn receive(&mut self) -> std::io::Result<Pdu> {
        let pdu = tokio::time::timeout(ANSWER, self.receive_pdu()).await??;
        let carries_status = match pdu.opcode() {
            0x25 => pdu.bhs[1] & 1 != 0,
            0x20 => pdu.word(16) != u32::MAX,
            0x31 | 0x23 => false,
            _ => true,
        };
        if carries_status {
            self.exp_stat_sn = pdu.word(24).wrapping_add(1);
        }
        Ok(pdu)
    }

    async fn receive_pdu(&mut self) -> std::io::Result<Pdu> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs).await?;
        let len = usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7]);
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data).await?;
        data.truncate(len);
        Ok(Pdu { bhs, data })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_tells_whom_to_log_in_to() {
        let script = "#!ipxe\nset initiator-iqn iqn.2026-11.local.ggnet:pc\nset username u\nset password p\n\
                      sanhook iscsi:192.0.2.1::3261:0:iqn.2026-11.local.ggnet:disk && goto boot || set failure ${errno}\n";
        let account = Account::from_script(script, [0; 6]).unwrap();
        assert_eq!((account.portal.to_string().as_str(), account.lun), ("192.0.2.1:3261", 0));
        let user = account.chap.as_ref().map(|(user, _)| user.as_str());
        assert_eq!((account.target.as_str(), user), ("iqn.2026-11.local.ggnet:disk", Some("u")));
        assert!(Account::from_script("#!ipxe\nexit 1\n", [0; 6]).is_err());
    }

    #[test]
    fn reads_hexadecimal_and_builds_commands() {
        assert_eq!(from_hex("00fF1a"), Some(vec![0, 255, 26]));
        assert_eq!((from_hex("0"), from_hex("0g")), (None, None));
        assert_eq!(cdb(0x28, 0x0102_0304, 0x0506), [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]);
    }
}
