//! TFTP packets on the wire (RFC 1350, options RFC 2347): what a read-only server reads and writes.
//!
//! Invariants: [`Packet::decode`] never panics, whatever the input; its result borrows from the input. Encoders write into the caller's
//! buffer, which they clear first.

/// The largest request that is accepted. RFC 2347 allows 512 octets; firmware with long paths and all options stays far below this.
pub(super) const MAX_REQUEST: usize = 1500;

/// Error codes of RFC 1350 section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum ErrorCode {
    /// Not defined; see the message.
    Undefined = 0,
    /// File not found.
    NotFound = 1,
    /// Access violation.
    Access = 2,
    /// Illegal TFTP operation.
    Illegal = 4,
}

/// The transfer mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Unchanged bytes.
    Octet,
    /// Lines end with CR LF, a bare CR is CR NUL (RFC 764).
    Netascii,
}

/// A read request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    /// The path as sent, not validated.
    pub(super) path: &'a [u8],
    /// The mode as sent.
    pub(super) mode: &'a [u8],
    /// The options in order; names are not lowercased.
    pub(super) options: Vec<(&'a [u8], &'a [u8])>,
}

/// A packet that a client may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// RRQ.
    Read(Request<'a>),
    /// WRQ; its path is only used for the log.
    Write(&'a [u8]),
    /// ACK of a block.
    Ack(u16),
    /// ERROR: code and message. It ends a transfer and never gets a response.
    Error(u16, &'a [u8]),
    /// DATA or OACK, which only a server sends.
    ServersOwn,
}

/// Why the bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Shorter than its kind requires, or longer than any request.
    Length,
    /// An unknown operation code.
    Opcode(u16),
    /// A string without its terminating zero.
    Unterminated,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length => f.write_str("wrong length"),
            Self::Opcode(code) => write!(f, "unknown operation {code}"),
            Self::Unterminated => f.write_str("a string without its terminating zero"),
        }
    }
}

impl<'a> Packet<'a> {
    /// Decodes one packet.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (&[high, low], rest) = bytes.split_first_chunk::<2>().ok_or(Malformed::Length)?;
        match u16::from_be_bytes([high, low]) {
            1 | 2 if bytes.len() > MAX_REQUEST => Err(Malformed::Length),
            1 => Request::decode(rest).map(Packet::Read),
            2 => Request::decode(rest).map(|request| Packet::Write(request.path)),
            3 | 6 => Ok(Packet::ServersOwn),
            4 => {
                rest.first_chunk::<2>().map(|b| Packet::Ack(u16::from_be_bytes(*b))).ok_or(Malformed::Length)
            }
            5 => {
                let (code, message) = rest.split_first_chunk::<2>().ok_or(Malformed::Length)?;
                // Some firmware omits the message or its zero; the code is enough.
                let end = message.iter().position(|&b| b == 0).unwrap_or(message.len());
                Ok(Packet::Error(u16::from_be_bytes(*code), &message[..end]))
            }
            other => Err(Malformed::Opcode(other)),
        }
    }
}

impl<'a> Request<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let path = take_string(&mut rest).ok_or(Malformed::Unterminated)?;
        let mode = take_string(&mut rest).ok_or(Malformed::Unterminated)?;
        let mut options = Vec::new();
        // A name without a value ends the options but does not invalidate the request, because firmware pads its requests.
        while let Some(name) = take_string(&mut rest).filter(|name| !name.is_empty()) {
            let Some(value) = take_string(&mut rest) else { break };
            options.push((name, value));
        }
        Ok(Self { path, mode, options })
    }

    /// The transfer mode; `None` for `mail` and unknown modes.
    pub(super) fn transfer_mode(&self) -> Option<Mode> {
        if self.mode.eq_ignore_ascii_case(b"octet") {
            Some(Mode::Octet)
        } else if self.mode.eq_ignore_ascii_case(b"netascii") {
            Some(Mode::Netascii)
        } else {
            None
        }
    }

    /// The normalized path: `/` between components, none at the start. Some firmware reads DHCP option 67 one byte too far and appends its
    /// end mark, 255.
    pub(super) fn clean_path(&self) -> String {
        let end = self.path.iter().rposition(|&b| b != 0xff).map_or(0, |last| last + 1);
        let text = String::from_utf8_lossy(&self.path[..end]).replace('\\', "/");
        text.trim_start_matches('/').to_owned()
    }
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&b| b == 0)?;
    let (string, tail) = rest.split_at(end);
    *rest = &tail[1..];
    Some(string)
}

/// The length of the header of DATA.
pub(super) const DATA_HEADER: usize = 4;

/// Writes the header of DATA; the caller appends the payload.
pub(super) fn begin_data(out: &mut Vec<u8>, block: u16) {
    out.clear();
    out.extend_from_slice(&3u16.to_be_bytes());
    out.extend_from_slice(&block.to_be_bytes());
}

/// Writes OACK.
pub(super) fn encode_oack<'o>(out: &mut Vec<u8>, options: impl IntoIterator<Item = &'o (&'static str, u64)>) {
    out.clear();
    out.extend_from_slice(&6u16.to_be_bytes());
    for (name, value) in options {
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.extend_from_slice(value.to_string().as_bytes());
        out.push(0);
    }
}

/// Writes ERROR.
pub(super) fn encode_error(out: &mut Vec<u8>, code: ErrorCode, message: &str) {
    out.clear();
    out.extend_from_slice(&5u16.to_be_bytes());
    out.extend_from_slice(&(code as u16).to_be_bytes());
    out.extend(message.bytes().filter(|&b| b != 0));
    out.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_with_options_is_read() {
        let Ok(Packet::Read(r)) =
            Packet::decode(b"\0\x01\\boot\\x.kpxe\0OCTET\0BlkSize\x001468\0tsize\x000\0")
        else {
            panic!("not a read request");
        };
        assert_eq!(r.clean_path(), "boot/x.kpxe");
        assert_eq!(r.transfer_mode(), Some(Mode::Octet));
        assert_eq!(r.options, vec![(&b"BlkSize"[..], &b"1468"[..]), (b"tsize", b"0")]);
    }

    #[test]
    fn quirks_of_firmware_are_read() {
        let Ok(Packet::Read(r)) = Packet::decode(b"\0\x01/x\xff\0octet\0\0\0\0") else { panic!("padded") };
        assert_eq!(r.clean_path(), "x");
        assert!(r.options.is_empty());
        let Ok(Packet::Read(r)) = Packet::decode(b"\0\x01x\0octet\0tsize") else { panic!("cut option") };
        assert!(r.options.is_empty());
        assert_eq!(Packet::decode(b"\0\x05\0\x08"), Ok(Packet::Error(8, b"")));
    }

    #[test]
    fn what_is_no_packet_is_named() {
        assert_eq!(Packet::decode(b""), Err(Malformed::Length));
        assert_eq!(Packet::decode(b"\0\x01x"), Err(Malformed::Unterminated));
        assert_eq!(Packet::decode(b"\0\x04\0"), Err(Malformed::Length));
        assert_eq!(Packet::decode(b"\0\x09\0\0"), Err(Malformed::Opcode(9)));
        let long = [b"\0\x01".as_slice(), &[b'a'; MAX_REQUEST], b"\0octet\0"].concat();
        assert_eq!(Packet::decode(&long), Err(Malformed::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(Packet::Read(r)) = Packet::decode(&bytes) {
                prop_assert!(!r.clean_path().starts_with('/'));
                let _ = r.transfer_mode();
            }
        }

        #[test]
        fn any_bytes_after_a_request_code_decode_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..600)) {
            let bytes = [b"\0\x01".as_slice(), &tail].concat();
            if let Ok(Packet::Read(r)) = Packet::decode(&bytes) {
                prop_assert!(r.path.len() + r.mode.len() + 2 <= tail.len());
            }
        }
    }
}
