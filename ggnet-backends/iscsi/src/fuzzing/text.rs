//! Text keys and their negotiation. Input: a byte (whether it is a discovery session), then the text segment.

use super::super::negotiate::{Answer, Negotiation, Params, Wishes};
use super::super::text::{binary, number, parse, push, to_hex};
use super::Input;

/// The server's preferences; small, so that many offers reach them.
pub(super) const WISHES: Wishes = Wishes { max_data: 262_144, max_burst: 1_048_576, first_burst: 262_144 };

/// Parses a text segment, writes it again, reads its values, and negotiates its keys.
pub fn text(input: &[u8]) {
    let mut input = Input(input);
    let discovery = input.byte() & 1 != 0;
    let data = input.0;
    let Ok(pairs) = parse(data) else { return };
    assert!(pairs.len() <= 64, "{} pairs", pairs.len());
    let mut again = Vec::new();
    for (key, value) in &pairs {
        assert!((1..=63).contains(&key.len()) && key.is_ascii() && !key.contains(['=', ' ']), "key {key:?}");
        assert!(!value.chars().any(char::is_control), "value {value:?}");
        push(&mut again, key, value);
        values(value);
    }
    assert!(again.len() <= data.len() + 1, "a text that grew");
    assert_eq!(parse(&again).as_deref(), Ok(&pairs[..]), "a text reads as another");
    negotiated(&pairs, discovery);
}

/// Numbers and binary values.
fn values(value: &str) {
    if let Some(n) = number(value) {
        assert_eq!((number(&n.to_string()), number(&format!("0x{n:x}"))), (Some(n), Some(n)));
    }
    for limit in [0, 1, 16, 1024] {
        if let Some(bytes) = binary(value, limit) {
            assert!((1..=limit).contains(&bytes.len()), "{} bytes of at most {limit}", bytes.len());
            assert_eq!(binary(&to_hex(&bytes), limit).as_ref(), Some(&bytes), "bytes read as others");
        }
    }
}

/// Every answer is one that the offer allows.
fn negotiated(pairs: &[(&str, &str)], discovery: bool) {
    let mut negotiation = Negotiation::new(WISHES, discovery);
    let mut answered: Vec<&str> = Vec::new();
    for (key, value) in pairs {
        let answer = negotiation.offer(key, value);
        if let Answer::Value(answer) = &answer {
            admitted(key, value, answer);
            let mut wire = Vec::new();
            push(&mut wire, key, answer);
            assert_eq!(parse(&wire).as_deref(), Ok(&[(*key, answer.as_str())][..]), "an unreadable answer");
        }
        let unknown = answer == Answer::Value("NotUnderstood".into());
        assert_eq!(answer == Answer::Repeated, !unknown && answered.contains(key), "{key} asked again");
        answered.push(key);
    }
    agreed(&negotiation.finish());
}

fn admitted(key: &str, offer: &str, answer: &str) {
    match key {
        _ if matches!(answer, "NotUnderstood" | "Irrelevant" | "Reject") => {}
        "HeaderDigest" | "DataDigest" | "TaskReporting" => {
            assert!(offer.split(',').any(|v| v == answer), "{key}={offer} answered {answer}");
        }
        "InitialR2T" | "ImmediateData" => assert_eq!(answer, offer, "{key}"),
        // Yes and No whatever was offered: OR and AND with ours.
        "DataPDUInOrder" | "DataSequenceInOrder" => assert_eq!(answer, "Yes", "{key}"),
        "IFMarker" | "OFMarker" => assert_eq!(answer, "No", "{key}"),
        _ => assert!(
            number(offer).zip(number(answer)).is_some_and(|(offer, answer)| answer <= offer),
            "{key}={offer} answered {answer}"
        ),
    }
}

/// Properties of the values of a session, whatever was negotiated.
pub(super) fn agreed(p: &Params) {
    let lengths = 512..=0xff_ffff;
    assert!(lengths.contains(&p.peer_max_data) && lengths.contains(&p.first_burst), "{p:?}");
    assert!(lengths.contains(&p.max_burst) && p.first_burst <= p.max_burst, "{p:?}");
    assert!(p.max_burst <= WISHES.max_burst && p.first_burst <= WISHES.first_burst, "{p:?}");
}
