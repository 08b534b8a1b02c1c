//! What GGnet is for: machines boot from one image, each with its own disk, and the image stays as it is.

use ggnet_core::nouns::{BootStage, EventKind, WritebackPolicy};
use ggnet_tests::{Firmware, refusal, reserve, wait};

use crate::room::{Room, first_times};

const BOOT: [BootStage; 4] =
    [BootStage::ScriptRead, BootStage::IscsiLogin, BootStage::FirstRead, BootStage::FirstWrite];

/// What the API and the metrics tell of a machine's disk is what has happened to it.
fn check_counters(room: &Room, machine: &str) {
    let targets = room.api.targets().unwrap();
    let [one, other] = &targets[..] else { panic!("two machines, {} targets", targets.len()) };
    for target in [one, other] {
        let [connection] = &target.connections[..] else { panic!("{target:?}") };
        let io = connection.io.as_ref().unwrap();
        assert!(io.reads > 0 && io.writes > 0 && io.others > 0 && io.device_errors == 0, "{io:?}");
        assert!(connection.bytes_read > 1 << 20 && connection.bytes_written > 4096, "{connection:?}");
        assert!(io.latency_us.iter().sum::<u64>() > 0 && io.latency_us_total > 0, "{io:?}");
    }
    assert_eq!(room.api.plain("GET", "/metrics").unwrap().0, 401);
    let metrics = room.api.metrics().unwrap();
    let reads =
        metrics.lines().find(|l| l.starts_with(&format!("ggnet_disk_reads_total{{machine=\"{machine}\"")));
    assert!(reads.is_some_and(|l| !l.ends_with(" 0")), "{metrics}");
    assert!(metrics.contains("ggnet_online_sessions 2\n"), "{metrics}");
}

#[test]
fn one_image_boots_a_bios_and_a_uefi_machine_each_with_its_own_disk() {
    let room = Room::new("");
    let (bios_mac, uefi_mac) = ("52:54:00:bb:00:01", "52:54:00:bb:00:02");
    let discards =
        room.api.add_machine("pc-bios", bios_mac, room.image.image, WritebackPolicy::Discard).unwrap();
    let keeps = room.api.add_machine("pc-uefi", uefi_mac, room.image.image, WritebackPolicy::Keep).unwrap();
    let mut slots = reserve(2).unwrap();
    let mut bios = room.machine("boot-bios", bios_mac).slot(slots.pop().unwrap()).boot().unwrap();
    let uefi = room.machine("boot-uefi", uefi_mac).firmware(Firmware::Uefi).slot(slots.pop().unwrap());
    let mut uefi = uefi.boot().unwrap();

    for (pc, machine, firmware) in [(&mut bios, &discards, "bios"), (&mut uefi, &keeps, "uefi")] {
        let line = pc.wait_boot().unwrap();
        assert_eq!((line.transport.as_str(), line.firmware.as_str()), ("iscsi", firmware));
        assert_eq!((line.boots, line.writable, line.iscsid), (1, true, true));
        assert!(line.chap.is_some(), "logged in without CHAP: {line:?}");
        // What the guest's kernel says of its session is what the API says.
        let session = room.api.active(machine.id).unwrap();
        assert_eq!(line.target, session.target_iqn.to_string());
        assert_eq!(line.initiator, session.session.initiator.to_string());
        assert_eq!(line.portal, format!("10.0.2.2:{}", room.server.iscsi_port()));
        assert!(session.online);
        assert_eq!(first_times(&room.api.stages(None, machine.id).unwrap()), BOOT);
    }

    // Each sees its own writes and not the other's.
    bios.sh("echo bios >/root/mine && sync").unwrap();
    uefi.sh("echo uefi >/root/mine && touch /root/only-uefi && sync").unwrap();
    assert_eq!(bios.sh("cat /root/mine").unwrap(), "bios");
    assert_eq!(uefi.sh("cat /root/mine").unwrap(), "uefi");
    assert_eq!(bios.shell("test -e /root/only-uefi").unwrap().code, 1);
    room.check_image();
    check_counters(&room, "pc-bios");

    // A reboot: one starts clean, the other finds what it wrote.
    let before = room.api.cursor().unwrap();
    bios.reboot().unwrap();
    uefi.reboot().unwrap();
    let (clean, kept) = (bios.wait_boot().unwrap(), uefi.wait_boot().unwrap());
    assert_eq!((clean.boots, kept.boots), (1, 2), "{clean:?} {kept:?}");
    assert_eq!(bios.shell("test -e /root/mine").unwrap().code, 1);
    assert_eq!(uefi.sh("cat /root/mine").unwrap(), "uefi");
    // Each boot is a generation of its own; nothing of the one before is left.
    for machine in [&discards, &keeps] {
        let session = room.api.active(machine.id).unwrap().session;
        assert_eq!((session.current.number, session.next), (2, None));
        let kinds = room.api.events(before.as_ref(), Some(machine.id)).unwrap();
        assert!(
            kinds.iter().any(|e| e.event.kind == EventKind::GenerationCommitted { number: 2 }),
            "{kinds:?}"
        );
    }
    assert_eq!(room.api.targets().unwrap().len(), 2);

    // Its place is another test's now.
    drop(bios);

    // A `keep` machine finds its disk in another session as well.
    let session = room.api.active(keeps.id).unwrap().session.id;
    uefi.power_off().unwrap();
    wait::until("the machine to be seen offline", wait::SHORT, || {
        let stages = room.api.stages(before.as_ref(), keeps.id)?;
        Ok((stages.last() == Some(&BootStage::Disconnected)).then_some(()))
    })
    .unwrap();
    room.api.stop_session(session, false).unwrap();
    assert_eq!(refusal(room.api.active(keeps.id)).unwrap().status, 404);
    let again = room.api.start_session(keeps.id).unwrap();
    assert_ne!(again.session.session.id, session);
    uefi.power_on().unwrap();
    let line = uefi.wait_boot().unwrap();
    assert_eq!((line.boots, line.target), (3, again.target.iqn.to_string()));
    assert_eq!(uefi.sh("cat /root/mine").unwrap(), "uefi");
    room.check_image();
}
