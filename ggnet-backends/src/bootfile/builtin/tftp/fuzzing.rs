//! The properties that must hold for every datagram to the TFTP server. The fuzz target `tftp_packet` and the test `fuzz_corpus` run them.
//!
//! Input: one byte that selects file size and link, then the datagram.
//!
//! The assertions are the purpose of this module: a violated property panics.

use bytes::Bytes;

use super::content::{Content, blocks};
use super::options::negotiate;
use super::packet::{ErrorCode, MAX_REQUEST, Mode, Packet, Request, begin_data, encode_error, encode_oack};

/// The longest option acknowledgement: four options, each with its longest value.
const MAX_OACK: usize =
    2 + "blksize\x0065464\0windowsize\x0064\0timeout\x0030\0tsize\x0018446744073709551615\0".len();

/// Decodes a datagram and processes a request up to its first response.
pub fn packet(input: &[u8]) {
    let Some((&choice, datagram)) = input.split_first() else { return };
    netascii(datagram, choice);
    match Packet::decode(datagram) {
        Ok(Packet::Read(request)) => {
            assert!(datagram.len() <= MAX_REQUEST, "a request beyond the limit is read");
            read(&request, choice);
        }
        Ok(Packet::Write(path)) => {
            assert!(datagram.len() <= MAX_REQUEST, "a request beyond the limit is read");
            assert!(!path.contains(&0), "a path with a zero in it");
        }
        Ok(Packet::Ack(block)) => {
            let [high, low] = block.to_be_bytes();
            assert_eq!(datagram[..4], [0, 4, high, low], "an ACK reads as another");
        }
        Ok(Packet::Error(code, message)) => {
            let again = [&[0, 5], &code.to_be_bytes()[..], message, &[0]].concat();
            assert_eq!(Packet::decode(&again), Ok(Packet::Error(code, message)), "an ERROR reads as another");
            refuse(message);
        }
        Ok(Packet::ServersOwn) => {
            let mut data = Vec::new();
            begin_data(&mut data, u16::from(choice));
            data.extend_from_slice(datagram);
            assert_eq!((&data[..3], &data[4..]), (&[0, 3, 0][..], datagram), "DATA bears another payload");
        }
        Err(why) => assert!(!why.to_string().is_empty(), "a refusal without a reason"),
    }
}

fn read(request: &Request<'_>, choice: u8) {
    let mut again = [&[0, 1], request.path, &[0], request.mode, &[0]].concat();
    for (name, value) in &request.options {
        assert!(!name.is_empty(), "an option without a name");
        again.extend([name, &[0][..], value, &[0]].concat());
    }
    assert_eq!(Packet::decode(&again), Ok(Packet::Read(request.clone())), "a request reads as another");

    let path = request.clean_path();
    assert!(!path.starts_with('/') && !path.contains(['\\', '\0']), "the path is not in our spelling");
    assert!(path.len() <= request.path.len() * 3, "the path grew beyond its replacement characters");
    let _ = request.transfer_mode();

    let size = [0, 511, 1 << 20, u64::MAX][usize::from(choice & 3)];
    let max_block = [512, 1468, 8972, u16::MAX][usize::from(choice >> 2 & 3)];
    let agreed = negotiate(&request.options, Some(size), max_block);
    assert!((8..=max_block).contains(&agreed.block_size), "a block of {} bytes", agreed.block_size);
    assert!((1..=64).contains(&agreed.window), "a window of {} blocks", agreed.window);
    assert!(
        agreed.timeout.is_none_or(|t| (1..=30).contains(&t.as_secs())),
        "a timeout of {:?}",
        agreed.timeout
    );
    for (i, (name, value)) in agreed.acknowledged.iter().enumerate() {
        assert!(!agreed.acknowledged[..i].iter().any(|(other, _)| other == name), "{name} twice");
        let same = |asked: &&[u8]| asked.eq_ignore_ascii_case(name.as_bytes());
        let mut asked = request.options.iter().filter(|(n, _)| same(n)).filter_map(|(_, v)| number(v));
        assert!(
            asked.any(|asked| if *name == "tsize" { *value == size } else { *value <= asked }),
            "{name}={value} was not asked for"
        );
    }
    let mut oack = Vec::new();
    encode_oack(&mut oack, &agreed.acknowledged);
    assert!(oack.len() <= MAX_OACK, "an acknowledgement of {} bytes", oack.len());
    assert_eq!(Packet::decode(&oack), Ok(Packet::ServersOwn));
}

/// An error that quotes the client is one string with exactly one zero, at its end.
fn refuse(quoted: &[u8]) {
    let mut error = Vec::new();
    encode_error(&mut error, ErrorCode::NotFound, &String::from_utf8_lossy(quoted));
    assert_eq!(error.iter().skip(4).position(|b| *b == 0), Some(error.len() - 5), "the message is cut");
    assert!(matches!(Packet::decode(&error), Ok(Packet::Error(1, _))));
}

/// A client decodes netascii to the original file.
fn netascii(file: &[u8], choice: u8) {
    let size = u16::from(choice).max(1);
    let blocks = blocks(&Content::new(Bytes::copy_from_slice(file), Mode::Netascii), size);
    let (last, full) = blocks.split_last().map_or((0, &[][..]), |(last, full)| (last.len(), full));
    assert!(last < usize::from(size) && full.iter().all(|b| b.len() == usize::from(size)), "a short block");
    let wire = blocks.concat();
    let mut rest = wire.iter().copied();
    let mut back = Vec::new();
    while let Some(b) = rest.next() {
        back.push(match b {
            b'\r' => match rest.next() {
                Some(b'\n') => b'\n',
                Some(0) => b'\r',
                other => unreachable!("CR and then {other:?}"),
            },
            other => other,
        });
    }
    assert_eq!(back, file, "netascii does not come back");
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
