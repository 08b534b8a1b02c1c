//! Text keys: `key=value` pairs, each ended by a zero byte (RFC 7143 chapter 6).
//!
//! Invariants: a key has 1 to 63 characters of the standard set, and a value has no control characters; anything else is an error and is
//! never interpreted. Parsing borrows from the input.

/// Why a text segment is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    /// A pair without `=`, or a key that is empty, too long, or has a forbidden character.
    #[error("malformed text key")]
    BadKey,
    /// A value that is not text.
    #[error("malformed text value")]
    BadValue,
    /// More pairs than the limit.
    #[error("too many text keys")]
    TooMany,
}

/// Maximum number of pairs in one request.
const MAX_PAIRS: usize = 64;
/// Longest key name.
const MAX_KEY: usize = 63;

/// The pairs of a text segment, in order.
pub(crate) fn parse(data: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let mut pairs = Vec::new();
    for item in data.split(|&b| b == 0).filter(|item| !item.is_empty()) {
        if pairs.len() == MAX_PAIRS {
            return Err(TextError::TooMany);
        }
        let at = item.iter().position(|&b| b == b'=').ok_or(TextError::BadKey)?;
        let (key, value) = (&item[..at], &item[at + 1..]);
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b".-+@_#".contains(b);
        if key.is_empty() || key.len() > MAX_KEY || !key.iter().all(allowed) {
            return Err(TextError::BadKey);
        }
        let value = std::str::from_utf8(value).map_err(|_| TextError::BadValue)?;
        if value.chars().any(char::is_control) {
            return Err(TextError::BadValue);
        }
        pairs.push((std::str::from_utf8(key).map_err(|_| TextError::BadKey)?, value));
    }
    Ok(pairs)
}

/// Appends one pair.
pub(crate) fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A number in the format of text keys: decimal, or hexadecimal after `0x`.
pub(crate) fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u32::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None if value.bytes().all(|b| b.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

/// A binary value: `0x` and hexadecimal digits, or `0b` and base64. `None` if it is malformed or longer than `limit` bytes.
pub(crate) fn binary(value: &str, limit: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    let bytes = match prefix {
        "0x" | "0X" => hex(digits)?,
        "0b" | "0B" => base64(digits)?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= limit).then_some(bytes)
}

/// Bytes as a `0x` value.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(if n < 10 { b'0' + n } else { b'a' + n - 10 });
    let digits = bytes.iter().flat_map(|&b| [digit(b >> 4), digit(b & 15)]);
    "0x".chars().chain(digits).collect()
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |b: u8| char::from(b).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let bytes = digits.as_bytes();
    let (odd, even) = bytes.split_at(bytes.len() % 2);
    let mut out = Vec::with_capacity(bytes.len() / 2 + 1);
    for &b in odd {
        out.push(nibble(b)?);
    }
    for pair in even.chunks_exact(2) {
        out.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Some(out)
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    let trimmed = digits.trim_end_matches('=');
    if digits.len() - trimmed.len() > 2 || trimmed.len() % 4 == 1 {
        return None;
    }
    let (mut out, mut acc, mut bits) = (Vec::with_capacity(trimmed.len()), 0u32, 0u32);
    for b in trimmed.bytes() {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        acc = (acc << 6 | u32::from(six)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(acc >> bits & 0xff).unwrap_or(0));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_in_order() {
        let mut b = Vec::new();
        push(&mut b, "InitiatorName", "iqn.2024-01.org.example:a");
        push(&mut b, "AuthMethod", "CHAP,None");
        push(&mut b, "X-com.example", "");
        let want = vec![
            ("InitiatorName", "iqn.2024-01.org.example:a"),
            ("AuthMethod", "CHAP,None"),
            ("X-com.example", ""),
        ];
        assert_eq!(parse(&b).unwrap(), want);
        // Padding and a missing last zero are tolerated.
        assert_eq!(parse(b"A=b").unwrap(), vec![("A", "b")]);
        assert_eq!(parse(b"A=b\0\0\0\0").unwrap(), vec![("A", "b")]);
    }

    #[test]
    fn broken_pairs() {
        assert_eq!(parse(b"nonsense\0"), Err(TextError::BadKey));
        assert_eq!(parse(b"=x\0"), Err(TextError::BadKey));
        assert_eq!(parse(b"a b=x\0"), Err(TextError::BadKey));
        assert_eq!(parse(&[[b'k'; 64].as_slice(), b"=v\0"].concat()), Err(TextError::BadKey));
        assert_eq!(parse(b"a=\xff\0"), Err(TextError::BadValue));
        assert_eq!(parse(b"a=x\n\0"), Err(TextError::BadValue));
        assert_eq!(parse(&b"a=b\0".repeat(65)), Err(TextError::TooMany));
    }

    #[test]
    fn numbers_and_binaries() {
        assert_eq!(
            (number("65536"), number("0xFf"), number("0x"), number("-1"), number("")),
            (Some(65536), Some(255), None, None, None)
        );
        assert_eq!(binary("0x0aFF", 16), Some(vec![10, 255]));
        assert_eq!(binary("0xabc", 16), Some(vec![0xa, 0xbc]));
        assert_eq!(binary("0baGVsbG8=", 16), Some(b"hello".to_vec()));
        assert_eq!(
            (binary("0x", 16), binary("0xzz", 16), binary("hello", 16), binary("0x0000", 1), binary("é", 9)),
            (None, None, None, None, None)
        );
        assert_eq!(to_hex(&[0, 0x1f, 0xa0]), "0x001fa0");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200), s in "\\PC{0,40}") {
            let _ = parse(&data);
            let _ = (number(&s), binary(&s, 16));
        }

        #[test]
        fn what_is_written_is_read(bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            prop_assert_eq!(binary(&to_hex(&bytes), 64), Some(bytes));
        }
    }
}
