//! The text files that a Raspberry Pi's firmware reads over TFTP: `config.txt` and `cmdline.txt`, and the folder that contains them.
//!
//! The firmware can load kernel and initial RAM disk over TFTP and nothing else; the root file system comes later, when Debian's initramfs
//! (package `open-iscsi`, with a file `/etc/iscsi/iscsi.initramfs` in the image) reads the `iscsi_…` words of the kernel's command line and
//! logs in. Neither file supports quotes or escapes: a value is one word, or it is rejected.

use std::net::IpAddr;

use super::san::{Host, SanUri};
use crate::{
    error::{Error, Result},
    nouns::{ChapPair, Iqn, MacAddr},
};

/// The shortest COMMAND_LINE_SIZE of the kernels that a Pi runs (32-bit ARM), less the terminating NUL.
const LONGEST_CMDLINE: usize = 1023;

/// The firmware reads no more of a line of `config.txt`.
const LONGEST_CONFIG_LINE: usize = 98;

/// What the firmware loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiConfig {
    /// The kernel's file, in the machine's folder: `vmlinuz`.
    pub kernel: String,
    /// The initial RAM disk's file.
    pub initrd: String,
    /// Whether the kernel is a 64-bit one.
    pub arm_64bit: bool,
    /// Whether the serial console is on.
    pub serial_console: bool,
}

/// The kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiCmdline {
    /// Where the disk is. The server must be an address: the initramfs cannot resolve names.
    pub san: SanUri,
    /// The initiator name that the target accepts.
    pub initiator: Iqn,
    /// The credentials that the target requires. Everyone who can read the TFTP folder can read them, and so can every process of the
    /// guest.
    pub chap: Option<ChapPair>,
    /// The root file system: `UUID=…`, `LABEL=…`, `PARTUUID=…` or a device.
    pub root: String,
    /// More words for the kernel's command line.
    pub extra: Vec<String>,
}

/// The name of a machine's folder by its board's serial number, the firmware's first choice: the last eight hexadecimal digits,
/// in lower case. Takes the number as `/proc/cpuinfo` and the boot screen show it.
pub fn folder_by_serial(serial: &str) -> Result<String> {
    let digits = serial.trim().trim_start_matches("0x").to_ascii_lowercase();
    if !(8..=16).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::invalid(
            "serial",
            format!("{serial:?} is not a Raspberry Pi's serial number: 8 to 16 hexadecimal digits"),
        ));
    }
    Ok(digits[digits.len() - 8..].to_owned())
}

/// The name of a machine's folder by its MAC address, with dashes (the boot EEPROM's `TFTP_PREFIX=2`).
#[must_use]
pub fn folder_by_mac(mac: MacAddr) -> String {
    mac.hyphenated()
}

/// The text of `config.txt`.
pub fn config_txt(config: &PiConfig) -> Result<String> {
    let kernel = file("kernel", &config.kernel)?;
    let initrd = file("initrd", &config.initrd)?;
    let lines = [
        "[all]".to_owned(),
        format!("arm_64bit={}", u8::from(config.arm_64bit)),
        format!("enable_uart={}", u8::from(config.serial_console)),
        format!("kernel={kernel}"),
        // The one setting without an equals sign; `followkernel` leaves the address to the firmware.
        format!("initramfs {initrd} followkernel"),
        "cmdline=cmdline.txt".to_owned(),
    ];
    if let Some(long) = lines.iter().find(|l| l.len() > LONGEST_CONFIG_LINE) {
        return Err(Error::invalid(
            "config_txt",
            format!("The line {long:?} is longer than the firmware reads ({LONGEST_CONFIG_LINE} characters)"),
        ));
    }
    Ok(lines.join("\n") + "\n")
}

/// The text of `cmdline.txt`: one line.
pub fn cmdline_txt(cmdline: &PiCmdline) -> Result<String> {
    let Host::Ip(IpAddr::V4(address)) = cmdline.san.server else {
        return Err(Error::invalid(
            "san_uri",
            format!(
                "A Raspberry Pi needs the server's IPv4 address, not {}: its initramfs cannot resolve names and uses DHCP for IPv4 only",
                cmdline.san.server
            ),
        ));
    };
    let mut words = vec![
        "ip=dhcp".to_owned(),
        format!("iscsi_initiator={}", cmdline.initiator),
        format!("iscsi_target_name={}", cmdline.san.target),
        format!("iscsi_target_ip={address}"),
        format!("iscsi_target_port={}", cmdline.san.port),
        // Our targets have one portal group, and RFC 7143 numbers the first 1.
        "iscsi_target_group=1".to_owned(),
    ];
    if let Some(chap) = &cmdline.chap {
        words.push(format!("iscsi_username={}", secret("CHAP user", &chap.user)?));
        words.push(format!("iscsi_password={}", secret("CHAP secret", chap.secret.expose())?));
    }
    words.push(format!("root={}", root(&cmdline.root)?));
    words.push("rw".to_owned());
    words.push("rootwait".to_owned());
    for extra in &cmdline.extra {
        words.push(word("extra", extra)?.to_owned());
    }
    let line = words.join(" ");
    if line.len() > LONGEST_CMDLINE {
        return Err(Error::invalid(
            "extra",
            format!(
                "The kernel's command line is {} bytes long; the maximum is {LONGEST_CMDLINE}",
                line.len()
            ),
        ));
    }
    Ok(line + "\n")
}

/// One word that the kernel and the initramfs (which splits at white space and expands wildcards) read in the same way.
fn word<'a>(field: &'static str, value: &'a str) -> Result<&'a str> {
    let bad = |c: char| !c.is_ascii_graphic() || "\"'`\\*?[]$;&|<>(){}#!~".contains(c);
    match value.chars().find(|c| bad(*c)) {
        _ if value.is_empty() => Err(Error::invalid(field, "A word of the kernel's command line is empty")),
        Some(c) => Err(Error::invalid(
            field,
            format!("{value:?} is not one word of the kernel's command line: character {c:?} is not allowed"),
        )),
        None => Ok(value),
    }
}

/// The same without the value in the error.
fn secret<'a>(what: &str, value: &'a str) -> Result<&'a str> {
    word("chap", value).map_err(|_| {
        Error::invalid(
            "chap",
            format!(
                "The {what} is empty or contains a character that the kernel's command line does not allow"
            ),
        )
    })
}

/// A file in the folder of `config.txt`, or in a folder below it.
fn file<'a>(field: &'static str, value: &'a str) -> Result<&'a str> {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
    };
    if value.split('/').all(part) {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!(
                "{value:?} is not a file of the TFTP folder: the firmware cannot load URLs, or names with spaces"
            ),
        ))
    }
}

fn root(value: &str) -> Result<&str> {
    let known = ["UUID=", "PARTUUID=", "LABEL=", "PARTLABEL=", "/dev/"];
    let named = known.iter().any(|p| value.strip_prefix(p).is_some_and(|rest| !rest.is_empty()));
    if !named || value.starts_with("/dev/nbd") {
        return Err(Error::invalid(
            "root",
            format!(
                "{value:?} is not a root file system on the disk: expected UUID=…, PARTUUID=…, LABEL=… or a /dev/ path"
            ),
        ));
    }
    word("root", value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nouns::Secret;

    fn cmdline() -> PiCmdline {
        PiCmdline {
            san: "iscsi:10.0.0.1::3261:0:iqn.2026-11.local.ggnet:0123abcd.pi.1".parse().unwrap(),
            initiator: "iqn.2026-11.local.ggnet:dca632000001".parse().unwrap(),
            chap: None,
            root: "UUID=0a1b2c3d-0000-4000-8000-000000000001".into(),
            extra: vec!["console=ttyS1,115200".into(), "quiet".into()],
        }
    }

    fn config() -> PiConfig {
        PiConfig {
            kernel: "vmlinuz".into(),
            initrd: "initrd.img".into(),
            arm_64bit: true,
            serial_console: true,
        }
    }

    #[test]
    fn the_files_word_for_word() {
        assert_eq!(
            config_txt(&config()).unwrap(),
            "[all]\narm_64bit=1\nenable_uart=1\nkernel=vmlinuz\ninitramfs initrd.img followkernel\ncmdline=cmdline.txt\n"
        );
        assert_eq!(
            cmdline_txt(&cmdline()).unwrap(),
            "ip=dhcp iscsi_initiator=iqn.2026-11.local.ggnet:dca632000001 \
             iscsi_target_name=iqn.2026-11.local.ggnet:0123abcd.pi.1 iscsi_target_ip=10.0.0.1 iscsi_target_port=3261 \
             iscsi_target_group=1 root=UUID=0a1b2c3d-0000-4000-8000-000000000001 rw rootwait console=ttyS1,115200 quiet\n"
        );
        let chap = ChapPair { user: "pi.1".into(), secret: Secret::new("Abcdefgh12345678") };
        let with = cmdline_txt(&PiCmdline { chap: Some(chap), ..cmdline() }).unwrap();
        assert!(with.contains(" iscsi_username=pi.1 iscsi_password=Abcdefgh12345678 root="), "{with}");
    }

    #[test]
    fn what_the_firmware_and_the_kernel_cannot_read_is_refused() {
        for kernel in
            ["", "http://10.0.0.1/kernel8.img", "a b", "a\nb", "../vmlinuz", "/vmlinuz", &"k".repeat(95)]
        {
            let e = config_txt(&PiConfig { kernel: kernel.into(), ..config() }).unwrap_err();
            assert!(matches!(e.field(), Some("kernel" | "config_txt")), "{kernel}");
        }
        for root in ["", "/dev/nbd0", "UUID=", "UUID=a b", "UUID=a\nb", "nfs", "/dev/sd*"] {
            let e = cmdline_txt(&PiCmdline { root: root.into(), ..cmdline() }).unwrap_err();
            assert_eq!(e.field(), Some("root"), "{root}");
        }
        for extra in ["", "a b", "init=/bin/sh\n", "x=$(y)", "ä"] {
            let e = cmdline_txt(&PiCmdline { extra: vec![extra.into()], ..cmdline() }).unwrap_err();
            assert_eq!(e.field(), Some("extra"), "{extra}");
        }
        let long = cmdline_txt(&PiCmdline { extra: vec!["x".repeat(1000)], ..cmdline() }).unwrap_err();
        assert!(long.message().contains("1023"), "{long}");
        for server in ["ggnet.lan", "[fd00::1]"] {
            let san = SanUri { server: server.parse().unwrap(), ..cmdline().san };
            assert_eq!(cmdline_txt(&PiCmdline { san, ..cmdline() }).unwrap_err().field(), Some("san_uri"));
        }
        let chap = ChapPair { user: "pi".into(), secret: Secret::new("top secret") };
        let e = cmdline_txt(&PiCmdline { chap: Some(chap), ..cmdline() }).unwrap_err();
        assert!(!e.report().contains("top secret"), "{e}");
    }

    #[test]
    fn folders() {
        assert_eq!(folder_by_serial("100000009FFEFDEF").unwrap(), "9ffefdef");
        assert_eq!(folder_by_serial("0x9ffefdef\n").unwrap(), "9ffefdef");
        assert_eq!(folder_by_mac("DC:A6:32:00:00:01".parse().unwrap()), "dc-a6-32-00-00-01");
        for bad in ["", "9ffefde", "xyz12345", "../../../etc", "0123456789abcdef0"] {
            assert_eq!(folder_by_serial(bad).unwrap_err().field(), Some("serial"), "{bad}");
        }
    }
}
