//! What must not harm a machine that runs: somebody else who reads its boot script, a server that stops, restarts or dies.

use ggnet_core::nouns::{Event, EventKind, WritebackPolicy};
use ggnet_tests::server::script_path;
use ggnet_tests::{Firmware, refusal, wait};

use crate::room::{Room, acked, check_lines, check_no_io_error, start_writer, wait_more};

fn has(events: &[Event], wanted: &EventKind) -> bool {
    events.iter().any(|e| e.event.kind == *wanted)
}

#[test]
fn a_running_machine_notices_neither_a_stranger_nor_a_restart_of_the_server() {
    let mut room = Room::new("[session]\ngeneration_ttl = \"4s\"\nreconcile_interval = \"1s\"\n");
    let mac = "52:54:00:bb:00:11";
    let machine =
        room.api.add_machine("pc-watched", mac, room.image.image, WritebackPolicy::Discard).unwrap();
    let mut pc = room.machine("faults-bios", mac).boot().unwrap();
    pc.wait_boot().unwrap();
    start_writer(&mut pc);
    let session = room.api.active(machine.id).unwrap();

    // HEAD prepares nothing; GET prepares a generation, the same one when asked again.
    let cursor = room.api.cursor().unwrap();
    assert_eq!(room.api.plain("HEAD", &script_path(mac)).unwrap().0, 200);
    assert_eq!(room.api.active(machine.id).unwrap().session.next, None);
    let (status, script) = room.api.plain("GET", &script_path(mac)).unwrap();
    assert_eq!(status, 200);
    assert!(script.starts_with("#!ipxe") && script.contains("sanboot"), "{script}");
    assert_eq!(room.api.plain("GET", &script_path(mac)).unwrap(), (200, script));
    let next = room.api.active(machine.id).unwrap().session.next.unwrap().number;
    assert_eq!(next, session.session.current.number + 1);
    // Nobody uses it: it expires, and all the while the guest writes on, on the disk it has.
    let seen = acked(&mut pc);
    wait::until("the generation to expire", wait::SHORT, || {
        let events = room.api.events(cursor.as_ref(), Some(machine.id))?;
        Ok(has(&events, &EventKind::GenerationExpired { number: next }).then_some(()))
    })
    .unwrap();
    wait_more(&mut pc, seen);
    assert_eq!(room.api.active(machine.id).unwrap().target_iqn, session.target_iqn);
    assert_eq!(room.api.targets().unwrap().len(), 1);
    assert_eq!(pc.sh("cat /sys/class/iscsi_session/*/targetname").unwrap(), session.target_iqn.to_string());
    check_no_io_error(&mut pc);

    // What a running machine stands on cannot be taken from under it.
    let id = session.session.id;
    assert_eq!(refusal(room.api.delete_version(room.image.id)).unwrap().status, 409);
    assert_eq!(refusal(room.api.delete_image(room.image.image)).unwrap().status, 409);
    let refused = refusal(room.api.stop_session(id, false)).unwrap();
    assert_eq!(refused.status, 409);
    assert!(refused.problem.unwrap().hint.unwrap().contains("force"));
    let seen = acked(&mut pc);
    wait_more(&mut pc, seen);
    assert!(room.api.active(machine.id).unwrap().online);

    // A restart by the book.
    room.server.restart().unwrap();
    let seen = acked(&mut pc);
    pc.wait_session("LOGGED_IN").unwrap();
    let seen = wait_more(&mut pc, seen + 1);
    check_no_io_error(&mut pc);
    // The same session, the same disk.
    let after = room.api.active(machine.id).unwrap();
    assert_eq!((after.session.id, after.session.current), (id, session.session.current));
    check_lines(&pc.sh("cat /root/lines").unwrap(), seen);
    room.check_image();
}

#[test]
fn no_acknowledged_write_is_lost_when_the_server_is_killed() {
    let mut room = Room::new("[session]\nreconcile_interval = \"1s\"\n");
    let mac = "52:54:00:bb:00:12";
    let machine = room.api.add_machine("pc-killed", mac, room.image.image, WritebackPolicy::Keep).unwrap();
    let mut pc = room.machine("faults-uefi", mac).firmware(Firmware::Uefi).boot().unwrap();
    pc.wait_boot().unwrap();
    start_writer(&mut pc);

    room.server.kill_9().unwrap();
    pc.wait_session("FAILED|FREE").unwrap();
    // Well into iscsid's attempts to log in again.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let stalled = acked(&mut pc);
    room.server.restart().unwrap();
    pc.wait_session("LOGGED_IN").unwrap();
    let seen = wait_more(&mut pc, stalled + 1);
    check_no_io_error(&mut pc);
    check_lines(&pc.sh("cat /root/lines").unwrap(), seen);

    // Stopped by force under a writing guest: what it knows to be written is there when it boots again.
    let session = room.api.active(machine.id).unwrap().session.id;
    let seen = wait_more(&mut pc, seen);
    room.api.stop_session(session, true).unwrap();
    assert_eq!(refusal(room.api.stop_session(session, true)).unwrap().status, 409, "stopped twice");
    assert!(room.api.targets().unwrap().is_empty());
    let last = acked(&mut pc);
    assert!(last >= seen);
    pc.power_cut().unwrap();
    pc.power_on().unwrap();
    assert_eq!(pc.wait_boot().unwrap().boots, 2);
    check_lines(&pc.sh("cat /root/lines").unwrap(), last);
    room.check_image();
}
