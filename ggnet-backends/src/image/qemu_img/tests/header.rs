//! The header reader with arbitrary bytes: it never panics, and the magic number decides.

use ggnet_core::{error::ErrorKind, nouns::ImageFormat};
use proptest::prelude::*;

use crate::image::qemu_img::header::{HEAD, TAIL, sniff};

const MAGICS: [&[u8]; 6] =
    [b"QFI\xfb", b"conectix", b"vhdxfile", b"KDMV", b"\x7f\x10\xda\xbe", b"# Disk DescriptorFile"];

proptest! {
    #[test]
    fn any_bytes(
        magic in 0..MAGICS.len(),
        at in prop_oneof![Just(0_usize), Just(0x40)],
        mut head in prop::collection::vec(any::<u8>(), 0..HEAD),
        tail in prop::collection::vec(any::<u8>(), 0..=TAIL),
        len in any::<u64>(),
    ) {
        let magic = MAGICS[magic];
        if let Some(place) = head.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        match sniff(&head, &tail, len) {
            Ok(_) => {}
            Err(e) => prop_assert!(matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Corrupt)),
        }
    }
}

#[test]
fn a_footer_makes_a_fixed_vhd_only_when_its_size_fits() {
    let mut tail = [0_u8; TAIL];
    tail[..8].copy_from_slice(b"conectix");
    tail[48..56].copy_from_slice(&1_048_576_u64.to_be_bytes());
    tail[60..64].copy_from_slice(&2_u32.to_be_bytes());
    assert_eq!(sniff(&[0; HEAD], &tail, 1_048_576 + 512).unwrap(), ImageFormat::Vhd);
    assert_eq!(sniff(&[0; HEAD], &tail, 1_048_576).unwrap(), ImageFormat::Raw);
}

#[test]
fn a_disk_with_text_at_its_beginning_is_raw() {
    assert_eq!(sniff(b"#!/bin/sh\necho hello\n", &[], 21).unwrap(), ImageFormat::Raw);
    let descriptor = b"#comment\n\n  version=1\nRW 1 FLAT \"/etc/passwd\" 0\n";
    assert_eq!(sniff(descriptor, &[], 50).unwrap_err().kind(), ErrorKind::Invalid);
}
