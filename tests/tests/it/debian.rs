//! A stock Debian keeps its root: with our guest kit in its image it outlives its iscsid's take-over of the root's session, and a server
//! that is off for longer than Debian's two minutes. What takes long, and the boot without the kit, is in `long::debian`.

use std::path::Path;
use std::time::Duration;

use ggnet_core::nouns::{EventKind, Machine, WritebackPolicy};
use ggnet_tests::debian::{DebianGuests, READY};
use ggnet_tests::slots::reserve_waiting;
use ggnet_tests::{Api, Firmware, GgnetServer, Guest, GuestBuilder, ServerOptions, wait};

use crate::room::{acked, check_lines, check_no_io_error, start_writer, wait_more};

/// Ends a boot that would never end: emulated on a busy host it takes some minutes.
pub const BOOT: Duration = Duration::from_secs(900);

/// A server with one machine, which boots this disk.
pub struct Bench {
    pub server: GgnetServer,
    pub api: Api,
    pub machine: Machine,
    name: &'static str,
}

impl Bench {
    pub fn new(name: &'static str, mac: &str, disk: &Path) -> Self {
        Self::with_config(name, mac, disk, "")
    }

    pub fn with_config(name: &'static str, mac: &str, disk: &Path, config: &str) -> Self {
        let disk = disk.canonicalize().unwrap();
        let import_dirs = vec![disk.parent().unwrap().to_owned()];
        let options = ServerOptions { config: config.to_owned(), import_dirs, ..ServerOptions::default() };
        let server = GgnetServer::start(options).unwrap();
        let api = server.api().unwrap();
        let image = api.import_and_wait("debian", &disk, |_| {}).unwrap().version.image;
        let machine = api.add_machine(name, mac, image, WritebackPolicy::Discard).unwrap();
        Self { server, api, machine, name }
    }

    /// The machine, off. It waits most of the time, so it takes no place of those that do not.
    pub fn guest(&self) -> GuestBuilder {
        let mac = self.machine.macs[0].to_string();
        let guest = Guest::builder(self.name).mac(&mac).user_network(self.server.script_url(&mac));
        guest.memory_mib(1024).slot(reserve_waiting().unwrap())
    }

    /// What the machine's timeline says of boots that went wrong.
    pub fn diagnoses(&self) -> Vec<String> {
        let events = self.api.events(None, Some(self.machine.id)).unwrap();
        let diagnosis = |kind| match kind {
            EventKind::BootDiagnosis { message, .. } => Some(message),
            _ => None,
        };
        events.into_iter().filter_map(|e| diagnosis(e.event.kind)).collect()
    }
}

/// A guest with the kit, at its prompt, and its iscsid in charge of the root's session.
pub fn boot_with_kit(bench: &Bench, firmware: Firmware) -> Guest {
    let mut pc = boot_to_take_over(bench, firmware);
    // By the rule of udev, and kept over the login that has just been.
    assert_eq!(pc.sh("cat /sys/class/iscsi_session/*/recovery_tmo").unwrap(), "86400");
    pc
}

/// A guest at its prompt that has outlived its iscsid's login to the root's session.
pub fn boot_to_take_over(bench: &Bench, firmware: Firmware) -> Guest {
    let mut pc = bench.guest().firmware(firmware).boot().unwrap();
    pc.wait_for(READY, BOOT).unwrap();
    wait::until("iscsid to have taken the session over", wait::BOOT, || {
        let said = pc.shell("journalctl -b -u iscsid --no-pager | grep 'operational after recovery'")?;
        Ok((said.code == 0).then_some(()))
    })
    .unwrap();
    pc
}

/// The server is off for so long under a guest that writes; then it goes on, with every line that was acknowledged.
pub fn outlives(bench: &mut Bench, pc: &mut Guest, off: Duration) {
    start_writer(pc);
    bench.server.stop().unwrap();
    std::thread::sleep(off);
    let before = acked(pc);
    bench.server.restart().unwrap();
    pc.wait_session("LOGGED_IN").unwrap();
    let last = wait_more(pc, before + 1);
    check_no_io_error(pc);
    check_lines(&pc.sh("cat /root/lines").unwrap(), last);
    assert_eq!(bench.diagnoses(), Vec::<String>::new());
}

#[test]
fn with_the_kit_root_is_writable_after_the_server_was_off_for_130_seconds() {
    let disk = DebianGuests::get().unwrap().with_kit();
    let mut bench = Bench::new("debian-kit-bios", "52:54:00:bb:00:61", &disk);
    let mut pc = boot_with_kit(&bench, Firmware::Bios);
    std::thread::sleep(Duration::from_secs(60));
    outlives(&mut bench, &mut pc, Duration::from_secs(130));
}
