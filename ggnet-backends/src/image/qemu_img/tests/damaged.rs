//! Truncated, lying and foreign images: a clear error, and no incomplete file.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use ggnet_core::{error::ErrorKind, nouns::ImageFormat, ports::ImageConverter as _};

use super::{Lab, MIB, both_fail, convert, converter, qemu_img};

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[tokio::test]
async fn a_truncated_image_of_any_format_is_corrupt() {
    for (qemu, options, format) in [
        ("qcow2", vec![], ImageFormat::Qcow2),
        ("qcow2", vec!["-c"], ImageFormat::Qcow2),
        ("vpc", vec![], ImageFormat::Vhd),
        ("vhdx", vec![], ImageFormat::Vhdx),
        ("vmdk", vec![], ImageFormat::Vmdk),
        ("vmdk", vec!["-o", "subformat=streamOptimized"], ImageFormat::Vmdk),
        ("vdi", vec![], ImageFormat::Vdi),
    ] {
        let lab = Lab::new();
        let image = lab.make("image", qemu, &options);
        let len = fs::metadata(&image).unwrap().len();
        let keep = if qemu == "vhdx" { len - 9 * MIB } else { len / 2 };
        File::options().write(true).open(&image).unwrap().set_len(keep).unwrap();
        let e = both_fail(&lab, &image, format).await;
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{qemu} {options:?}: {e}");
    }
}

#[tokio::test]
async fn a_header_alone_is_corrupt() {
    for (qemu, format) in [
        ("qcow2", ImageFormat::Qcow2),
        ("vpc", ImageFormat::Vhd),
        ("vhdx", ImageFormat::Vhdx),
        ("vmdk", ImageFormat::Vmdk),
        ("vdi", ImageFormat::Vdi),
    ] {
        for keep in [80, 512, 4096] {
            let lab = Lab::new();
            let image = lab.make("image", qemu, &[]);
            File::options().write(true).open(&image).unwrap().set_len(keep).unwrap();
            let e = both_fail(&lab, &image, format).await;
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{qemu} cut to {keep}: {e}");
        }
    }
}

#[tokio::test]
async fn damaged_data_is_found_at_the_latest_while_converting() {
    let lab = Lab::new();
    // Numbers as text: random bytes would not be compressed at all.
    let text: String = (0..1_000_000).map(|n| format!("{n}\n")).collect();
    patch(&lab.path("disk.raw"), 0, text.as_bytes());
    let image = lab.make("image", "qcow2", &["-c"]);
    converter().probe(&image).await.unwrap();
    // Compressed clusters follow the metadata; a cluster full of ones is not a deflate stream.
    patch(&image, 700_000, &[0xff; 200_000]);
    let e = convert(&image, ImageFormat::Qcow2, &lab.path("out.raw")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert!(!lab.path("out.raw").exists() && lab.leftovers().is_empty());
}

#[tokio::test]
async fn an_image_marked_corrupt_is_corrupt() {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    patch(&image, 72, &2_u64.to_be_bytes());
    assert_eq!(both_fail(&lab, &image, ImageFormat::Qcow2).await.kind(), ErrorKind::Corrupt);
}

/// Bytes to write, and their offset.
type Changes<'a> = &'a [(u64, &'a [u8])];

/// A qcow2 file whose header has what `change` sets, sparse and 64 MiB long so that its tables "exist".
fn lying(lab: &Lab, name: &str, change: Changes<'_>) -> std::path::PathBuf {
    qemu_img(lab.dir.path(), &["create", "-f", "qcow2", name, "1M"]);
    let image = lab.path(name);
    File::options().write(true).open(&image).unwrap().set_len(64 * MIB).unwrap();
    for (at, bytes) in change {
        patch(&image, *at, bytes);
    }
    image
}

#[tokio::test]
async fn lying_headers_are_held() {
    let lab = Lab::new();
    let exbi = (1_u64 << 60).to_be_bytes();
    let (size, cluster_bits, l1_size) = (24, 20, 36);
    // 1 EiB with a table for 1 MiB; the same with the largest clusters and the table that fits; tables of 16 GiB and of 32 MiB.
    let cases: [(&str, Changes<'_>); 5] = [
        ("exbibyte", &[(size, &exbi)]),
        (
            "exbibyte-whole",
            &[(size, &exbi), (cluster_bits, &21_u32.to_be_bytes()), (l1_size, &(1_u32 << 21).to_be_bytes())],
        ),
        ("huge-l1", &[(l1_size, &0x7fff_ffff_u32.to_be_bytes())]),
        ("largest-l1", &[(l1_size, &(4_u32 << 20).to_be_bytes())]),
        ("no-clusters", &[(cluster_bits, &63_u32.to_be_bytes())]),
    ];
    for (name, change) in cases {
        let image = lying(&lab, name, change);
        let e = both_fail(&lab, &image, ImageFormat::Qcow2).await;
        assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid), "{name}: {e}");
        assert!(!e.is_retryable(), "{name}: {e}");
    }
}

#[tokio::test]
async fn a_disk_larger_than_the_limit_is_refused_with_both_numbers() {
    let lab = Lab::new();
    let dir = lab.dir.path();
    qemu_img(dir, &["create", "-f", "qcow2", "-o", "cluster_size=2M", "large", "17T"]);
    let e = both_fail(&lab, &lab.path("large"), ImageFormat::Qcow2).await;
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
    assert!(e.message().contains(&(17_u64 << 40).to_string()), "{e}");
    assert!(e.message().contains(&(16_u64 << 40).to_string()), "{e}");
}

#[tokio::test]
async fn a_large_sparse_disk_within_the_limit_is_no_problem() {
    let lab = Lab::new();
    qemu_img(lab.dir.path(), &["create", "-f", "qcow2", "large", "2T"]);
    assert_eq!(converter().probe(&lab.path("large")).await.unwrap().virtual_size, 2 << 40);
}

#[tokio::test]
async fn an_empty_file_and_an_empty_disk_are_refused() {
    let lab = Lab::new();
    File::create(lab.path("empty")).unwrap();
    let e = converter().probe(&lab.path("empty")).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
    let e = convert(&lab.path("empty"), ImageFormat::Raw, &lab.path("out.raw")).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
    qemu_img(lab.dir.path(), &["create", "-f", "qcow2", "zero", "0"]);
    let e = both_fail(&lab, &lab.path("zero"), ImageFormat::Qcow2).await;
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
}
