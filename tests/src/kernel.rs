//! Runs a program, a test binary of this workspace above all, as root of a small virtual machine: Debian's kernel with its own iSCSI
//! target, a loopback, no disk and no card. What the host's kernel lacks, or what must not be done to it, is done there.
//!
//! The program and the host's libraries that it loads go in as a second archive behind the guest builder's `target.initrd`; its
//! output and its exit code come back over the serial line.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::accel::Accel;
use crate::image::GuestImage;
use crate::process::{self, Process};
use crate::slots;
use crate::wait;

const END: &str = "GGNET-SUITE-END code=";

/// How a program in the machine ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// All that the serial line said.
    pub text: String,
}

/// Waits for a free place, boots the machine, runs `program` with `args` in it, and waits for its end.
///
/// # Errors
/// A package is missing, the machine went off before the program's end, or `limit` passed: with the end of the serial log.
pub fn run(program: &Path, args: &[&str], limit: Duration) -> Result<Ended> {
    let image = GuestImage::get()?;
    let accel = Accel::of_host(&image)?;
    let _slot = slots::reserve(1)?;
    let dir = tempfile::Builder::new().prefix("ggnet-kernel-").tempdir()?;
    let initrd = dir.path().join("initrd");
    let mut bytes = fs::read(image.target_initrd())?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive(program, args, dir.path())?);
    fs::write(&initrd, bytes)?;

    let serial = dir.path().join("serial");
    fs::write(&serial, b"")?;
    let mut qemu = process::command(process::tool("qemu-system-x86_64", "qemu-system-x86")?);
    qemu.args(["-name", "kernel", "-machine", "q35", "-display", "none", "-nodefaults", "-no-reboot"])
        .args(accel.args())
        .args(["-smp", "2", "-m", "1024", "-device", "virtio-rng-pci", "-kernel"])
        .arg(image.vmlinuz())
        .arg("-initrd")
        .arg(&initrd)
        // Emulated on a busy host, the kernel's test of its timer can fail for want of time.
        .args(["-append", "console=ttyS0,115200 panic=-1 no_timer_check quiet", "-serial"])
        .arg(format!("file:{}", serial.display()));
    let mut qemu = Process::spawn("qemu (kernel)", qemu, &dir.path().join("qemu.log"))?;
    let text = || String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).replace('\r', "");
    let ended = wait::until("the program's end in the machine", limit, || {
        // Asked first: what it said before it went off is read after that.
        let on = qemu.is_running();
        let text = text();
        let code =
            text.split_once(END).and_then(|(_, rest)| rest.split_once(' ')).map(|(code, _)| code.parse());
        match code {
            Some(code) => Ok(Some(Ended { code: code.context("the exit code")?, text })),
            None if on => Ok(None),
            None => bail!("the machine went off; QEMU said: {}", qemu.log_text()),
        }
    });
    ended.with_context(|| format!("the serial line ends with:\n{}", tail(&text())))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(60).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// The path of a test program of this workspace, built if it is not yet.
///
/// # Errors
/// It cannot be built: the compiler's words are on standard error.
pub fn test_program(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // As tests/parts/all builds it: another set of features would compile everything again.
    build
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["test", "--workspace", "--all-features", "--no-run", "--message-format=json", "--test", name])
        // Set while tests are timed; build scripts of dependencies look at it, and all would be compiled again.
        .env_remove("RUSTC_BOOTSTRAP")
        .stderr(std::process::Stdio::inherit());
    let output = process::output(&mut build)?;
    ensure!(output.status.success(), "{build:?} ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let mut programs = messages
        .filter(|m| m["target"]["name"] == name)
        .filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    programs.next().with_context(|| format!("{build:?} named no program"))
}

/// `/suite/run`, the program, and its libraries, in cpio's "newc" format.
fn archive(program: &Path, args: &[&str], dir: &Path) -> Result<Vec<u8>> {
    // Debug information is most of it, and would lie in the machine's memory twice.
    let stripped = dir.join("program");
    process::run(
        Command::new(process::tool("strip", "binutils")?).arg("-g").arg("-o").arg(&stripped).arg(program),
    )?;
    let run =
        format!("#!/bin/sh\ncd /tmp\nexport RUST_BACKTRACE=1\nexec /suite/program {}\n", args.join(" "));
    let mut files =
        vec![("suite/run".to_owned(), run.into_bytes()), ("suite/program".to_owned(), fs::read(&stripped)?)];
    let libraries = process::run(Command::new("ldd").arg(program))?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        files.push((path.trim_start_matches('/').to_owned(), fs::read(path).context(path.to_owned())?));
    }
    let mut out = Vec::new();
    let mut folders = BTreeSet::new();
    for (name, data) in &files {
        let parts: Vec<_> =
            Path::new(name).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for folder in parts.iter().rev() {
            if folders.insert(folder.to_path_buf()) {
                entry(&mut out, &folder.display().to_string(), 0o040_755, &[])?;
            }
        }
        entry(&mut out, name, 0o100_755, data)?;
    }
    entry(&mut out, "TRAILER!!!", 0, &[])?;
    Ok(out)
}

fn entry(out: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) -> Result<()> {
    let inode = u32::try_from(out.len())?;
    let (size, name_size) = (u32::try_from(data.len())?, u32::try_from(name.len() + 1)?);
    let mut header = "070701".to_owned();
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        write!(header, "{field:08x}")?;
    }
    out.extend(header.as_bytes());
    out.extend(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_whole_words_with_a_trailer() {
        let mut out = Vec::new();
        entry(&mut out, "a", 0o100_644, b"12345").unwrap();
        entry(&mut out, "TRAILER!!!", 0, &[]).unwrap();
        assert_eq!(out.len() % 4, 0);
        assert_eq!(&out[..14], b"07070100000000");
        assert_eq!(&out[112..120], b"12345\0\0\0");
    }
}
