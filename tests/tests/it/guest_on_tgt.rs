//! The boot lab proves itself, without any of GGnet: the guest image on Debian's target, over QEMU's user-mode network.
//! What fails here is the lab's fault, so it is asked first when a boot through GGnet fails.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ggnet_tests::{Chap, Firmware, Guest, GuestImage, Http, Nic, RootFs, Tgt, wait};

const TARGET: &str = "iqn.2024-01.org.example.lab:disk";
const INITIATOR: &str = "iqn.2024-01.org.example.lab:pc-one";

/// A disk on a target with CHAP, and the script that boots it.
struct Lab {
    dir: tempfile::TempDir,
    tgt: Tgt,
    http: Http,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.raw");
        GuestImage::get().unwrap().copy_raw(&disk).unwrap();
        let chap = Chap { user: "labuser".into(), secret: "Secret0123456789".into() };
        let mut tgt = Tgt::start().unwrap();
        tgt.add(TARGET, &disk, Some(&chap)).unwrap();
        let http = Http::serve().unwrap();
        http.set("/boot.ipxe", tgt.script(INITIATOR, TARGET, Some(&chap)));
        Self { dir, tgt, http }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    fn url(&self) -> String {
        self.http.guest_url("/boot.ipxe")
    }
}

fn root_note(disk: &Path) -> String {
    String::from_utf8(RootFs::of(disk).unwrap().read("/root/note").unwrap()).unwrap()
}

#[test]
fn bios_boots_restarts_warm_and_powers_off_clean() {
    let lab = Lab::new();
    let mut pc = Guest::builder("tgt-bios").mac("52:54:00:aa:00:01").user_network(lab.url()).boot().unwrap();
    let first = pc.wait_boot().unwrap();
    assert_eq!((first.transport.as_str(), first.firmware.as_str()), ("iscsi", "bios"));
    assert_eq!((first.target.as_str(), first.initiator.as_str()), (TARGET, INITIATOR));
    assert_eq!(first.chap.as_deref(), Some("labuser"));
    assert_eq!((first.host.as_str(), first.mac.as_str()), ("pc-one", "52:54:00:aa:00:01"));
    assert_eq!((first.boots, first.writable, first.iscsid), (1, true, true));

    // The shell gives output and exit codes back.
    assert_eq!(pc.shell("echo one; echo two >&2; exit 7").unwrap().code, 7);
    assert_eq!(pc.sh("echo one; echo two >&2").unwrap(), "one\ntwo");
    pc.sh("echo written by the BIOS machine >/root/note").unwrap();

    // A warm restart goes through the firmware and the network, not through a kernel of its own.
    pc.reboot().unwrap();
    let second = pc.wait_boot().unwrap();
    assert_eq!((second.boots, second.transport.as_str()), (2, "iscsi"));
    assert_eq!(lab.http.asked(), ["/boot.ipxe", "/boot.ipxe"]);
    assert_eq!(pc.sh("cat /root/note").unwrap(), "written by the BIOS machine");

    pc.power_off().unwrap();
    assert_eq!(root_note(&lab.disk()), "written by the BIOS machine\n");
}

#[test]
fn uefi_boots_with_a_real_cards_driver_and_survives_a_power_cut() {
    let lab = Lab::new();
    let builder = Guest::builder("tgt-uefi").firmware(Firmware::Uefi).nic(Nic::E1000).user_network(lab.url());
    let mut pc = builder.boot().unwrap();
    let line = pc.wait_boot().unwrap();
    assert_eq!((line.transport.as_str(), line.firmware.as_str()), ("iscsi", "uefi"));
    assert_eq!((line.chap.as_deref(), line.boots), (Some("labuser"), 1));
    assert!(pc.sh("readlink /sys/class/net/eth0/device/driver").unwrap().ends_with("/e1000"));
    // The file of the golden image itself belongs to root, although a plain user may have built it.
    assert_eq!(
        pc.sh("stat -c %u:%g / /sbin/iscsid /etc/inittab /home/demo").unwrap(),
        "0:0\n0:0\n0:0\n1000:1000"
    );
    pc.sh("echo written by the UEFI machine >/root/note; sync").unwrap();
    pc.power_cut().unwrap();
    assert_eq!(root_note(&lab.disk()), "written by the UEFI machine\n");
}

#[test]
fn a_guest_outlives_its_target() {
    let mut lab = Lab::new();
    let mut pc = Guest::builder("tgt-restart").user_network(lab.url()).boot().unwrap();
    pc.wait_boot().unwrap();
    // A writer that flushes each line, and keeps count in memory of what was acknowledged.
    pc.sh("(i=0; while i=$((i + 1)); do echo $i | dd of=/root/lines oflag=append conv=notrunc,fsync && echo $i >/run/acked || echo $i >>/run/errors; done) \
           >/dev/null 2>&1 &")
        .unwrap();
    let acked =
        |pc: &mut Guest| pc.sh("cat /run/acked 2>/dev/null || echo 0").unwrap().parse::<u64>().unwrap();
    let count =
        wait::until("the first writes", wait::SHORT, || Ok(Some(acked(&mut pc)).filter(|n| *n > 0))).unwrap();

    lab.tgt.kill().unwrap();
    pc.wait_session("FAILED|FREE").unwrap();
    // Well into iscsid's attempts to log in again: no error may have reached the file system.
    std::thread::sleep(Duration::from_secs(5));
    let stalled = acked(&mut pc);
    assert!(stalled >= count);
    lab.tgt.restart().unwrap();
    pc.wait_session("LOGGED_IN").unwrap();
    wait::until("writes to go on", wait::SHORT, || Ok((acked(&mut pc) > stalled + 1).then_some(()))).unwrap();

    assert_eq!(pc.shell("cat /run/errors").unwrap().code, 1, "a write failed while the target was away");
    assert!(pc.sh("grep ' / ' /proc/mounts").unwrap().contains(" rw,"));
    assert!(
        pc.sh("grep -c 'operational after recovery' /run/iscsid/log").unwrap().parse::<u32>().unwrap() >= 1
    );
    let last = acked(&mut pc);
    pc.power_cut().unwrap();
    let lines = String::from_utf8(RootFs::of(&lab.disk()).unwrap().read("/root/lines").unwrap()).unwrap();
    let whole: Vec<u64> = lines.lines().filter_map(|l| l.parse().ok()).collect();
    assert!(whole.len() as u64 >= last, "{} lines on the disk, {last} acknowledged", whole.len());
    assert!(whole.iter().zip(1..).all(|(line, i)| *line == i), "lines are missing or out of order");
}
