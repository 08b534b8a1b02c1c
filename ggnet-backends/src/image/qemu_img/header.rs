//! Reads the first and last bytes of a disk image, so that qemu-img never has to guess the format.
//!
//! Only the decisive parts are read: the magic number, and the fields by which an image refers to another file, is encrypted, or claims
//! data that the file does not have. qemu-img parses everything else, in its limited child process. A file without a known magic number is
//! raw. Layouts: QEMU docs/interop/qcow2.txt; VHD specification 1.0; MS-VHDX 2.2.1; VMware Virtual Disk Format 5.0; VirtualBox VDICore.h.

use ggnet_core::{
    error::{Error, Result, code},
    nouns::ImageFormat,
};

/// Number of bytes at the beginning that [`sniff`] reads.
pub(super) const HEAD: usize = 4096;
/// Number of bytes at the end that [`sniff`] reads.
pub(super) const TAIL: usize = 512;

/// The format of a file of `len` bytes with this beginning and end.
///
/// `Invalid` (field `path`) if it cannot be imported, `Corrupt` if it contradicts itself.
pub(super) fn sniff(head: &[u8], tail: &[u8], len: u64) -> Result<ImageFormat> {
    if len == 0 {
        return refuse("the file is empty");
    }
    let h = Header(head);
    if h.starts(b"QFI\xfb") {
        return qcow2(h);
    }
    if h.starts(b"conectix") {
        return vhd(h);
    }
    if h.starts(b"vhdxfile") {
        return Ok(ImageFormat::Vhdx);
    }
    if h.starts(b"KDMV") {
        return vmdk(h);
    }
    if h.u32_le(0x40) == Some(0xbeda_107f) {
        return vdi(h, len);
    }
    if let Some(what) = foreign(h, tail) {
        return refuse(&what);
    }
    if fixed_vhd(Header(tail), len) {
        return Ok(ImageFormat::Vhd);
    }
    Ok(ImageFormat::Raw)
}

/// The size of the disk in the image's own header, in bytes; `None` if there is no header, or if it is not a single field (VHDX).
pub(super) fn stated_size(format: ImageFormat, head: &[u8], tail: &[u8]) -> Option<u64> {
    let head = Header(head);
    match format {
        ImageFormat::Qcow2 => head.u64_be(24),
        // "Current Size". The geometry in the footer is smaller: the largest product of cylinders, heads and sectors below the size.
        ImageFormat::Vhd if head.starts(b"conectix") => head.u64_be(48),
        ImageFormat::Vhd => Header(tail).u64_be(48),
        ImageFormat::Vmdk => head.u64_le(12)?.checked_mul(512),
        ImageFormat::Vdi => head.u64_le(0x170),
        ImageFormat::Raw | ImageFormat::Vhdx => None,
    }
}

fn refuse<T>(why: &str) -> Result<T> {
    Err(refused(why))
}

/// The error for a valid image that cannot be imported.
pub(super) fn refused(why: &str) -> Error {
    Error::invalid("path", format!("The image cannot be imported: {why}")).with_code(code::image_refused(why))
}

fn corrupt<T>(why: impl Into<String>) -> Result<T> {
    let why = why.into();
    Err(Error::new(code::image_damaged(&why), why))
}

fn qcow2(h: Header<'_>) -> Result<ImageFormat> {
    let (Some(version), Some(backing), Some(encryption)) = (h.u32_be(4), h.u64_be(8), h.u32_be(32)) else {
        return corrupt("The qcow2 header is cut off");
    };
    // Feature bits exist from version 3 on; in older versions these bytes are whatever follows a shorter header.
    let features = if version >= 3 { h.u64_be(72).unwrap_or(0) } else { 0 };
    match version {
        1 => {
            return refuse(
                "it uses the old qcow version 1; convert it with `qemu-img convert -f qcow -O qcow2`",
            );
        }
        2 | 3 => {}
        other => return refuse(&format!("it uses qcow2 version {other}, which is unknown")),
    }
    if backing != 0 {
        return refuse("it has a backing file; flatten it with `qemu-img convert -O qcow2`");
    }
    if features & 0b100 != 0 {
        return refuse("its data is in an external data file; convert it with `qemu-img convert -O qcow2`");
    }
    if encryption != 0 {
        return refuse("it is encrypted");
    }
    if features & 0b10 != 0 {
        return corrupt("The qcow2 image is marked as corrupt");
    }
    Ok(ImageFormat::Qcow2)
}

/// A dynamic VHD starts with a copy of its footer (VHD specification, "Hard Disk Footer Format").
fn vhd(h: Header<'_>) -> Result<ImageFormat> {
    match h.u32_be(60) {
        Some(4) => refuse("it is a differencing VHD, which needs its parent; merge it first"),
        Some(2 | 3) => Ok(ImageFormat::Vhd),
        Some(other) => refuse(&format!("it is a VHD of unknown type {other}")),
        None => corrupt("The VHD header is cut off"),
    }
}

/// A fixed VHD is the plain disk followed by a footer; without this check it would count as raw, with the footer as its last sector.
fn fixed_vhd(tail: Header<'_>, len: u64) -> bool {
    tail.0.len() == TAIL
        && tail.starts(b"conectix")
        && tail.u32_be(60) == Some(2)
        && tail.u64_be(48) == Some(len - TAIL as u64)
}

fn vmdk(h: Header<'_>) -> Result<ImageFormat> {
    let (Some(capacity), Some(descriptor)) = (h.u64_le(12), h.u64_le(28)) else {
        return corrupt("The VMDK header is cut off");
    };
    // With a capacity of 0 the embedded descriptor is used, and it may refer to any file of this host.
    if capacity == 0 {
        return refuse("it is a VMDK whose data is in other files");
    }
    if descriptor == 0 {
        return refuse(
            "it is one part of a split VMDK; join the parts with `vmware-vdiskmanager -t 0` or qemu-img",
        );
    }
    Ok(ImageFormat::Vmdk)
}

fn vdi(h: Header<'_>, len: u64) -> Result<ImageFormat> {
    let fields = (h.u32_le(0x4c), h.u32_le(0x158), h.u32_le(0x178), h.u32_le(0x184));
    let (Some(kind), Some(data), Some(block), Some(allocated)) = fields else {
        return corrupt("The VDI header is cut off");
    };
    if kind == 4 {
        return refuse("it is a differencing VDI, which needs its parent; clone it first");
    }
    // qemu-img reads missing data at the end as zeros without an error.
    let needed = u64::from(data).saturating_add(u64::from(block).saturating_mul(u64::from(allocated)));
    if needed > len {
        return corrupt(format!("The VDI image is truncated: it needs {needed} bytes and has {len}"));
    }
    Ok(ImageFormat::Vdi)
}

/// Formats that are certainly not a raw disk: importing them as raw would give a disk that never boots.
fn foreign(h: Header<'_>, tail: &[u8]) -> Option<String> {
    const MAGICS: [(&[u8], &str); 9] = [
        (b"COWD", "a VMware ESX sparse extent"),
        (b"\xbe\xba\xfe\xca\x00\x00\x00\x00", "a VMware SE sparse extent"),
        (b"LUKS\xba\xbe", "encrypted by LUKS"),
        (b"QED\x00", "a QED image"),
        (b"WithoutFreeSpace", "a Parallels image"),
        (b"WithouFreSpacExt", "a Parallels image"),
        (b"Bochs Virtual HD Image", "a Bochs image"),
        (b"#!/bin/sh\n#V2.0 Format", "a cloop image"),
        (b"EVF\x09\x0d\x0a\xff\x00", "an EnCase image"),
    ];
    const PACKED: [(&[u8], &str); 7] = [
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| h.starts(magic)) {
        return Some(format!("it is {what}, which is not supported"));
    }
    if let Some((_, what)) = PACKED.iter().find(|(magic, _)| h.starts(magic)) {
        return Some(format!("it is compressed with {what}; decompress it first"));
    }
    if tail.len() == TAIL && tail.starts_with(b"koly") {
        return Some("it is an Apple DMG image, which is not supported".to_owned());
    }
    if h.is_vmdk_descriptor() {
        return Some("it is a VMDK descriptor, whose data is in other files".to_owned());
    }
    None
}

/// Reads fields by offset; `None` if the file is too short.
#[derive(Clone, Copy)]
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn starts(self, magic: &[u8]) -> bool {
        self.0.starts_with(magic)
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }

    fn u32_be(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64_be(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_be_bytes)
    }

    fn u32_le(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64_le(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Text whose first line (except empty lines and comments) sets `version`, or that says it is a descriptor.
    fn is_vmdk_descriptor(self) -> bool {
        if self.starts(b"# Disk DescriptorFile") {
            return true;
        }
        self.0
            .split(|b| *b == b'\n')
            .map(<[u8]>::trim_ascii)
            .find(|l| !l.is_empty() && !l.starts_with(b"#"))
            .is_some_and(|l| l.starts_with(b"version="))
    }
}
