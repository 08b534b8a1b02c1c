//! What needs a kernel with an iSCSI target of its own, in virtual machines that have one: the target's behaviour suite, and a room
//! whose server is such a machine with systemd, the product installed in it.
//!
//! What is in `long` is the long tier's; the quick tier runs the rest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod long;
mod steps;
mod suite;

use ggnet_tests::NativeRoom;
use ggnet_tests::native_room::Dhcp;

#[test]
fn the_kernel_target_driven_through_configfs_behaves_as_every_target_must() {
    suite::by_configfs();
}

/// The server machine is booted once for all of it. `long::rooms` has a machine for each DHCP server, and two booting machines with each.
#[test]
fn a_room_with_dnsmasq_then_with_iscs_dhcpd_then_by_targetcli() {
    let mut room = NativeRoom::new(&[("lio_kernel", &suite::program())]).unwrap();
    let api = steps::start(&mut room, Dhcp::Dnsmasq);
    let image = steps::import(&api);
    steps::two_boot_at_once(&mut room, &api, image);
    steps::fifty_at_once(&mut room, &api, image);
    steps::a_stopped_daemon_is_named(&mut room, &api, image, Dhcp::Dnsmasq);

    room.stop().unwrap();
    let api = steps::start(&mut room, Dhcp::Dhcpd);
    steps::a_uefi_machine_boots(&mut room, &api, image);
    steps::what_dhcpd_refuses_changes_nothing(&mut room, &api, image);
    steps::an_upgrade_leaves_a_session_alone(&mut room, &api, image);
    steps::a_stopped_daemon_is_named(&mut room, &api, image, Dhcp::Dhcpd);
    steps::by_omapi_without_a_restart(&mut room, &api, image);

    steps::five_by_targetcli(&mut room, &api, image);
    room.stop().unwrap();
    suite::what_differs_by_targetcli(&mut room);
}
