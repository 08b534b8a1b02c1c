//! The transfer's state machine against a client in memory, with lost and duplicate packets and wrap-around of block numbers.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::bootfile::builtin::tftp::{options::negotiate, packet::Mode};

const RETRY_POLICY: RetryPolicy = RetryPolicy { first: Duration::from_secs(1), retries: 5 };

fn start(data: Vec<u8>, options: &[(&[u8], &[u8])], now: Instant) -> Transfer {
    start_in(Mode::Octet, data, options, now)
}

fn start_in(mode: Mode, data: Vec<u8>, options: &[(&[u8], &[u8])], now: Instant) -> Transfer {
    let content = Content::new(Bytes::from(data), mode);
    let options = negotiate(options, content.size(), 65464);
    Transfer::new(content, options, RETRY_POLICY, now)
}

fn drain(t: &mut Transfer) -> Vec<Vec<u8>> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    while t.transmit(&mut out) {
        all.push(out.clone());
    }
    all
}

fn ack(n: u16) -> [u8; 4] {
    let [h, l] = n.to_be_bytes();
    [0, 4, h, l]
}

fn data_number(packet: &[u8]) -> u16 {
    assert_eq!(&packet[..2], &[0, 3], "not DATA: {packet:?}");
    u16::from_be_bytes([packet[2], packet[3]])
}

#[test]
fn lock_step_to_the_end_and_the_apprentice_stays_asleep() {
    let now = Instant::now();
    let mut t = start(vec![1; 1024], &[], now);
    assert_eq!(drain(&mut t).iter().map(|p| data_number(p)).collect::<Vec<_>>(), [1]);
    t.receive(&ack(1), now);
    assert_eq!(drain(&mut t).len(), 1);
    for _ in 0..3 {
        t.receive(&ack(1), now);
        assert!(drain(&mut t).is_empty(), "a duplicate ACK sent something");
    }
    t.receive(&ack(2), now);
    let last = drain(&mut t);
    assert_eq!((data_number(&last[0]), last[0].len()), (3, 4), "an exact multiple ends with an empty block");
    t.receive(&ack(3), now);
    assert_eq!(t.outcome(), Some(&Outcome::Complete));
    assert_eq!(t.bytes_acked(), 1024);
}

#[test]
fn an_empty_file_is_one_empty_block() {
    let now = Instant::now();
    let mut t = start(Vec::new(), &[], now);
    assert_eq!(drain(&mut t), [vec![0, 3, 0, 1]]);
    t.receive(&ack(1), now);
    assert_eq!(t.outcome(), Some(&Outcome::Complete));
}

#[test]
fn a_size_probe_ends_at_once() {
    let now = Instant::now();
    let mut t = start(vec![1; 5000], &[(b"tsize", b"0")], now);
    assert_eq!(drain(&mut t), [b"\0\x06tsize\x005000\0".to_vec()]);
    t.receive(b"\0\x05\0\x08stop\0", now);
    assert_eq!(t.outcome(), Some(&Outcome::ClientError(8, "stop".into())));
    assert!(drain(&mut t).is_empty());
}

#[test]
fn who_never_answers_is_given_up_after_a_few_seconds_whatever_timeout_it_asked_for() {
    for options in [&[][..], &[(&b"timeout"[..], &b"255"[..])]] {
        let mut now = Instant::now();
        let mut t = start(vec![1; 10], options, now);
        drain(&mut t);
        let mut pauses = Vec::new();
        while t.outcome().is_none() {
            pauses.push((t.deadline() - now).as_secs());
            now = t.deadline();
            t.timeout(now);
            assert_eq!(drain(&mut t).len(), usize::from(t.outcome().is_none()));
        }
        assert_eq!(pauses, [1, 2, 4, 8]);
        assert_eq!(t.outcome(), Some(&Outcome::TimedOut));
    }
}

#[test]
fn silence_after_an_answer_gets_pauses_that_double_and_is_then_given_up() {
    let mut now = Instant::now();
    let mut t = start(vec![1; 1000], &[], now);
    drain(&mut t);
    t.receive(&ack(1), now);
    drain(&mut t);
    let mut pauses = Vec::new();
    while t.outcome().is_none() {
        pauses.push((t.deadline() - now).as_secs());
        t.timeout(now);
        assert!(drain(&mut t).is_empty(), "sent before the deadline");
        now = t.deadline();
        t.timeout(now);
        let sent = drain(&mut t);
        assert_eq!(sent.len(), usize::from(t.outcome().is_none()));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
    assert_eq!(t.outcome(), Some(&Outcome::TimedOut));
}

#[test]
fn the_clients_timeout_is_kept_without_doubling() {
    let mut now = Instant::now();
    let mut t = start(vec![1; 10], &[(b"timeout", b"3")], now);
    drain(&mut t);
    t.receive(&ack(0), now);
    drain(&mut t);
    for _ in 0..3 {
        assert_eq!(t.deadline() - now, Duration::from_secs(3));
        now = t.deadline();
        t.timeout(now);
    }
}

#[test]
fn a_repeated_request_repeats_the_first_packet_only_before_any_answer() {
    let now = Instant::now();
    let mut t = start(vec![1; 5000], &[(b"tsize", b"0")], now);
    let first = drain(&mut t);
    t.request_repeated(now);
    assert_eq!(drain(&mut t), first);
    t.receive(&ack(0), now);
    assert!(t.progressed());
    drain(&mut t);
    t.request_repeated(now);
    assert!(drain(&mut t).is_empty());
}

#[test]
fn a_window_slides_and_restarts_behind_what_the_client_has() {
    let now = Instant::now();
    let mut t = start(vec![1; 512 * 10], &[(b"windowsize", b"4")], now);
    drain(&mut t);
    t.receive(&ack(0), now);
    let numbers = |t: &mut Transfer| drain(t).iter().map(|p| data_number(p)).collect::<Vec<_>>();
    assert_eq!(numbers(&mut t), [1, 2, 3, 4]);
    t.receive(&ack(2), now);
    assert_eq!(numbers(&mut t), [3, 4, 5, 6]);
    t.receive(&ack(2), now);
    assert_eq!(numbers(&mut t), [3, 4, 5, 6], "a client that lost block 3 asks again");
    t.receive(&ack(2), now);
    assert!(numbers(&mut t).is_empty(), "the second duplicate is the Apprentice's");
    t.receive(&ack(6), now);
    assert_eq!(numbers(&mut t), [7, 8, 9, 10]);
    t.receive(&ack(9), now);
    assert_eq!(numbers(&mut t), [10, 11]);
    t.receive(&ack(11), now);
    assert_eq!(t.outcome(), Some(&Outcome::Complete));
}

#[test]
fn a_block_of_netascii_that_is_sent_again_is_the_same_also_where_a_pair_is_split() {
    let now = Instant::now();
    let mut t =
        start_in(Mode::Netascii, b"\n\r".repeat(7), &[(b"windowsize", b"3"), (b"blksize", b"9")], now);
    drain(&mut t);
    t.receive(&ack(0), now);
    let first = drain(&mut t);
    assert_eq!(first[0][4..], *b"\r\n\r\0\r\n\r\0\r");
    assert_eq!(first[1][4..], *b"\n\r\0\r\n\r\0\r\n");
    t.receive(&ack(1), now);
    let again = drain(&mut t);
    assert_eq!(again[..2], first[1..], "the client missed the second and third");
    t.receive(&ack(1), now);
    assert_eq!(drain(&mut t), again, "a window that is asked for again");
    t.receive(&ack(4), now);
    assert!(drain(&mut t).is_empty(), "the fourth, of one byte, was the last");
    assert_eq!((t.outcome(), t.bytes_acked()), (Some(&Outcome::Complete), 28));
}

/// A client that keeps blocks in order and acknowledges them; `fate` decides about each packet in both directions.
fn run(
    data: &[u8],
    options: &[(&[u8], &[u8])],
    block: usize,
    window: u64,
    fate: impl FnMut() -> u8,
) -> (Vec<u8>, Outcome, u64) {
    let now = Instant::now();
    fetch(start(data.to_vec(), options, now), now, block, window, fate)
}

fn fetch(
    mut t: Transfer,
    mut now: Instant,
    block: usize,
    window: u64,
    mut fate: impl FnMut() -> u8,
) -> (Vec<u8>, Outcome, u64) {
    let (mut got, mut expected, mut sent) = (Vec::new(), 1u64, 0u64);
    let mut finished = false;
    while t.outcome().is_none() {
        let packets = drain(&mut t);
        sent += packets.len() as u64;
        let mut acks = Vec::new();
        for p in packets {
            let copies = match fate() {
                0 => 0,
                1 => 2,
                _ => 1,
            };
            for _ in 0..copies {
                if p[1] == 6 {
                    acks.push(ack(0));
                    continue;
                }
                if data_number(&p) == wire_number(expected) && !finished {
                    got.extend_from_slice(&p[4..]);
                    finished = p.len() - 4 < block;
                    expected += 1;
                    if (expected - 1) % window == 0 || finished {
                        acks.push(ack(wire_number(expected - 1)));
                    }
                } else {
                    acks.push(ack(wire_number(expected - 1)));
                }
            }
        }
        if acks.is_empty() {
            now = t.deadline();
            t.timeout(now);
        }
        for a in acks {
            let copies = match fate() {
                0 => 0,
                1 => 2,
                _ => 1,
            };
            for _ in 0..copies {
                t.receive(&a, now);
            }
        }
    }
    (got, t.outcome().cloned().unwrap(), sent)
}

#[test]
fn block_numbers_roll_over() {
    let data: Vec<u8> = (0..8 * 140_000u32).map(|i| (i % 251) as u8).collect();
    let (got, outcome, sent) = run(&data, &[(b"blksize", b"8")], 8, 1, || 9);
    assert_eq!(outcome, Outcome::Complete);
    assert!(got == data, "the bytes differ");
    assert_eq!(sent, 140_002, "nothing was sent twice");
    let (got, outcome, _) = run(&data, &[(b"blksize", b"8"), (b"windowsize", b"7")], 8, 7, || 9);
    assert_eq!(outcome, Outcome::Complete);
    assert!(got == data, "the bytes differ with a window");
}

proptest! {
    #[test]
    fn the_bytes_arrive_whatever_is_lost_or_doubled(
        len in 0usize..6000, window in 1u16..9, fates in proptest::collection::vec(0u8..12, 1..400),
    ) {
        let data: Vec<u8> = (0u8..253).cycle().take(len).collect();
        let w = window.to_string();
        let mut i = 0;
        // After the recorded fates no packet is lost, so that every run ends.
        let fate = || { i += 1; fates.get(i).copied().unwrap_or(9) };
        let (got, outcome, _) = run(&data, &[(b"blksize", b"128"), (b"windowsize", w.as_bytes())], 128, u64::from(window), fate);
        if outcome == Outcome::Complete {
            prop_assert!(got == data);
        } else {
            prop_assert_eq!(outcome, Outcome::TimedOut);
        }
    }

    #[test]
    fn a_text_arrives_in_netascii_whatever_is_lost_or_doubled(
        len in 0usize..3000, window in 1u16..9, fates in proptest::collection::vec(0u8..12, 1..200),
    ) {
        let text: Vec<u8> = b"a\nbc\rd\r\n\n".iter().copied().cycle().take(len).collect();
        let whole: Vec<u8> = text.iter().flat_map(|b| match b {
            b'\n' => vec![b'\r', b'\n'],
            b'\r' => vec![b'\r', 0],
            other => vec![*other],
        }).collect();
        let (w, now) = (window.to_string(), Instant::now());
        let t = start_in(Mode::Netascii, text, &[(b"blksize", b"129"), (b"windowsize", w.as_bytes())], now);
        let mut i = 0;
        let fate = || { i += 1; fates.get(i).copied().unwrap_or(9) };
        let (got, outcome, _) = fetch(t, now, 129, u64::from(window), fate);
        if outcome == Outcome::Complete {
            prop_assert!(got == whole);
        } else {
            prop_assert_eq!(outcome, Outcome::TimedOut);
        }
    }

    #[test]
    fn no_packet_of_a_client_panics_or_overfills_the_window(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..60)) {
        let now = Instant::now();
        let mut t = start(vec![3; 4000], &[(b"windowsize", b"4"), (b"blksize", b"8")], now);
        for p in packets {
            t.receive(&p, now);
            prop_assert!(drain(&mut t).len() <= 4);
        }
    }
}
