//! Every format is imported completely: the bytes are equal, the file is sparse, the source is unchanged.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use ggnet_core::{
    block::{BlockDevice, BlockInfo},
    error::{ErrorKind, code},
    nouns::ImageFormat,
    ports::{ConvertSpec, Health, ImageConverter as _, Sink},
};
use tokio_util::sync::CancellationToken;

use super::{
    Lab, QemuImgConfig, allocated, convert, converter, converter_with, hash, listening, qemu_img, quiet, spec,
};

/// Imports `disk.raw`, made into `format` by qemu-img, and compares every byte.
async fn comes_in_whole(qemu: &str, options: &[&str], format: ImageFormat) {
    let lab = Lab::new();
    let source = if qemu == "raw" { lab.path("disk.raw") } else { lab.make("image", qemu, options) };
    let before = fs::read(&source).unwrap();
    let what = format!("{qemu} {options:?}");

    let probe = converter().probe(&source).await.unwrap();
    assert_eq!(probe.format, format, "{what}");
    // VHD's geometry may round a disk up by less than a cylinder (16 heads x 255 sectors), and by no more.
    let slack = if format == ImageFormat::Vhd { 16 * 255 * 512 } else { 0 };
    assert!((Lab::SIZE..=Lab::SIZE + slack).contains(&probe.virtual_size), "{what}: {probe:?}");
    assert_eq!(probe.actual_size, allocated(&source), "{what}");

    let out = lab.path("out.raw");
    let (progress, heard) = listening();
    let job = ConvertSpec { virtual_size: probe.virtual_size, ..spec(&source, format, &out) };
    let done = converter().convert(&job, progress, CancellationToken::new()).await.unwrap();
    assert_eq!(done.size_bytes, probe.virtual_size, "{what}");
    let raw = fs::read(&out).unwrap();
    assert_eq!(done.sha256, hash(&raw), "{what}");
    assert_eq!(raw.len() as u64, probe.virtual_size, "{what}");
    let (disk, rest) = raw.split_at(lab.content.len());
    assert!(disk == lab.content && rest.iter().all(|b| *b == 0), "{what}: the bytes differ");
    assert!(allocated(&out) < 3 << 20, "{what}: not sparse, {} bytes", allocated(&out));

    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.last(), Some(&1000), "{what}");
    assert!(heard.is_sorted_by(|a, b| a < b), "{what}: {heard:?}");
    assert!(lab.leftovers().is_empty(), "{what}");
    assert!(fs::read(&source).unwrap() == before, "{what}: the source changed");
}

#[tokio::test]
async fn raw() {
    comes_in_whole("raw", &[], ImageFormat::Raw).await;
}

#[tokio::test]
async fn qcow2() {
    comes_in_whole("qcow2", &[], ImageFormat::Qcow2).await;
    comes_in_whole("qcow2", &["-o", "compat=0.10"], ImageFormat::Qcow2).await;
    comes_in_whole("qcow2", &["-c"], ImageFormat::Qcow2).await;
    comes_in_whole("qcow2", &["-c", "-o", "compression_type=zstd"], ImageFormat::Qcow2).await;
    comes_in_whole("qcow2", &["-o", "extended_l2=on,lazy_refcounts=on"], ImageFormat::Qcow2).await;
}

#[tokio::test]
async fn vhd() {
    comes_in_whole("vpc", &[], ImageFormat::Vhd).await;
    comes_in_whole("vpc", &["-o", "force_size=on"], ImageFormat::Vhd).await;
    comes_in_whole("vpc", &["-o", "subformat=fixed,force_size=on"], ImageFormat::Vhd).await;
}

/// A VHD footer according to the specification, as VirtualBox and others write it: the geometry is smaller than the size.
fn footer(creator: &[u8; 4], kind: u32, data_offset: u64) -> [u8; 512] {
    let mut f = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"conectix");
    put(8, &2_u32.to_be_bytes());
    put(12, &0x1_0000_u32.to_be_bytes());
    put(16, &data_offset.to_be_bytes());
    put(28, creator);
    put(40, &Lab::SIZE.to_be_bytes());
    put(48, &Lab::SIZE.to_be_bytes());
    let (heads, sectors) = (4_u8, 17_u8);
    let track = u64::from(heads) * u64::from(sectors);
    let cylinders = u16::try_from(Lab::SIZE / 512 / track).unwrap();
    assert!(u64::from(cylinders) * track * 512 < Lab::SIZE);
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    put(60, &kind.to_be_bytes());
    let sum: u32 = f.iter().map(|b| u32::from(*b)).sum();
    f[64..68].copy_from_slice(&(!sum).to_be_bytes());
    f
}

fn put(path: &Path, bytes: &[u8]) {
    fs::File::create(path).unwrap().write_all_at(bytes, 0).unwrap();
}

#[tokio::test]
async fn a_vhd_of_another_tool_keeps_the_end_of_its_disk() {
    for creator in [b"vbox", b"vhd2", b"win "] {
        let lab = Lab::new();
        let (fixed, dynamic) =
            (lab.path("fixed.vhd"), lab.make("dynamic.vhd", "vpc", &["-o", "force_size=on"]));
        let plain = [&lab.content[..], &footer(creator, 2, u64::MAX)].concat();
        put(&fixed, &plain);
        let mut bytes = fs::read(&dynamic).unwrap();
        let end = bytes.len() - 512;
        // The first dynamic header follows the copy of the footer.
        let both = footer(creator, 3, 512);
        bytes[..512].copy_from_slice(&both);
        bytes[end..].copy_from_slice(&both);
        put(&dynamic, &bytes);
        for source in [fixed, dynamic] {
            let out = lab.path("out.raw");
            let what = format!("{} of {}", source.display(), String::from_utf8_lossy(creator));
            assert_eq!(
                convert(&source, ImageFormat::Vhd, &out).await.unwrap().size_bytes,
                Lab::SIZE,
                "{what}"
            );
            assert!(fs::read(&out).unwrap() == lab.content, "{what}: the bytes differ");
            fs::remove_file(out).unwrap();
        }
    }
}

#[tokio::test]
async fn vhdx() {
    comes_in_whole("vhdx", &[], ImageFormat::Vhdx).await;
    comes_in_whole("vhdx", &["-o", "subformat=fixed"], ImageFormat::Vhdx).await;
}

#[tokio::test]
async fn vmdk() {
    comes_in_whole("vmdk", &["-o", "subformat=monolithicSparse"], ImageFormat::Vmdk).await;
    comes_in_whole("vmdk", &["-o", "subformat=streamOptimized"], ImageFormat::Vmdk).await;
}

#[tokio::test]
async fn vdi() {
    comes_in_whole("vdi", &[], ImageFormat::Vdi).await;
    comes_in_whole("vdi", &["-o", "static=on"], ImageFormat::Vdi).await;
}

#[tokio::test]
async fn a_raw_file_that_ends_within_a_sector_is_filled_with_zeros() {
    let lab = Lab::new();
    let (source, out) = (lab.path("odd.raw"), lab.path("out.raw"));
    fs::copy(lab.path("disk.raw"), &source).unwrap();
    fs::File::options().write(true).open(&source).unwrap().set_len(100_000).unwrap();
    assert_eq!(converter().probe(&source).await.unwrap().virtual_size, 100_352);
    assert_eq!(convert(&source, ImageFormat::Raw, &out).await.unwrap().size_bytes, 100_352);
    let raw = fs::read(&out).unwrap();
    assert!(raw[..100_000] == lab.content[..100_000] && raw[100_000..] == [0; 352]);
}

#[tokio::test]
async fn of_an_image_with_snapshots_the_current_state_comes_in() {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    qemu_img(lab.dir.path(), &["snapshot", "-c", "before", "image"]);
    super::tool("qemu-io", lab.dir.path(), &["-f", "qcow2", "-c", "write -P 0x5a 1M 64k", "image"]);
    let out = lab.path("out.raw");
    convert(&image, ImageFormat::Qcow2, &out).await.unwrap();
    assert!(fs::read(&out).unwrap()[1 << 20..(1 << 20) + 65536].iter().all(|b| *b == 0x5a));
}

#[tokio::test]
async fn a_stated_raw_copies_bytes_and_interprets_none() {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    let out = lab.path("out.raw");
    convert(&image, ImageFormat::Raw, &out).await.unwrap();
    assert!(fs::read(&out).unwrap().starts_with(&fs::read(&image).unwrap()));
}

#[tokio::test]
async fn a_wrongly_stated_format_is_refused_and_names_both() {
    let lab = Lab::new();
    let image = lab.make("image", "vmdk", &[]);
    let e = convert(&image, ImageFormat::Qcow2, &lab.path("out.raw")).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("format")));
    assert!(e.message().contains("vmdk") && e.message().contains("qcow2"), "{e}");
}

#[tokio::test]
async fn what_an_earlier_conversion_left_in_the_sink_is_not_in_the_image() {
    let lab = Lab::new();
    let out = lab.path("out.raw");
    // Longer than the disk, and with data where the disk has holes.
    super::dense(&out, Lab::SIZE + 4096);
    let earlier = fs::File::options().write(true).open(&out).unwrap();
    convert(&lab.path("disk.raw"), ImageFormat::Raw, &out).await.unwrap();
    // A qemu-img that was killed may still be in its last write.
    earlier.write_all_at(&[0xAA; 4096], 0).unwrap();
    assert!(fs::read(&out).unwrap() == lab.content);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(lab.leftovers().is_empty());
}

#[tokio::test]
async fn a_link_in_the_sinks_place_is_not_followed() {
    let lab = Lab::new();
    let (out, other) = (lab.path("out.raw"), lab.path("other"));
    fs::copy("/etc/hostname", &other).unwrap();
    std::os::unix::fs::symlink(&other, &out).unwrap();
    convert(&lab.path("disk.raw"), ImageFormat::Raw, &out).await.unwrap();
    assert!(fs::read(&out).unwrap() == lab.content);
    assert_eq!(fs::read(&other).unwrap(), fs::read("/etc/hostname").unwrap());
}

#[tokio::test]
async fn what_takes_the_sinks_place_meanwhile_stays_and_is_no_image() {
    let lab = Lab::new();
    let out = lab.path("out.raw");
    let rival = out.clone();
    // The first progress is reported while qemu-img runs.
    let progress: ggnet_core::ports::Progress = Arc::new(move |p| {
        if p < 1000 && fs::metadata(&rival).unwrap().len() == Lab::SIZE {
            fs::remove_file(&rival).unwrap();
            fs::copy("/etc/hostname", &rival).unwrap();
        }
    });
    let spec = spec(&lab.path("disk.raw"), ImageFormat::Raw, &out);
    let e = converter().convert(&spec, progress, CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert_eq!(fs::read(&out).unwrap(), fs::read("/etc/hostname").unwrap());
}

/// A sink that is not a file.
struct Nowhere;

impl BlockDevice for Nowhere {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: Lab::SIZE,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            discard: false,
        }
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        panic!("nobody reads it")
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("nobody writes it")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("nobody discards it")
    }
}

#[tokio::test]
async fn blocks_are_no_sink_and_another_size_than_was_probed_is_refused() {
    let lab = Lab::new();
    let out = lab.path("out.raw");
    let mut job = spec(&lab.path("disk.raw"), ImageFormat::Raw, &out);
    job.virtual_size += 512;
    let e = converter().convert(&job, quiet(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.code(), &code::import_source_changed(), "{e}");
    assert!(!out.exists());
    job.sink = Sink::Blocks(Arc::new(Nowhere));
    let e = converter().convert(&job, quiet(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
}

#[tokio::test]
async fn missing_files_and_folders_are_not_found() {
    let lab = Lab::new();
    let e = converter().probe(&lab.path("nothing")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    let e = convert(&lab.path("disk.raw"), ImageFormat::Raw, &lab.path("no/folder.raw")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
}

#[tokio::test]
async fn health_and_version_are_the_installed_programs() {
    let version = converter().version().await.expect("apt-get install qemu-utils");
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    assert_eq!(converter().health().await, Health::Up);
}

#[tokio::test]
async fn a_missing_program_is_unavailable_and_says_how_to_get_it() {
    let lab = Lab::new();
    let none =
        converter_with(QemuImgConfig { program: "no-such-qemu-img".into(), ..QemuImgConfig::default() });
    let e = none.probe(&lab.path("disk.raw")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert_eq!(e.hint(), Some("apt-get install qemu-utils"));
    let Health::Down(why) = none.health().await else { panic!("must be down") };
    assert!(why.contains("no-such-qemu-img") && why.contains("apt-get install qemu-utils"), "{why}");
    let other = converter_with(QemuImgConfig { program: "true".into(), ..QemuImgConfig::default() });
    assert!(matches!(other.health().await, Health::Down(_)), "a program that is no qemu-img");
}
