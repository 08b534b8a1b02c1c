//! The long tier: the whole suite by targetcli, and a room of its own for each DHCP server.

use ggnet_tests::NativeRoom;
use ggnet_tests::native_room::Dhcp;

use crate::{steps, suite};

mod targetcli {
    use super::*;

    #[test]
    fn the_kernel_target_driven_by_targetcli_behaves_as_every_target_must() {
        let mut room = NativeRoom::new(&[("lio_kernel", &suite::program())]).unwrap();
        suite::by_targetcli(&mut room);
    }
}

mod rooms {
    use super::*;

    #[test]
    fn with_dnsmasq() {
        let mut room = NativeRoom::new(&[]).unwrap();
        let api = steps::start(&mut room, Dhcp::Dnsmasq);
        let image = steps::import(&api);
        steps::two_boot_at_once(&mut room, &api, image);
        steps::fifty_at_once(&mut room, &api, image);
        steps::a_stopped_daemon_is_named(&mut room, &api, image, Dhcp::Dnsmasq);
        steps::five_by_targetcli(&mut room, &api, image);
    }

    #[test]
    fn with_iscs_dhcpd() {
        let mut room = NativeRoom::new(&[]).unwrap();
        let api = steps::start(&mut room, Dhcp::Dhcpd);
        let image = steps::import(&api);
        steps::two_boot_at_once(&mut room, &api, image);
        steps::what_dhcpd_refuses_changes_nothing(&mut room, &api, image);
        steps::an_upgrade_leaves_a_session_alone(&mut room, &api, image);
        steps::a_stopped_daemon_is_named(&mut room, &api, image, Dhcp::Dhcpd);
        steps::by_omapi_without_a_restart(&mut room, &api, image);
    }
}
