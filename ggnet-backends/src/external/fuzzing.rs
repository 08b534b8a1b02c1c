//! The properties that must hold for all output of a program on stdout. The fuzz target `external_line` and the test `fuzz_corpus` run
//! them.
//!
//! Input: two bytes that select the limit of a line, then the stream.
//!
//! The assertions are the purpose of this module: a violated property panics.

use futures_util::FutureExt as _;
use ggnet_core::ports::{DhcpCapabilities, Health, Listed, SpecDigest, WritebackListed};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    wire::{Content, HelloAnswer, Next, Refusal, Said, decode, next_line},
    writeback::{Abilities, Place},
};

/// The longest text of an error: the quotation and the explanation, each truncated, with every character escaped.
const MAX_WORDS: usize = 2 * 301 * "\\u{10ffff}".len() + 100;

/// Reads a stream line by line, and processes each line as a port's adapter does.
pub fn line(input: &[u8]) {
    let Some((&[low, high], stream)) = input.split_first_chunk::<2>() else { return };
    let limit = usize::from(u16::from_be_bytes([high, low]));
    let mut rest = stream;
    loop {
        let before = rest;
        let next = next_line(&mut rest, limit).now_or_never().expect("bytes in memory never wait");
        let taken = before.len() - rest.len();
        match next.expect("bytes in memory never fail") {
            Next::Line(line) => {
                assert!(line.len() <= limit && !line.contains(&b'\n'), "a line of {} bytes", line.len());
                assert_eq!((before[taken - 1], &before[..taken - 1]), (b'\n', &line[..]), "another line");
                understand(&line);
            }
            Next::TooLong => {
                assert!(taken == limit + 1 && !before[..taken].contains(&b'\n'), "it was not too long");
                return;
            }
            Next::End(left) => {
                assert!(left == before.len() && left <= limit && rest.is_empty(), "the end came early");
                assert!(!before.contains(&b'\n'), "a line was left over");
                return;
            }
        }
    }
}

fn understand(line: &[u8]) {
    match decode(line) {
        Err(why) => fit_to_show(&why),
        Ok(Said::Answer(id, answer)) => {
            let again = match &answer {
                Ok(result) => json!({ "id": id, "result": result }),
                Err(refusal) => json!({ "id": id, "error": refusal }),
            };
            // The last digit of a fraction may change in a round trip.
            if !has_fraction(&again) {
                let said = decode(again.to_string().as_bytes());
                assert_eq!(said, Ok(Said::Answer(id, answer.clone())), "an answer reads as another");
            }
            match answer {
                Ok(result) => answered(&result),
                Err(refusal) => refused(refusal),
            }
        }
        Ok(Said::Observed(observation)) => {
            let again = json!({ "method": "observed", "params": observation });
            assert_eq!(decode(again.to_string().as_bytes()), Ok(Said::Observed(observation)));
        }
    }
}

/// Tries every form that a response may have.
fn answered(result: &Value) {
    let longest =
        result.as_object().and_then(|o| o.get("content")).and_then(Value::as_str).map_or(0, str::len);
    if let Some(read) = form::<Content>(result) {
        assert!(read.content.len() <= longest / 4 * 3, "{} bytes of {longest}", read.content.len());
    }
    for listed in form::<Vec<Listed>>(result).unwrap_or_default() {
        assert!((1..=64).contains(&listed.id.as_str().len()), "a name of {:?}", listed.id);
        let digest = listed.digest.map(|d| d.to_string());
        assert_eq!(digest.and_then(|d| d.parse::<SpecDigest>().ok()), listed.digest, "another digest");
    }
    if let Some(place) = form::<Place>(result) {
        assert_eq!(form::<Place>(&json!(place)), Some(place.clone()), "a place reads as another");
        let absolute = match &place {
            Place::File { path, .. } | Place::Device { path } => path.is_absolute(),
        };
        assert_eq!(place.into_disk().is_ok(), absolute, "a disk without a root");
    }
    form::<Vec<WritebackListed>>(result);
    form::<Abilities>(result);
    form::<Health>(result);
    form::<HelloAnswer>(result);
    form::<DhcpCapabilities>(result);
}

fn form<T: DeserializeOwned>(result: &Value) -> Option<T> {
    serde_json::from_value(result.clone()).ok()
}

fn refused(refusal: Refusal) {
    let (kind, retryable) = (refusal.kind, refusal.retryable);
    let error = refusal.into_error();
    assert_eq!(error.kind(), kind);
    assert_eq!(error.is_retryable(), retryable.unwrap_or(kind.retryable_by_default()));
    for text in [Some(error.message()), error.hint(), error.subject()].into_iter().flatten() {
        fit_to_show(text);
    }
}

fn fit_to_show(text: &str) {
    assert!(text.len() <= MAX_WORDS, "{} bytes of words", text.len());
    assert!(!text.chars().any(char::is_control), "a control character in {text:?}");
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.is_f64(),
        Value::Array(a) => a.iter().any(has_fraction),
        Value::Object(o) => o.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
