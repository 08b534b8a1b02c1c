//! Files from an attacker, or unusual files from an operator: nothing outside the image is ever opened, and no name is ever parsed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, net::UnixListener},
    path::Path,
    sync::Arc,
};

use ggnet_core::{error::ErrorKind, nouns::ImageFormat, ports::ImageConverter as _};
use rustix::fs::Mode;

use super::{Lab, MIB, QemuImg, QemuImgConfig, both_fail, convert, converter, qemu_img, tool};
use crate::run::MockCommandRunner;

/// A converter that must not start a program: a rejection that needs qemu-img panics.
fn idle() -> QemuImg {
    QemuImg::new(QemuImgConfig::default(), Arc::new(MockCommandRunner::new()))
}

/// Rejected because of the header alone, with the reason, by probe and by convert.
async fn refused(lab: &Lab, path: &Path, format: ImageFormat, why: &str) {
    let early = idle().probe(path).await.unwrap_err();
    let late = both_fail(lab, path, format).await;
    for e in [early, late] {
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        assert_eq!(e.field(), Some("path"), "{e}");
        assert!(e.message().contains(why), "{e} should say: {why}");
    }
}

#[tokio::test]
async fn images_that_refer_to_other_files_are_refused_before_qemu_img_sees_them() {
    let lab = Lab::new();
    let dir = lab.dir.path();
    lab.make("base", "qcow2", &[]);
    qemu_img(dir, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "overlay"]);
    refused(&lab, &lab.path("overlay"), ImageFormat::Qcow2, "backing file").await;
    qemu_img(dir, &["create", "-f", "qcow2", "-o", "data_file=outside,data_file_raw=on", "split", "1M"]);
    refused(&lab, &lab.path("split"), ImageFormat::Qcow2, "external data file").await;
    qemu_img(dir, &["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M"]);
    refused(&lab, &lab.path("flat.vmdk"), ImageFormat::Vmdk, "other files").await;
    qemu_img(dir, &["create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "two.vmdk", "1M"]);
    refused(&lab, &lab.path("two.vmdk"), ImageFormat::Vmdk, "other files").await;
}

#[tokio::test]
async fn a_vmdk_whose_embedded_descriptor_names_a_file_of_the_host_is_refused() {
    let lab = Lab::new();
    let image = lab.make("image", "vmdk", &[]);
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&0_u64.to_le_bytes(), 12).unwrap();
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                RW 2 FLAT \"/etc/passwd\" 0\n\0";
    file.write_all_at(text.as_bytes(), 512).unwrap();
    refused(&lab, &image, ImageFormat::Vmdk, "other files").await;
}

#[tokio::test]
async fn a_vmdk_with_a_parent_is_refused_by_what_qemu_img_says() {
    let lab = Lab::new();
    lab.make("base", "vmdk", &[]);
    qemu_img(lab.dir.path(), &["create", "-f", "vmdk", "-b", "base", "-F", "vmdk", "child"]);
    let e = both_fail(&lab, &lab.path("child"), ImageFormat::Vmdk).await;
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
    assert!(e.message().contains("backing file"), "{e}");
}

/// The first 4 KiB of images of 1 MiB from qemu-img 7.2, and their lengths. They are kept as fixtures because qemu-img measures the CPU
/// before it encrypts with LUKS, and fails ("Unable to get accurate CPU usage") on a busy one.
///
/// ```text
/// qemu-img create --object secret,id=s,data=hunter2 -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 … 1M
/// qemu-img create --object secret,id=s,data=hunter2 -f luks -o key-secret=s,iter-time=10 … 1M
/// ```
const LUKS_IN_QCOW2: (&[u8], u64) = (include_bytes!("fixtures/luks.qcow2.head"), 2_359_296);
const LUKS: (&[u8], u64) = (include_bytes!("fixtures/luks.head"), 3_117_056);

#[tokio::test]
async fn encrypted_images_are_refused() {
    let lab = Lab::new();
    let made = |name: &str, (head, len): (&[u8], u64)| {
        let file = File::create(lab.path(name)).unwrap();
        file.write_all_at(head, 0).unwrap();
        file.set_len(len).unwrap();
        lab.path(name)
    };
    refused(&lab, &made("crypt", LUKS_IN_QCOW2), ImageFormat::Qcow2, "encrypted").await;
    let e = idle().probe(&made("luks", LUKS)).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.message().contains("LUKS"), "{e}");
    // The older encryption measures nothing, so qemu-img creates this one here.
    let secret = ["--object", "secret,id=s,data=hunter2", "-f", "qcow2"];
    let aes = ["-o", "encrypt.format=aes,encrypt.key-secret=s", "aes", "1M"];
    qemu_img(lab.dir.path(), &[&["create"], &secret[..], &aes[..]].concat());
    refused(&lab, &lab.path("aes"), ImageFormat::Qcow2, "encrypted").await;
}

#[tokio::test]
async fn foreign_and_packed_images_are_refused_by_name() {
    let lab = Lab::new();
    for (format, why) in [("qcow", "version 1"), ("qed", "QED"), ("parallels", "Parallels")] {
        qemu_img(lab.dir.path(), &["create", "-f", format, format, "1M"]);
        let e = idle().probe(&lab.path(format)).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.message().contains(why), "{e}");
    }
    for (program, ending, why) in [("gzip", "gz", "gzip"), ("xz", "xz", "xz"), ("bzip2", "bz2", "bzip2")] {
        fs::copy("/etc/passwd", lab.path("packed")).unwrap();
        tool(program, lab.dir.path(), &["packed"]);
        let e = idle().probe(&lab.path(&format!("packed.{ending}"))).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.message().contains(why), "{e}");
    }
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let lab = Lab::new();
    std::os::unix::fs::symlink(lab.path("disk.raw"), lab.path("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, lab.path("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = UnixListener::bind(lab.path("socket")).unwrap();
    fs::create_dir(lab.path("folder")).unwrap();
    let made = ["link", "fifo", "socket", "folder"].map(|n| lab.path(n));
    for path in made.iter().map(|p| p.as_path()).chain([Path::new("/dev/null"), Path::new("/dev/zero")]) {
        let e = idle().probe(path).await.unwrap_err();
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{}: {e}", path.display());
        let e = convert(path, ImageFormat::Raw, &lab.path("out.raw")).await.unwrap_err();
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{}: {e}", path.display());
    }
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    let long = "x".repeat(255);
    let names: [&[u8]; 16] = [
        b"with, commas,file.filename=other",
        b"with,,doubled",
        b"with spaces and 'quotes\" $HOME `id`",
        b"-f",
        b"--help",
        b"new\nline\rreturn",
        b"not \xff\xfe utf8",
        b"nbd:127.0.0.1:10809",
        b"json:{\"driver\":\"null-co\"}",
        b"fat:rw:.",
        b"file:colon",
        b"driver=raw",
        b"100%s%n",
        b"\x1b[2J escape",
        "ünï-编码".as_bytes(),
        long.as_bytes(),
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        // As a folder and as a file, for the source and for the destination.
        let folder = lab.dir.path().join("in").join(name);
        fs::create_dir_all(&folder).unwrap();
        let (source, out) = (folder.join(name), folder.join("out").join(name));
        fs::create_dir(folder.join("out")).unwrap();
        fs::copy(&image, &source).unwrap();
        let shown = name.display();
        assert_eq!(converter().probe(&source).await.unwrap().format, ImageFormat::Qcow2, "{shown}");
        convert(&source, ImageFormat::Qcow2, &out).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(fs::read(&out).unwrap() == lab.content, "{shown}");
        let there: Vec<_> = fs::read_dir(folder.join("out")).unwrap().collect();
        assert_eq!(there.len(), 1, "{shown}");
        fs::remove_dir_all(lab.dir.path().join("in")).unwrap();
    }
}

#[tokio::test]
async fn a_relative_path_means_our_own_folder() {
    // Not in qemu-img's working folder: we open the file.
    let here = tempfile::tempdir_in(".").unwrap();
    let name = here.path().file_name().unwrap();
    let source = Path::new(name).join("s.raw");
    super::dense(&source, MIB);
    let out = Path::new(name).join("o.raw");
    convert(&source, ImageFormat::Raw, &out).await.unwrap();
    assert!(fs::read(&out).unwrap() == fs::read(&source).unwrap());
}
