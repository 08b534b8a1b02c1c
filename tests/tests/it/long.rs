//! The long tier: what takes minutes.

mod data_folders {
    #[test]
    fn a_machine_boots_from_a_data_folder_of_before() {
        crate::data_folders::a_machine_boots();
    }
}

mod hostile {
    #[test]
    fn a_bios_machine_boots_over_the_wire_while_everything_hostile_happens_at_once() {
        crate::hostile::a_bios_machine_boots_meanwhile();
    }
}

mod soak {
    #[test]
    fn fifty_thousand_boots_leave_nothing_behind() {
        let boots = std::env::var("GGNET_SOAK_BOOTS").map_or(50_000, |n| n.parse().unwrap());
        crate::soak::leave_nothing_behind(boots);
    }
}

mod debian {
    use std::time::Duration;

    use ggnet_tests::debian::DebianGuests;
    use ggnet_tests::{Firmware, wait};

    use crate::debian::{BOOT, Bench, boot_to_take_over, boot_with_kit, outlives};
    use crate::room::check_no_io_error;

    #[test]
    fn with_the_kit_on_uefi_root_is_writable_after_five_minutes_and_three_without_a_server() {
        let disk = DebianGuests::get().unwrap().with_kit();
        let mut bench = Bench::new("debian-kit-uefi", "52:54:00:bb:00:62", &disk);
        let mut pc = boot_with_kit(&bench, Firmware::Uefi);
        std::thread::sleep(Duration::from_secs(300));
        check_no_io_error(&mut pc);
        pc.sh("echo after five minutes >/root/note && sync").unwrap();
        outlives(&mut bench, &mut pc, Duration::from_secs(180));
    }

    /// What our guide asked for once. Should a Debian ever need no kit, this test says so.
    #[test]
    fn without_the_kit_root_is_lost_and_the_timeline_says_why() {
        let disk = DebianGuests::get().unwrap().without_kit();
        let bench = Bench::new("debian-plain", "52:54:00:bb:00:63", &disk);
        let mut pc = bench.guest().boot().unwrap();
        wait::until("the timeline to say what is wrong", BOOT, || {
            Ok((!bench.diagnoses().is_empty()).then_some(()))
        })
        .unwrap();
        let diagnoses = bench.diagnoses();
        assert!(
            matches!(&diagnoses[..], [one] if one.contains("iscsid") && one.contains("ggnet guest-kit debian")),
            "{diagnoses:?}"
        );
        pc.wait_for("Remounting filesystem read-only|I/O error", BOOT).unwrap();
        assert_eq!(bench.diagnoses(), diagnoses, "said once");
    }

    /// The other cure, for a trusted network: without CHAP iscsid reads nothing of the root while it logs in.
    #[test]
    fn without_the_kit_and_without_chap_root_is_writable_after_its_iscsid_logged_in_again() {
        let disk = DebianGuests::get().unwrap().without_kit();
        let off = "[session]\nchap = \"off\"\n";
        let mut bench = Bench::with_config("debian-no-chap", "52:54:00:bb:00:64", &disk, off);
        let mut pc = boot_to_take_over(&bench, Firmware::Bios);
        check_no_io_error(&mut pc);
        pc.sh("echo after the take-over >/root/note && sync").unwrap();
        // Shorter than Debian's own two minutes.
        outlives(&mut bench, &mut pc, Duration::from_secs(30));
    }
}
