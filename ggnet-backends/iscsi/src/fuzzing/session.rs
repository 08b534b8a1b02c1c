//! The full feature phase of a session, over a real connection: whatever an initiator that has logged in may send.
//!
//! Input: failures of the disks (as for `cdb`), a byte of choices (what was negotiated, the queue, the memory), then one PDU after the
//! other:
//!
//! ```text
//!  head: bits 0-2 what, 3 immediate, 4 final, 5 read, 6 write, 7 CmdSN out of order
//!  command:  unit 1 | expected length 2 (in units of 64) | CDB 16 | length 2 | data
//!  data-out: slot 1 | use of the slot 1 | ITT 1 | DataSN 1 | offset 2 (in units of 64) | odd 1 | length 2 | data
//!  task management: function 1 | unit 1 | ITT 1        NOP, text: length 1 | data        logout        raw: header 48 | length 1 | data
//! ```
//!
//! A logout follows at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::conn::{InBuf, OutBuf};
use super::super::login::Established;
use super::super::memory::Pool;
use super::super::negotiate::Params;
use super::super::pdu::{Bhs, Digests, Framing, frame, opcode};
use super::super::scsi::Units;
use super::super::session::{Session, Surroundings};
use super::super::target::{Control, SessionParts, SessionShared, Target};
use super::super::workers::Workers;
use super::super::{CloseReason, Limits, LoginDecision, LoginPolicy, LoginRequest, NoObserver, SessionId};
use super::Input;
use super::cdb::{disks, units};

/// Maximum number of PDUs of one input: more would only be slower.
const MAX_PDUS: usize = 64;
/// A session that has not ended after this time hangs.
const HANGS: Duration = Duration::from_secs(60);
const IQN: &str = "iqn.2024-01.a:disks";

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = {
        let made = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
        let Ok(runtime) = made else { unreachable!("no runtime: {made:?}") };
        runtime
    };
}

/// Sends everything, reads all answers, and checks them and the session's end.
pub fn session(input: &[u8]) {
    RUNTIME.with(|runtime| {
        let ended =
            runtime.block_on(async { tokio::time::timeout(HANGS, Run::new(Input(input)).run()).await });
        assert!(ended.is_ok(), "the session does not end");
    });
}

struct Nobody;

#[async_trait::async_trait]
impl LoginPolicy for Nobody {
    async fn decide(&self, _: &LoginRequest) -> LoginDecision {
        LoginDecision::NotFound
    }
}

/// The negotiated values, and what is sent.
struct Run {
    params: Params,
    limits: Limits,
    trouble: u8,
    stream: Vec<u8>,
    commands: usize,
    pdus: usize,
}

impl Run {
    fn new(mut input: Input<'_>) -> Self {
        let (trouble, choice) = (input.byte(), input.byte());
        let either = |bit: u8, no, yes| if choice & bit == 0 { no } else { yes };
        let params = Params {
            initial_r2t: choice & 1 != 0,
            immediate_data: choice & 2 == 0,
            digests: Digests { header: choice & 4 != 0, data: choice & 8 != 0 },
            peer_max_data: either(16, 8192, 512),
            max_burst: either(32, 262_144, 1024),
            first_burst: either(32, 65_536, 512),
        };
        let limits = Limits {
            memory: if choice & 64 == 0 { 1 << 20 } else { 0 },
            queue_depth: either(128, 128, 4),
            immediate_commands: 4,
            ..Limits::default()
        };
        let mut run = Self { params, limits, trouble, stream: Vec::new(), commands: 0, pdus: 0 };
        let mut out = OutBuf::default();
        out.set_digests(run.params.digests);
        let mut cmd_sn = 1_u32;
        for itt in 1..=MAX_PDUS {
            if input.is_empty() {
                break;
            }
            let (bhs, data) = pdu(&mut input, &mut cmd_sn, u32::try_from(itt).unwrap_or(0));
            run.commands += usize::from(bhs.opcode() == opcode::SCSI_COMMAND);
            run.pdus += 1;
            out.push(bhs, data);
        }
        let mut logout = Bhs::new(0x40 | opcode::LOGOUT, 0x80);
        logout.set_word(16, 0xffff_0000);
        logout.set_word(24, cmd_sn);
        run.pdus += 1;
        out.push(logout, &[]);
        run.stream = out.pending().to_vec();
        run
    }

    /// A session with these limits that has just logged in to `units`.
    fn session(&self, pool: &Arc<Pool>, units: Units) -> (Session, UnboundedReceiver<Control>) {
        let (address, target) = (SocketAddr::from(([127, 0, 0, 1], 3260)), Arc::<str>::from(IQN));
        let (me, control) = SessionShared::new(SessionParts {
            id: SessionId(1),
            tsih: 1,
            target: Some(Arc::clone(&target)),
            initiator: "iqn.2024-01.a:one".into(),
            isid: [0x80, 0, 0, 0, 0, 1],
            peer: address,
            local: address,
        });
        let around = Surroundings {
            limits: self.limits,
            nop_interval: None,
            workers: Workers::new(8).share(),
            memory: Arc::clone(pool),
            observer: Arc::new(NoObserver),
            policy: Arc::new(Nobody),
            address: format!("{address},1"),
            request: LoginRequest {
                target: Some(IQN.into()),
                initiator: me.initiator.to_string(),
                peer: address,
                local: address,
            },
            target: Some(Arc::new(Target::new(target, units))),
        };
        let established = Established { params: self.params.clone(), exp_cmd_sn: 1, stat_sn: 1, cid: 0 };
        (Session::new(me, around, established), control)
    }

    async fn run(self) {
        let (mut client, mut server) = pair().await;
        let pool = Pool::new(self.limits.memory);
        let (session, control) = self.session(&pool, units(&disks(self.trouble)));
        let serve = async move {
            let reason = session.run(&mut server, &mut InBuf::default(), control).await;
            // Only now does the other side see an end.
            drop(server);
            reason
        };
        let (mut from, mut to) = client.split();
        let send = async {
            // It may close before all has come.
            let _ = to.write_all(&self.stream).await;
        };
        let mut answers = Vec::new();
        let receive = async {
            let _ = from.read_to_end(&mut answers).await;
        };
        let (reason, (), ()) = tokio::join!(serve, send, receive);
        assert_eq!(pool.leased(), 0, "memory that nobody gave back");
        self.check(&answers, reason);
    }

    /// Checks everything that was received.
    fn check(&self, mut rest: &[u8], reason: CloseReason) {
        let (mut stat_sn, mut ended, mut rejected, mut last) = (1_u32, 0, 0, 0);
        while let Ok(Framing::Pdu(f)) = frame(rest, self.params.digests, 1 << 24) {
            let (bhs, data) = (f.bhs, f.data.len());
            let op = bhs.opcode();
            let with_status = match op {
                opcode::DATA_IN => {
                    assert!(data <= self.params.peer_max_data as usize, "{data} bytes in one PDU");
                    bhs.flags() & 1 != 0
                }
                opcode::R2T => {
                    assert!((1..=self.params.max_burst).contains(&bhs.word(44)), "R2T for {}", bhs.word(44));
                    false
                }
                _ => true,
            };
            if with_status {
                assert_eq!(bhs.word(24), stat_sn, "StatSN of {op:#x}");
                stat_sn += 1;
            }
            let window = bhs.word(32).wrapping_sub(bhs.word(28)).wrapping_add(1);
            assert!(window <= self.limits.queue_depth, "a window of {window}");
            ended += usize::from(op == opcode::SCSI_RESPONSE || op == opcode::DATA_IN && with_status);
            rejected += usize::from(op == opcode::REJECT);
            last = op;
            rest = &rest[f.total..];
        }
        assert!(ended <= self.commands, "{ended} answers to {} commands", self.commands);
        assert!(rejected <= self.pdus, "{rejected} of {} PDUs rejected", self.pdus);
        assert!(
            reason != CloseReason::Logout || last == opcode::LOGOUT_RESPONSE,
            "{last:#x} is the last answer"
        );
    }
}

/// One PDU of the input.
fn pdu<'a>(input: &mut Input<'a>, cmd_sn: &mut u32, itt: u32) -> (Bhs, &'a [u8]) {
    let head = input.byte();
    let flags = (head & 0x10) << 3 | (head & 0x20) << 1 | (head & 0x40) >> 1;
    let immediate = (head & 8) << 3;
    let length = |input: &mut Input<'a>, limit: usize| {
        let n = usize::from(u16::from_be_bytes(input.array())) % limit;
        input.take(n)
    };
    let (mut bhs, data) = match head & 7 {
        0 | 1 => {
            let mut bhs = Bhs::new(immediate | opcode::SCSI_COMMAND, flags);
            bhs.set(8, &[0, input.byte() & 7, 0, 0, 0, 0, 0, 0]);
            bhs.set_word(20, u32::from(u16::from_be_bytes(input.array())) * 64);
            bhs.set(32, &input.array::<16>());
            (bhs, length(input, 9000))
        }
        2 => {
            let mut bhs = Bhs::new(opcode::DATA_OUT, flags & 0x80);
            let (slot, uses, of) = (input.byte(), input.byte(), input.byte());
            bhs.set_word(20, if slot == 0xff { u32::MAX } else { u32::from(uses) << 16 | u32::from(slot) });
            bhs.set_word(16, u32::from(of));
            bhs.set_word(36, u32::from(input.byte()));
            let offset = u32::from(u16::from_be_bytes(input.array())) * 64 + u32::from(input.byte());
            bhs.set_word(40, offset);
            return (bhs, length(input, 9000));
        }
        3 => {
            let mut bhs = Bhs::new(immediate | opcode::TASK_MANAGEMENT, 0x80 | input.byte() & 0x7f);
            bhs.set(8, &[0, input.byte() & 7, 0, 0, 0, 0, 0, 0]);
            bhs.set_word(20, u32::from(input.byte()));
            (bhs, &[][..])
        }
        4 => {
            let mut bhs = Bhs::new(immediate | opcode::NOP_OUT, 0x80);
            bhs.set_word(20, u32::MAX);
            (bhs, length(input, 600))
        }
        5 => {
            let mut bhs = Bhs::new(immediate | opcode::TEXT, flags & 0x80 | (head & 0x20) << 1);
            bhs.set_word(20, if head & 0x40 == 0 { u32::MAX } else { 1 });
            (bhs, length(input, 600))
        }
        6 => {
            let mut bhs = Bhs::new(immediate | opcode::SNACK, 0x80);
            bhs.set_word(20, u32::MAX);
            (bhs, &[][..])
        }
        _ => {
            let mut bhs = Bhs(input.array());
            // Additional header segments would be read from what follows.
            bhs.0[4] = 0;
            return (bhs, length(input, 600));
        }
    };
    bhs.set_word(16, itt);
    let jump = if head & 0x80 == 0 { 0 } else { 1 };
    bhs.set_word(24, cmd_sn.wrapping_add(jump));
    if !matches!(head & 7, 6) && immediate == 0 && jump == 0 {
        *cmd_sn = cmd_sn.wrapping_add(1);
    }
    (bhs, data)
}

/// Two ends of a connection on this host.
async fn pair() -> (TcpStream, TcpStream) {
    let connected = async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
        let (client, (server, _)) = (client?, accepted?);
        // By a reset at its end a connection leaves no trace: millions of them would use up the ports.
        client.set_zero_linger()?;
        std::io::Result::Ok((client, server))
    };
    match connected.await {
        Ok(pair) => pair,
        Err(e) => unreachable!("no connection on this host: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::AsyncWrite;

    use super::super::super::scsi::nexus::Attention;
    use super::*;

    /// A connection on which nothing may be sent while a unit still has a session.
    struct AfterAll<'a>(&'a Units, Vec<u8>);

    impl AsyncWrite for AfterAll<'_> {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            for unit in self.0.iter() {
                unit.raise_where(Attention::MediumChanged, |_| panic!("unit {} has a session", unit.number));
            }
            self.1.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_logout_is_answered_when_no_unit_knows_the_session() {
        let run = Run::new(Input(&[]));
        let units = units(&disks(0));
        let (mut session, mut control) = run.session(&Pool::new(run.limits.memory), units.clone());
        session.logout = Some(Bhs::new(opcode::LOGOUT_RESPONSE, 0x80));
        let mut out = AfterAll(&units, Vec::new());
        session.finish(&mut out, &mut control, CloseReason::Logout).await;
        assert_eq!(out.1[0], opcode::LOGOUT_RESPONSE);
    }
}
