//! Option negotiation (RFC 2347): block size (2348), transfer size and timeout (2349), window size (7440).
//!
//! Invariants: the acknowledgement contains only options that the client requested and that we accept, each at most once and never with a
//! higher value than requested. If none is accepted, there is no acknowledgement, and the transfer starts as in RFC 1350.

use std::time::Duration;

/// The block size of RFC 1350.
const DEFAULT_BLOCK: u16 = 512;
/// The limits of RFC 2348.
const BLOCK_BOUNDS: std::ops::RangeInclusive<u64> = 8..=65464;
/// More blocks in flight would overrun the receive buffer of firmware and bring nothing on a LAN.
const MAX_WINDOW: u16 = 64;
/// A longer retransmission timeout would keep memory for a client that no longer exists.
const MAX_TIMEOUT: u64 = 30;

/// The negotiated parameters of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// Payload size of every DATA packet except the last, in bytes.
    pub(super) block_size: u16,
    /// Number of DATA packets in flight; 1 is the lock step of RFC 1350.
    pub(super) window: u16,
    /// The retransmission timeout that the client requested.
    pub(super) timeout: Option<Duration>,
    /// The acknowledged options, in the client's order.
    pub(super) acknowledged: Vec<(&'static str, u64)>,
}

/// Negotiates the options. `size` is the number of bytes to send, if known; otherwise `tsize` is omitted. `max_block` is the largest
/// payload that fits into one packet to the client (the interface's MTU minus the headers).
pub(super) fn negotiate(options: &[(&[u8], &[u8])], size: Option<u64>, max_block: u16) -> Negotiated {
    let mut result =
        Negotiated { block_size: DEFAULT_BLOCK, window: 1, timeout: None, acknowledged: Vec::new() };
    for (name, value) in options {
        let Some(value) = number(value) else { continue };
        let accepted = if name.eq_ignore_ascii_case(b"blksize") && BLOCK_BOUNDS.contains(&value) {
            let block = u16::try_from(value).unwrap_or(u16::MAX).min(max_block.max(DEFAULT_BLOCK));
            ("blksize", u64::from(block))
        } else if name.eq_ignore_ascii_case(b"windowsize") && (1..=65535).contains(&value) {
            ("windowsize", value.min(u64::from(MAX_WINDOW)))
        } else if name.eq_ignore_ascii_case(b"timeout") && (1..=MAX_TIMEOUT).contains(&value) {
            ("timeout", value)
        } else if name.eq_ignore_ascii_case(b"tsize")
            && let Some(size) = size
        {
            ("tsize", size)
        } else {
            continue;
        };
        if result.acknowledged.iter().any(|(seen, _)| *seen == accepted.0) {
            continue;
        }
        match accepted {
            ("blksize", block) => result.block_size = u16::try_from(block).unwrap_or(DEFAULT_BLOCK),
            ("windowsize", window) => result.window = u16::try_from(window).unwrap_or(1),
            ("timeout", seconds) => result.timeout = Some(Duration::from_secs(seconds)),
            _ => {}
        }
        result.acknowledged.push(accepted);
    }
    result
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_capped_at_what_fits_the_link() {
        let n = negotiate(&[(b"blksize", b"8192"), (b"tsize", b"0")], Some(99), 1468);
        assert_eq!(n.block_size, 1468);
        assert_eq!(n.acknowledged, vec![("blksize", 1468), ("tsize", 99)]);
    }

    #[test]
    fn what_is_not_asked_unknown_or_out_of_bounds_is_not_acknowledged() {
        assert!(negotiate(&[], Some(1), 1468).acknowledged.is_empty());
        let odd: [(&[u8], &[u8]); 6] = [
            (b"blksize", b"7"),
            (b"timeout", b"0"),
            (b"timeout", b"255"),
            (b"windowsize", b"0"),
            (b"multicast", b""),
            (b"blksize", b"many"),
        ];
        let n = negotiate(&odd, Some(1), 1468);
        assert!(n.acknowledged.is_empty(), "{:?}", n.acknowledged);
        assert_eq!((n.block_size, n.window, n.timeout), (512, 1, None));
    }

    #[test]
    fn a_size_that_is_not_known_is_not_acknowledged() {
        let n = negotiate(&[(b"tsize", b"0"), (b"blksize", b"1024")], None, 1468);
        assert_eq!(n.acknowledged, vec![("blksize", 1024)]);
    }

    #[test]
    fn names_are_case_insensitive_and_the_first_of_two_wins() {
        let n = negotiate(
            &[(b"BLKSIZE", b"1024"), (b"blksize", b"600"), (b"WindowSize", b"9999")],
            Some(1),
            1468,
        );
        assert_eq!(n.acknowledged, vec![("blksize", 1024), ("windowsize", 64)]);
    }

    proptest! {
        #[test]
        fn nothing_above_what_was_asked(asked in 0u64..100_000, window in 0u64..100_000, max in 8u16..) {
            let (a, w) = (asked.to_string(), window.to_string());
            let n = negotiate(&[(b"blksize", a.as_bytes()), (b"windowsize", w.as_bytes())], Some(5), max);
            for (name, value) in &n.acknowledged {
                let limit = if *name == "blksize" { asked } else { window };
                prop_assert!(*value <= limit && *value > 0);
            }
            prop_assert!(n.block_size >= 8 && n.window >= 1);
        }
    }
}
