//! The initiator against faulty targets: each plays a short script over a real connection.

use std::time::Duration;

use proptest::prelude::*;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::chap::{ChapPair, Secret, md5_response};
use crate::digest::digest;
use crate::text;

const TARGET: &str = "iqn.2024-01.org.example:disk";
const FULL_FEATURE: u8 = 0x87;

fn account() -> Account {
    Account::new(([127, 0, 0, 1], 3260).into(), TARGET, "iqn.2024-01.org.example:pc")
}

fn pair(user: &str, secret: &str) -> ChapPair {
    ChapPair { user: user.into(), secret: Secret::new(secret) }
}

/// The target's end of a connection.
struct Fake {
    wire: Connection,
    stat_sn: u32,
    /// The MaxCmdSN that it sends.
    max_cmd_sn: u32,
}

impl Fake {
    /// The next PDU of the initiator.
    async fn hear(&mut self) -> Pdu {
        let frame = self.wire.exchange().await.unwrap();
        let pdu = Pdu { bhs: frame.bhs, data: self.wire.data(&frame).to_vec() };
        self.wire.consume(&frame);
        pdu
    }

    /// Whether the initiator sends something within a short time.
    async fn hears_something(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.wire.exchange()).await.is_ok()
    }

    /// A PDU to the task with this tag.
    fn pdu(&self, op: u8, flags: u8, itt: u32) -> Bhs {
        let mut bhs = Bhs::new(op, flags);
        bhs.set_word(16, itt);
        bhs.set_word(20, NO_TAG);
        bhs.set_word(24, self.stat_sn);
        bhs.set_word(28, 1);
        bhs.set_word(32, self.max_cmd_sn);
        bhs
    }

    async fn say(&mut self, bhs: Bhs, data: &[u8]) {
        self.wire.send(bhs, data).await.unwrap();
    }

    /// Receives a login request and answers it.
    async fn log_in(&mut self, flags: u8, text: &str) -> Pdu {
        let request = self.hear().await;
        let bhs = self.pdu(opcode::LOGIN_RESPONSE, flags, request.bhs.itt());
        self.say(bhs, text.as_bytes()).await;
        self.stat_sn += 1;
        request
    }

    /// Ends the next command with this status.
    async fn end(&mut self, itt: u32, status: u8, sense: &[u8]) {
        let mut bhs = self.pdu(opcode::SCSI_RESPONSE, FINAL, itt);
        bhs.set(3, &[status]);
        let len = u16::try_from(sense.len()).unwrap().to_be_bytes();
        let data = if sense.is_empty() { Vec::new() } else { [&len, sense].concat() };
        self.say(bhs, &data).await;
        self.stat_sn += 1;
    }
}

/// Two ends of a new connection.
async fn ends() -> (Connection, Fake) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let mut client = Connection::over(client.unwrap());
    client.patience = Duration::from_secs(30);
    (client, fake(accepted.unwrap().0))
}

fn fake(stream: TcpStream) -> Fake {
    Fake { wire: Connection::over(stream), stat_sn: 5, max_cmd_sn: 32 }
}

/// The result of a login against these answers.
async fn outcome_of(account: &Account, answers: &[(u8, String)]) -> Result<Connection, Error> {
    let (mut client, mut fake) = ends().await;
    let target = async {
        for (flags, text) in answers {
            fake.log_in(*flags, text).await;
        }
    };
    let (logged_in, ()) = tokio::join!(client.log_in(account), target);
    logged_in.map(|()| client)
}

/// A session with a target whose script continues from here.
async fn session(max_cmd_sn: u32) -> (Initiator, Fake) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let account = Account { portal: listener.local_addr().unwrap(), ..account() };
    let target = async {
        let mut fake = fake(listener.accept().await.unwrap().0);
        fake.max_cmd_sn = max_cmd_sn;
        fake.log_in(FULL_FEATURE, "").await;
        fake
    };
    let (initiator, fake) = tokio::join!(Initiator::login(account), target);
    (initiator.unwrap(), fake)
}

#[tokio::test]
async fn a_refusal_is_said_with_its_status_and_in_words() {
    let (mut client, mut fake) = ends().await;
    let target = async {
        let request = fake.hear().await;
        let mut bhs = fake.pdu(opcode::LOGIN_RESPONSE, 0, request.bhs.itt());
        bhs.set(36, &[2, 2]);
        fake.say(bhs, &[]).await;
    };
    let account = account();
    let (refused, ()) = tokio::join!(client.log_in(&account), target);
    let refused = refused.unwrap_err();
    assert_eq!(refused.to_string(), "login refused with status 0202: this initiator may not use the target");
    assert_eq!((refused.status(), refused.is_lost()), (Some((2, 2)), false));
    assert!(Error::Refused { class: 3, detail: 1 }.is_lost());
}

#[tokio::test]
async fn what_an_offer_does_not_admit_is_refused_and_the_rest_is_taken() {
    for (key, value, wrong) in [
        ("HeaderDigest", "CRC32C", true),
        ("DataDigest", "None", false),
        ("InitialR2T", "Yes", false),
        ("InitialR2T", "Maybe", true),
        ("ImmediateData", "No", false),
        ("MaxBurstLength", "1048577", true),
        ("MaxBurstLength", "0", true),
        ("MaxBurstLength", "99999999999999999999", true),
        ("MaxBurstLength", "512", false),
        ("FirstBurstLength", "-1", true),
        ("MaxRecvDataSegmentLength", "511", true),
        ("MaxRecvDataSegmentLength", "16777215", false),
        ("MaxRecvDataSegmentLength", "Reject", false),
        ("X-com.example.turbo", "on", false),
    ] {
        let outcome = outcome_of(&account(), &[(FULL_FEATURE, format!("{key}={value}\0"))]).await;
        let Some(error) = outcome.err() else {
            assert!(!wrong, "{key}={value} was taken");
            continue;
        };
        assert!(wrong && error.to_string().contains(key), "{key}={value}: {error}");
    }
    // A burst that is shorter than the first one limits it.
    let answer = "MaxBurstLength=1024\0ImmediateData=No\0MaxRecvDataSegmentLength=4096\0".to_owned();
    let connection = outcome_of(&account(), &[(FULL_FEATURE, answer)]).await.unwrap();
    let wanted = Params {
        immediate_data: false,
        max_burst: 1024,
        first_burst: 1024,
        peer_max_data: 4096,
        ..Params::default()
    };
    assert_eq!(connection.terms(), &wanted);
    assert_eq!(connection.key("MaxBurstLength"), Some("1024"));
    // One that we did not offer is never more than the default.
    let answer = "FirstBurstLength=1000000\0".to_owned();
    let connection = outcome_of(&account().say(&[]), &[(FULL_FEATURE, answer)]).await.unwrap();
    assert_eq!(connection.terms().first_burst, 65_536);
}

#[tokio::test]
async fn a_text_in_pieces_is_put_together_and_one_without_an_end_is_not_waited_for() {
    let pieces = [(0x44, "MaxBurst".to_owned()), (0x04, "Length=1024\0".to_owned()), (0x87, String::new())];
    let connection = outcome_of(&account(), &pieces).await.unwrap();
    assert_eq!(connection.terms().max_burst, 1024);
    let endless = vec![(0x04, "X=y\0".to_owned()); 8];
    let error = outcome_of(&account(), &endless).await.unwrap_err();
    assert_eq!(error.to_string(), "login: 8 answers and no end");
    let error = outcome_of(&account(), &[(0x81, String::new())]).await.unwrap_err();
    assert_eq!(error.to_string(), "login: expected an answer with flags 0x87, the target's has 0x81");
}

/// A login with mutual CHAP to a target that answers the proof with these keys.
async fn mutual(answer: impl Fn(u8, &[u8]) -> String) -> Result<(), Error> {
    let (mut client, mut fake) = ends().await;
    let account = Account {
        chap: Some(pair("pc", "abcdefgh12345678")),
        mutual: Some(pair("disk", "87654321hgfedcba")),
        ..account()
    };
    let target = async {
        fake.log_in(0, "AuthMethod=CHAP\0").await;
        fake.log_in(0, "CHAP_A=5\0CHAP_I=9\0CHAP_C=0x0102030405060708\0").await;
        let proof = fake.hear().await;
        let pairs = text::parse(&proof.data).unwrap();
        let get = |key: &str| pairs.iter().find(|(k, _)| *k == key).unwrap().1;
        let right = md5_response(9, &Secret::new("abcdefgh12345678"), &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((get("CHAP_N"), get("CHAP_R")), ("pc", text::to_hex(&right).as_str()));
        let challenge = text::binary(get("CHAP_C"), 1024).unwrap();
        let said = answer(get("CHAP_I").parse().unwrap(), &challenge);
        let bhs = fake.pdu(opcode::LOGIN_RESPONSE, 0x81, proof.bhs.itt());
        fake.say(bhs, said.as_bytes()).await;
        fake.stat_sn += 1;
        // A client that is content goes on; another one closes.
        if fake.wire.exchange().await.is_ok() {
            fake.log_in(FULL_FEATURE, "").await;
        }
    };
    let client = async {
        let done = client.log_in(&account).await;
        drop(client);
        done
    };
    tokio::join!(client, target).0
}

#[tokio::test]
async fn a_target_that_does_not_prove_itself_is_left() {
    let response = |secret: &str, id, challenge: &[u8]| {
        format!("CHAP_R={}\0", text::to_hex(&md5_response(id, &Secret::new(secret), challenge)))
    };
    let right =
        |id, challenge: &[u8]| "CHAP_N=disk\0".to_owned() + &response("87654321hgfedcba", id, challenge);
    mutual(right).await.unwrap();
    let wrong_secret =
        |id, challenge: &[u8]| "CHAP_N=disk\0".to_owned() + &response("another", id, challenge);
    let wrong_name =
        |id, challenge: &[u8]| "CHAP_N=tape\0".to_owned() + &response("87654321hgfedcba", id, challenge);
    assert!(matches!(mutual(wrong_secret).await, Err(Error::Unproved)));
    assert!(matches!(mutual(wrong_name).await, Err(Error::Unproved)));
    assert!(matches!(mutual(|_, _| String::new()).await, Err(Error::Unproved)));
    assert!(matches!(mutual(|_, _| "CHAP_N=disk\0CHAP_R=0x\0".into()).await, Err(Error::Unproved)));
}

#[tokio::test]
async fn without_a_proof_that_was_asked_for_nothing_is_accepted() {
    let account = Account { chap: Some(pair("pc", "abcdefgh12345678")), ..account() };
    for (answers, wanted) in [
        (vec!["AuthMethod=None\0"], "AuthMethod=CHAP"),
        (vec!["TargetPortalGroupTag=1\0"], "AuthMethod"),
        (vec!["AuthMethod=CHAP\0", "CHAP_A=6\0CHAP_I=1\0CHAP_C=0x01\0"], "CHAP_A=5"),
        (vec!["AuthMethod=CHAP\0", "CHAP_A=5\0CHAP_I=256\0CHAP_C=0x01\0"], "CHAP_I below 256"),
        (vec!["AuthMethod=CHAP\0", "CHAP_A=5\0CHAP_I=1\0CHAP_C=hello\0"], "CHAP_C of 1 to 1024 bytes"),
    ] {
        let answers: Vec<_> = answers.iter().map(|text| (0, (*text).to_owned())).collect();
        let error = outcome_of(&account, &answers).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("login: expected {wanted}, ")), "{error}");
    }
}

#[tokio::test]
async fn no_more_commands_are_sent_than_the_window_and_the_depth_allow() {
    // Commands 1 and 2 are inside of the window.
    let (mut initiator, mut fake) = session(2).await;
    for _ in 0..2 {
        initiator.submit(&cdb::TEST_UNIT_READY, Transfer::None).await.unwrap();
    }
    let target = async {
        let first = fake.hear().await;
        assert_eq!((first.bhs.cmd_sn(), fake.hear().await.bhs.cmd_sn()), (1, 2));
        assert!(!fake.hears_something().await, "a command outside of the window");
        fake.max_cmd_sn = 3;
        fake.end(first.bhs.itt(), 0, &[]).await;
    };
    let third = initiator.submit(&cdb::TEST_UNIT_READY, Transfer::None);
    let (third, ()) = tokio::join!(third, target);
    third.unwrap();
    assert_eq!(initiator.in_flight(), 2);

    let (initiator, mut fake) = session(32).await;
    let mut initiator = initiator.with_depth(1);
    initiator.submit(&cdb::TEST_UNIT_READY, Transfer::None).await.unwrap();
    let target = async {
        let first = fake.hear().await;
        assert!(!fake.hears_something().await, "two commands at a depth of one");
        fake.end(first.bhs.itt(), 0, &[]).await;
    };
    let (second, ()) = tokio::join!(initiator.submit(&cdb::TEST_UNIT_READY, Transfer::None), target);
    assert!(matches!(second, Err(Error::Invalid(_))), "the first one's outcome waits: {second:?}");
    assert_eq!(initiator.next_outcome().await.unwrap().status, 0);
    initiator.submit(&cdb::TEST_UNIT_READY, Transfer::None).await.unwrap();
}

#[tokio::test]
async fn a_window_that_shrinks_or_is_nonsense_changes_nothing() {
    let mut numbers = Numbers::default();
    for (exp, max, wanted) in [(1, 8, 8), (1, 4, 8), (9, 7, 8), (u32::MAX, 9, 9), (1, 0x8000_0008, 9)] {
        let mut bhs = Bhs::new(opcode::NOP_IN, FINAL);
        bhs.set_word(16, NO_TAG);
        bhs.set_word(28, exp);
        bhs.set_word(32, max);
        numbers.heard(&bhs).unwrap();
        assert_eq!(numbers.max_cmd_sn, wanted, "ExpCmdSN {exp}, MaxCmdSN {max}");
    }
}

#[tokio::test]
async fn a_wrong_digest_ends_the_session() {
    let both = Digests { header: true, data: true };
    for (header, wanted) in [(true, "header digest mismatch"), (false, "data digest mismatch")] {
        let (mut client, mut fake) = ends().await;
        let account = account().say(&[("HeaderDigest", "None,CRC32C"), ("DataDigest", "CRC32C")]);
        let target = fake.log_in(FULL_FEATURE, "HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
        let (logged_in, _) = tokio::join!(client.log_in(&account), target);
        logged_in.unwrap();
        assert_eq!(client.terms().digests, both);
        let mut bhs = fake.pdu(opcode::NOP_IN, FINAL, NO_TAG);
        bhs.set_data_len(4);
        let [mut of_header, mut of_data] = [digest(&bhs.0), digest(b"ping")];
        let wrong = if header { &mut of_header } else { &mut of_data };
        wrong[2] ^= 1;
        fake.wire.send_raw(&[&bhs.0[..], &of_header, b"ping", &of_data].concat()).await.unwrap();
        let error = client.receive().await.unwrap_err().to_string();
        assert_eq!(error, format!("PDU from the target: {wanted}"));
    }
}

#[tokio::test]
async fn what_no_command_asked_for_is_an_error_that_says_so() {
    // What a target may do wrong with a read of 512 bytes (true) or a write of 512 KiB.
    type Wrong = fn(&Fake, u32) -> (Bhs, Vec<u8>);
    let wrongs: [(bool, Wrong, &str); 7] = [
        (true, |f, tag| (f.pdu(opcode::DATA_IN, 0, tag), vec![0; 1024]), "Data-In up to byte 1024"),
        (
            true,
            |f, tag| {
                let mut bhs = f.pdu(opcode::DATA_IN, 0, tag);
                bhs.set_word(40, 4);
                (bhs, vec![0; 4])
            },
            "offset 4, expected 0 and 0",
        ),
        (true, |f, tag| (f.pdu(opcode::DATA_IN, 0, tag + 1), vec![0; 512]), "which is not in flight"),
        (true, |f, tag| (f.pdu(opcode::REJECT, FINAL, tag), Vec::new()), "rejected a PDU"),
        (true, |f, tag| (f.pdu(0x3c, FINAL, tag), Vec::new()), "opcode 0x3c"),
        (
            false,
            |f, tag| {
                let mut bhs = f.pdu(opcode::R2T, FINAL, tag);
                bhs.set_word(40, u32::MAX);
                bhs.set_word(44, u32::MAX);
                (bhs, Vec::new())
            },
            "R2T for 4294967295 bytes",
        ),
        (
            true,
            |f, tag| {
                let mut bhs = f.pdu(opcode::SCSI_RESPONSE, FINAL, tag);
                bhs.set_word(24, 77);
                (bhs, Vec::new())
            },
            "StatSN 77",
        ),
    ];
    for (reads, wrong, wanted) in wrongs {
        let (mut initiator, mut fake) = session(32).await;
        let data = vec![7; 512 << 10];
        let (cdb, transfer) = if reads {
            (cdb::read(0, 1), Transfer::In(512))
        } else {
            (cdb::write(0, 1024), Transfer::Out(&data[..]))
        };
        let target = async {
            let command = fake.hear().await;
            let (bhs, data) = wrong(&fake, command.bhs.itt());
            fake.say(bhs, &data).await;
            // What comes until the end, so that nobody waits for room.
            while fake.wire.exchange().await.map(|frame| fake.wire.consume(&frame)).is_ok() {}
        };
        let client = async {
            let error = initiator.execute(&cdb, transfer).await.unwrap_err().to_string();
            drop(initiator);
            error
        };
        let (error, ()) = tokio::join!(client, target);
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn pings_are_answered_and_unit_attentions_are_news() {
    let (mut initiator, mut fake) = session(32).await;
    let target = async {
        let command = fake.hear().await;
        let mut ping = fake.pdu(opcode::NOP_IN, FINAL, NO_TAG);
        ping.set_word(20, 0x1234);
        ping.set(8, &[0, 3]);
        fake.say(ping, &[]).await;
        let pong = fake.hear().await.bhs;
        assert_eq!((pong.0[0], pong.itt(), pong.ttt(), pong.0[9]), (0x40, NO_TAG, 0x1234, 3));
        fake.end(command.bhs.itt(), 2, &[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]).await;
        let again = fake.hear().await;
        assert_eq!(again.bhs.cdb(), command.bhs.cdb());
        fake.end(again.bhs.itt(), 0x18, &[]).await;
    };
    let (ended, ()) = tokio::join!(initiator.execute(&cdb::TEST_UNIT_READY, Transfer::None), target);
    assert!(matches!(ended, Err(Error::Scsi { status: 0x18, .. })), "{ended:?}");
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_leaves_the_session_whole() {
    let (mut initiator, mut fake) = session(32).await;
    let wait = initiator.execute(&[0x12, 0, 0, 0, 36, 0], Transfer::In(36));
    // Long enough for the command to be sent, and never for an answer.
    assert!(tokio::time::timeout(Duration::from_millis(50), wait).await.is_err());
    let target = async {
        let abandoned = fake.hear().await;
        let next = fake.hear().await;
        for (command, byte) in [(abandoned, 1), (next, 2)] {
            let bhs = fake.pdu(opcode::DATA_IN, FINAL, command.bhs.itt());
            fake.say(bhs, &[byte; 36]).await;
            fake.end(command.bhs.itt(), 0, &[]).await;
        }
    };
    let read = initiator.execute(&[0x12, 0, 0, 0, 36, 0], Transfer::In(36));
    let (read, ()) = tokio::join!(read, target);
    assert_eq!(read.unwrap(), [2; 36]);
    assert!(matches!(initiator.next_outcome().await, Err(Error::Invalid(_))), "nothing is left over");
}

#[tokio::test]
async fn a_lost_session_is_had_again_only_by_who_asked_for_that() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let account = Account { portal: listener.local_addr().unwrap(), ..account() };
    for patience in [Duration::ZERO, Duration::from_secs(30)] {
        let target = async {
            for round in 0..2 {
                let mut fake = fake(listener.accept().await.unwrap().0);
                fake.log_in(FULL_FEATURE, "").await;
                let command = fake.hear().await;
                if round == 1 {
                    fake.end(command.bhs.itt(), 0, &[]).await;
                    return Some(fake);
                }
                if patience.is_zero() {
                    return None;
                }
            }
            None
        };
        let client = async {
            let mut initiator = Initiator::login_within(account.clone(), patience).await.unwrap();
            let done = initiator.execute(&cdb::SYNCHRONIZE_CACHE, Transfer::None).await;
            (done, initiator.logins())
        };
        let ((done, logins), _open) = tokio::join!(client, target);
        if patience.is_zero() {
            assert!(done.unwrap_err().is_lost());
        } else {
            assert!(done.unwrap().is_empty());
        }
        assert_eq!(logins, if patience.is_zero() { 1 } else { 2 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the target sends, a login and a command end with an error and not with a panic, and nothing waits longer than the
    /// connection lasts.
    #[test]
    fn bytes_that_are_no_answer_end_in_an_error(
        noise in proptest::collection::vec(any::<u8>(), 0..600),
        keys in "[A-Za-z0-9=,\\x00.]{0,200}",
        stage in 0..3_u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut fake) = ends().await;
            let account = account();
            let target = async {
                match stage {
                    0 => fake.wire.send_raw(&noise).await.unwrap(),
                    1 => drop(fake.log_in(FULL_FEATURE, &keys).await),
                    _ => {
                        fake.log_in(FULL_FEATURE, "").await;
                        fake.wire.send_raw(&noise).await.unwrap();
                    }
                }
                drop(fake);
            };
            let client = async {
                client.log_in(&account).await?;
                client.command(0xc1, &cdb::read(0, 1), 512, &[]).await?;
                client.collect().await
            };
            let (ended, ()) = tokio::join!(client, target);
            // A whole PDU by chance is no error here; what follows it is.
            if let Ok((data, _)) = ended {
                assert!(data.len() < 600);
            }
        });
    }
}
