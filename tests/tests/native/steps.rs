//! What is done in a room on the native backends, step by step: the kernel's target, a daemon's DHCP and in.tftpd, by the product as it
//! is installed, under its unit.
//!
//! Each step leaves the server machine without sessions and targets, so that the next one can share it: an emulated one takes a minute to
//! come up.

use std::sync::LazyLock;
use std::thread;
use std::time::Instant;

use ggnet_core::nouns::{ImageId, Machine, SessionState, WritebackPolicy};
use ggnet_tests::native_room::{BY_HELPER, BY_TARGETCLI, COMMON, Dhcp, IMAGE, SERVER};
use ggnet_tests::slots::Slot;
use ggnet_tests::{Api, BootLine, Firmware, Guest, NativeRoom, reserve, wait};

/// Says which step begins, and when: a room takes minutes.
fn begins(step: &str) {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("{:4} s  {step}", FIRST.elapsed().as_secs());
}

/// The server runs with this DHCP server and the kernel's target by the helper; it must not run yet.
pub fn start(room: &mut NativeRoom, dhcp: Dhcp) -> Api {
    begins(dhcp.unit());
    room.daemons(dhcp).unwrap();
    room.start(&format!("{COMMON}{BY_HELPER}{}", dhcp.config(true))).unwrap()
}

pub fn import(api: &Api) -> ImageId {
    api.import_and_wait("golden", IMAGE.as_ref(), |_| {}).unwrap().version.image
}

/// The sum of the image's file.
fn image_sum(room: &mut NativeRoom) -> String {
    room.server.sh("sha256sum /var/lib/ggnet/images/*.raw").unwrap()
}

/// A machine that boots in the room.
struct Pc {
    machine: Machine,
    firmware: Firmware,
    guest: Guest,
}

impl Pc {
    /// Registers it and switches it on.
    fn boot(
        room: &NativeRoom,
        api: &Api,
        image: ImageId,
        name: &str,
        mac: &str,
        firmware: Firmware,
        slot: Slot,
    ) -> Self {
        let machine = api.add_machine(name, mac, image, WritebackPolicy::Discard).unwrap();
        // DHCP servers know registered machines alone, from their session on.
        api.start_session(machine.id).unwrap();
        // Without the card's ROM OVMF's own PXE client asks, and gets iPXE from in.tftpd; the BIOS machine's ROM is iPXE.
        let guest = Guest::builder(name).mac(mac).firmware(firmware).option_rom(firmware == Firmware::Bios);
        let guest = guest.slot(slot).tap(room.ns(), &room.tap().unwrap()).boot().unwrap();
        Self { machine, firmware, guest }
    }

    /// Waits until it is up, from its own disk.
    fn wait(&mut self, room: &mut NativeRoom, api: &Api) {
        let line = match self.guest.wait_boot() {
            Ok(line) => line,
            Err(e) => panic!("{e:?}\n{}", room.journal().unwrap()),
        };
        assert_eq!(line.firmware, if self.firmware == Firmware::Bios { "bios" } else { "uefi" });
        check_boot(api, &self.machine, &line);
    }

    /// Switches it off and stops its session.
    fn stop(self, api: &Api) {
        drop(self.guest);
        let session = api.active(self.machine.id).unwrap().session.id;
        api.stop_session(session, true).unwrap();
    }
}

/// A BIOS and a UEFI machine from one image; the server is killed under them.
pub fn two_boot_at_once(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("a BIOS and a UEFI machine boot at once");
    let before = image_sum(room);
    let mut slots = reserve(2).unwrap().into_iter();
    let mut slot = || slots.next().unwrap();
    let mut bios = Pc::boot(room, api, image, "pc-bios", "52:54:00:dd:00:01", Firmware::Bios, slot());
    let mut uefi = Pc::boot(room, api, image, "pc-uefi", "52:54:00:dd:00:02", Firmware::Uefi, slot());
    bios.wait(room, api);
    uefi.wait(room, api);
    // Each has a disk of its own.
    bios.guest.sh("echo mine >/root/mine && sync").unwrap();
    assert_ne!(uefi.guest.shell("cat /root/mine").unwrap().code, 0);

    // The kernel serves on when the server is killed, and the next one knows what is there.
    room.server.sh("systemctl kill --signal=KILL ggnet-server").unwrap();
    assert_eq!(bios.guest.sh("echo 3 >/proc/sys/vm/drop_caches; cat /root/mine").unwrap(), "mine");
    let session = api_after_restart(room, api, &bios.machine);
    assert_eq!(session, SessionState::Active);
    uefi.guest
        .sh("echo 3 >/proc/sys/vm/drop_caches; ls -R /etc >/dev/null && echo more >/root/more && sync")
        .unwrap();

    bios.stop(api);
    uefi.stop(api);
    assert_eq!(image_sum(room), before, "the image was changed");
    assert_eq!(targets(room), 0);
}

/// One machine by its firmware's own PXE client, which asks the DHCP server for more than a BIOS machine with iPXE in its card.
pub fn a_uefi_machine_boots(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("a UEFI machine boots");
    let before = image_sum(room);
    let slot = reserve(1).unwrap().remove(0);
    let mut pc = Pc::boot(room, api, image, "pc-alone", "52:54:00:dd:00:03", Firmware::Uefi, slot);
    pc.wait(room, api);
    pc.stop(api);
    assert_eq!(image_sum(room), before, "the image was changed");
    assert_eq!(targets(room), 0);
}

fn api_after_restart(room: &mut NativeRoom, api: &Api, machine: &Machine) -> SessionState {
    room.ready(api).unwrap();
    api.active(machine.id).unwrap().session.state
}

fn check_boot(api: &Api, machine: &Machine, line: &BootLine) {
    assert_eq!((line.transport.as_str(), line.net.as_str()), ("iscsi", "ibft"), "{line:?}");
    assert_eq!((line.boots, line.writable, line.iscsid), (1, true, true), "{line:?}");
    assert_eq!(line.portal, format!("{SERVER}:3260"));
    assert!(line.chap.is_some(), "logged in without CHAP: {line:?}");
    let target = wait::until("the login to be seen", wait::SHORT, || {
        let session = api.active(machine.id)?;
        Ok((session.target_iqn.to_string() == line.target && session.online).then_some(()))
    });
    target.unwrap_or_else(|e| panic!("{e:?}: {line:?}"));
}

/// How many targets the kernel has.
fn targets(room: &mut NativeRoom) -> usize {
    room.server.sh("ls /sys/kernel/config/target/iscsi | grep -c ^iqn || true").unwrap().parse().unwrap()
}

/// Fifty sessions at once are fifty targets with a disk each; stopped, none.
pub fn fifty_at_once(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("fifty sessions at once");
    let machines: Vec<Machine> = (0..50)
        .map(|n| {
            let mac = format!("52:54:00:de:00:{n:02x}");
            api.add_machine(&format!("many-{n}"), &mac, image, WritebackPolicy::Discard).unwrap()
        })
        .collect();
    let sessions = together(&machines, |machine| api.start_session(machine.id).unwrap().session.session.id);
    assert_eq!(targets(room), 50);
    let files = "cat /sys/kernel/config/target/core/fileio_*/*/udev_path | sort -u | wc -l";
    assert_eq!(room.server.sh(files).unwrap(), "50");
    let enabled = "cat /sys/kernel/config/target/iscsi/*/tpgt_1/enable | grep -c 1";
    assert_eq!(room.server.sh(enabled).unwrap(), "50");
    together(&sessions, |session| drop(api.stop_session(*session, false).unwrap()));
    assert_eq!(targets(room), 0);
    assert_nothing_left(room);
}

/// The same server with the tool in place of configfs, as the example for its unit says.
pub fn five_by_targetcli(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("five sessions by targetcli");
    room.stop().unwrap();
    room.become_root().unwrap();
    room.daemons(Dhcp::Dnsmasq).unwrap();
    room.start(&format!("{COMMON}{BY_TARGETCLI}{}", Dhcp::Dnsmasq.config(false))).unwrap();
    let machines: Vec<Machine> = (1..=5)
        .map(|n| {
            let mac = format!("52:54:00:dc:00:{n:02x}");
            api.add_machine(&format!("tool-{n}"), &mac, image, WritebackPolicy::Discard).unwrap()
        })
        .collect();
    let sessions = together(&machines, |machine| api.start_session(machine.id).unwrap().session.session.id);
    assert_eq!(targets(room), 5);
    let enabled = "cat /sys/kernel/config/target/iscsi/*/tpgt_1/enable | grep -c 1";
    assert_eq!(room.server.sh(enabled).unwrap(), "5");
    let shown = room.server.sh("targetcli ls /iscsi").unwrap();
    for machine in &machines {
        let target = api.active(machine.id).unwrap().target_iqn.to_string();
        assert!(shown.contains(&target), "{target} is not in {shown}");
    }
    together(&sessions, |session| drop(api.stop_session(*session, false).unwrap()));
    assert_eq!(targets(room), 0);
    assert_nothing_left(room);
}

/// Does it to all at the same time; the results are in their order.
fn together<T: Sync, R: Send>(all: &[T], what: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|one| scope.spawn(|| what(one))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// No backstore and no disk.
fn assert_nothing_left(room: &mut NativeRoom) {
    let left = "ls -d /sys/kernel/config/target/core/fileio_* /var/lib/ggnet/disks/*-* 2>/dev/null | wc -l";
    assert_eq!(room.server.sh(left).unwrap(), "0");
}

/// The main file was spoilt: a start fails and names it, and the daemon serves on what it has.
pub fn what_dhcpd_refuses_changes_nothing(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("a configuration that dhcpd refuses");
    let add = |name: &str, mac: &str| api.add_machine(name, mac, image, WritebackPolicy::Discard).unwrap();
    let first = add("before", "52:54:00:db:00:01");
    api.start_session(first.id).unwrap();
    let state = "systemctl show -p ActiveState -p MainPID isc-dhcp-server; cat /etc/dhcp/ggnet/hosts.conf";
    let before = room.server.sh(state).unwrap();
    assert!(before.contains("ActiveState=active") && before.contains("52:54:00:db:00:01"), "{before}");

    room.server.sh("cp /etc/dhcp/dhcpd.conf /root/good && echo spoilt >>/etc/dhcp/dhcpd.conf").unwrap();
    let second = add("after", "52:54:00:db:00:02");
    let refused = ggnet_tests::refusal(api.start_session(second.id)).unwrap();
    assert!(refused.to_string().contains("dhcpd"), "{refused}");
    // The reconciler tries again, too: while dhcpd checks that, the file holds what is tried.
    wait::until("dhcpd and its file to be as before", wait::SHORT, || {
        Ok((room.server.sh(state)? == before).then_some(()))
    })
    .unwrap();
    assert_eq!(targets(room), 1);

    room.server.sh("cp /root/good /etc/dhcp/dhcpd.conf").unwrap();
    api.start_session(second.id).unwrap();
    let after = room.server.sh(state).unwrap();
    for mac in ["52:54:00:db:00:01", "52:54:00:db:00:02"] {
        assert!(after.contains(mac), "{after}");
    }
    for machine in [&first, &second] {
        api.stop_session(api.active(machine.id).unwrap().session.id, false).unwrap();
    }
    assert_eq!(targets(room), 0);
}

/// The same dhcpd told over OMAPI, set up as the guide says: it knows a new machine and was not restarted.
pub fn by_omapi_without_a_restart(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("a machine told by OMAPI");
    room.stop().unwrap();
    room.daemons(Dhcp::DhcpdByOmapi).unwrap();
    room.start(&format!("{COMMON}{BY_HELPER}{}", Dhcp::DhcpdByOmapi.config(true))).unwrap();
    let state = "systemctl show -p ActiveState isc-dhcp-server; pidof dhcpd";
    let before = room.server.sh(state).unwrap();
    assert!(before.starts_with("ActiveState=active"), "{before}");

    let (mac, leases) = ("52:54:00:db:00:04", "cat /var/lib/dhcp/dhcpd.leases");
    assert!(!room.server.sh(leases).unwrap().contains(mac));
    let machine = api.add_machine("told", mac, image, WritebackPolicy::Discard).unwrap();
    let told = room.server.sh(leases).unwrap();
    assert!(told.contains(mac), "dhcpd was not told: {told}");
    let session = api.start_session(machine.id).unwrap().session.session.id;
    assert_eq!(targets(room), 1);
    api.stop_session(session, false).unwrap();
    assert_eq!(room.server.sh(state).unwrap(), before);
    assert_eq!(targets(room), 0);
}

/// The guide's commands for an upgrade, and for targets by hand.
pub fn an_upgrade_leaves_a_session_alone(room: &mut NativeRoom, api: &Api, image: ImageId) {
    begins("an upgrade under a session");
    let machine = api.add_machine("upgraded", "52:54:00:db:00:03", image, WritebackPolicy::Discard).unwrap();
    let session = api.start_session(machine.id).unwrap().session.session.id;
    let tree = "find /sys/kernel/config/target/iscsi -path '*ggnet*' | grep -v stat | sort | sha256sum";
    let before = room.server.sh(tree).unwrap();
    for command in [
        "systemctl stop ggnet-server",
        "make --no-print-directory -C /product install BIN_DIR=/product/bin && systemctl daemon-reload",
        "systemctl try-restart ggnet-helper",
    ] {
        room.server.sh(command).unwrap();
        assert_eq!(room.server.sh(tree).unwrap(), before, "after {command}");
    }
    room.server.sh("systemctl start ggnet-server").unwrap();
    room.ready(api).unwrap();
    assert_eq!(api.active(machine.id).unwrap().session.state, SessionState::Active);
    assert_eq!(room.server.sh(tree).unwrap(), before);

    // Somebody took the target away while the server was off: it is made again.
    room.server.sh("systemctl stop ggnet-server").unwrap();
    room.server.sh("targetcli clearconfig confirm=True").unwrap();
    assert_eq!(targets(room), 0);
    room.server.sh("systemctl start ggnet-server").unwrap();
    room.ready(api).unwrap();
    let made = wait::until("the target to be made again", wait::SHORT, || {
        Ok((room.server.sh("cat /sys/kernel/config/target/iscsi/*ggnet*/tpgt_1/enable; true")?.trim() == "1")
            .then_some(()))
    });
    made.unwrap();
    api.stop_session(session, false).unwrap();
    assert_eq!(targets(room), 0);
}

/// A daemon that does not run: starts fail and say which, nothing is left, and the server says that it is not ready. A D-Bus that was
/// restarted is found again.
pub fn a_stopped_daemon_is_named(room: &mut NativeRoom, api: &Api, image: ImageId, dhcp: Dhcp) {
    begins("a stopped daemon");
    let unit = dhcp.unit();
    let (name, mac) = match dhcp {
        Dhcp::Dnsmasq => ("late-dnsmasq", "52:54:00:df:00:01"),
        Dhcp::Dhcpd | Dhcp::DhcpdByOmapi => ("late-dhcpd", "52:54:00:df:00:02"),
    };
    let machine = api.add_machine(name, mac, image, WritebackPolicy::Discard).unwrap();
    room.server.sh(&format!("systemctl stop {unit}")).unwrap();
    let refused = ggnet_tests::refusal(api.start_session(machine.id)).unwrap();
    assert!(refused.to_string().contains(unit), "{refused}");
    let not_ready =
        wait::until("the server to be not ready", wait::SHORT, || Ok((!api.is_ready()).then_some(())));
    not_ready.unwrap();
    assert_eq!(targets(room), 0);
    room.server.sh(&format!("systemctl start {unit} && systemctl restart dbus")).unwrap();
    room.ready(api).unwrap();
    let session = api.start_session(machine.id).unwrap().session.session.id;
    assert_eq!(targets(room), 1);
    api.stop_session(session, false).unwrap();
}
