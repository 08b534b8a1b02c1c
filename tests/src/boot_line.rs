//! The line by which the guest says how it booted, read from its kernel (`tests/guest/files/etc/ggnet/announce`).

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

/// What a guest found out about its own boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootLine {
    /// Host name: the iBFT's, else the end of the initiator's name.
    pub host: String,
    /// Device of the root file system, for instance `/dev/sda3`.
    pub root: String,
    /// What the root's disk hangs on, by its place in sysfs: `iscsi`, `virtio` or `local`.
    pub transport: String,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Whether the root took a write and a sync.
    pub writable: bool,
    /// How many times this disk was booted, this one included: a counter on the root itself.
    pub boots: u32,
    /// Initiator name of the kernel's session.
    pub initiator: String,
    /// Target name of the kernel's session.
    pub target: String,
    /// Portal that the session was made to, `address:port`.
    pub portal: String,
    /// CHAP user of the session, if there was CHAP.
    pub chap: Option<String>,
    /// IPv4 address of the NIC.
    pub ip: String,
    /// MAC address of the NIC.
    pub mac: String,
    /// Where the address came from: `ibft` or `dhcp`.
    pub net: String,
    /// Whether `iscsid` runs and made the session.
    pub iscsid: bool,
}

/// What the line begins with.
pub const OK: &str = "GGNET-GUEST-OK ";
/// What the line of a guest that could not boot begins with.
pub const FAIL: &str = "GGNET-GUEST-FAIL ";

impl BootLine {
    /// Reads a line that begins with [`OK`].
    ///
    /// # Errors
    /// It is another line, or a field is missing.
    pub fn parse(line: &str) -> Result<Self> {
        let Some(rest) = line.trim().strip_prefix(OK) else { bail!("not a boot line: {line}") };
        let fields: HashMap<&str, &str> = rest.split_whitespace().filter_map(|f| f.split_once('=')).collect();
        let get = |name: &str| {
            fields.get(name).map(|v| (*v).to_owned()).with_context(|| format!("no {name}= in: {line}"))
        };
        let yes = |name: &str| get(name).map(|v| v == "yes");
        Ok(Self {
            host: get("host")?,
            root: get("root")?,
            transport: get("transport")?,
            firmware: get("fw")?,
            writable: yes("rw")?,
            boots: get("boots")?.parse().with_context(|| format!("boots= in: {line}"))?,
            initiator: get("initiator")?,
            target: get("target")?,
            portal: get("portal")?,
            chap: Some(get("chap")?).filter(|c| c != "none"),
            ip: get("ip")?,
            mac: get("mac")?,
            net: get("net")?,
            iscsid: yes("iscsid")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_real_line() {
        let line = BootLine::parse(
            "GGNET-GUEST-OK host=pc root=/dev/sda3 transport=iscsi fw=bios rw=yes boots=2 initiator=iqn.a:pc \
             target=iqn.b:t portal=10.0.2.2:3260 chap=none ip=10.0.2.15 mac=52:54:00:aa:00:01 net=ibft iscsid=yes up=8.61",
        )
        .unwrap();
        assert_eq!(line.chap, None);
        assert_eq!((line.boots, line.writable, line.iscsid), (2, true, true));
        assert!(BootLine::parse("GGNET-GUEST-OK host=pc").is_err());
    }
}
