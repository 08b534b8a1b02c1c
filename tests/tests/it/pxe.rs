//! Boots over the wire: DHCP → TFTP → iPXE → HTTP → iSCSI on a LAN whose router gives addresses and knows nothing of us.

use std::time::Duration;

use ggnet_core::boot_text::templates::Template;
use ggnet_core::nouns::{
    BootStage, EventKind, Firmware as Says, ImageVersion, MacAddr, MachineId, WritebackPolicy,
};
use ggnet_tests::lan::SERVER;
use ggnet_tests::{BootLine, Firmware, Guest, GuestImage, Lan, sha256_file, wait};

use crate::room::first_times;

/// A LAN with the guest image on its server, imported through the API.
fn lan_with_image(config: &str) -> (Lan, ImageVersion) {
    let qcow2 = GuestImage::get().unwrap().qcow2().canonicalize().unwrap();
    let lan = Lan::new(config, &[qcow2.parent().unwrap()]).unwrap();
    let image = lan.api().import_and_wait("golden", &qcow2, |_| {}).unwrap().version;
    (lan, image)
}

/// Root is on iSCSI, from our server, through the session that the API tells of; the image is as it was.
fn check_boot(lan: &Lan, image: &ImageVersion, machine: MachineId, line: &BootLine) {
    assert_eq!((line.transport.as_str(), line.net.as_str()), ("iscsi", "ibft"), "{line:?}");
    assert_eq!((line.boots, line.writable, line.iscsid), (1, true, true), "{line:?}");
    assert_eq!(line.portal, format!("{SERVER}:3260"));
    assert!(line.chap.is_some(), "logged in without CHAP: {line:?}");
    // The router's address, not one of ours.
    assert!(line.ip.starts_with("10.78.0.1"), "{line:?}");
    assert!(lan.router_log().lines().any(|l| l.contains("DHCPACK(") && l.contains(&line.ip)), "{line:?}");
    let session = lan.api().active(machine).unwrap();
    assert_eq!(line.target, session.target_iqn.to_string());
    assert!(session.online);
    let file = lan.data_dir().join("images").join(format!("{}.raw", image.id));
    assert_eq!(image.sha256, Some(sha256_file(&file).unwrap()), "the image was changed");
}

#[test]
fn a_uefi_machine_boots_over_the_wire_by_our_loader() {
    let (lan, image) = lan_with_image("");
    let mac = "52:54:00:cc:00:01";
    let machine = lan.api().add_machine("pc-uefi", mac, image.image, WritebackPolicy::Discard).unwrap();
    // Without the card's ROM there is no iPXE in it: OVMF's own PXE client asks.
    let pc = Guest::builder("pxe-uefi").mac(mac).firmware(Firmware::Uefi).option_rom(false);
    let mut pc = pc.tap(lan.ns(), &lan.tap().unwrap()).boot().unwrap();
    let line = pc.wait_boot().unwrap_or_else(|e| panic!("{e:?}\n{}\n{}", lan.server_log(), lan.router_log()));

    assert_eq!(line.firmware, "uefi");
    check_boot(&lan, &image, machine.id, &line);
    // iPXE's connection may end before or after the kernel's first write.
    let mut stages = first_times(&lan.api().stages(None, machine.id).unwrap());
    stages.retain(|s| *s != BootStage::Disconnected);
    assert_eq!(stages, BootStage::ALL[..6]);
    // The firmware fetched our loader, and what it loaded asked for an address again, as iPXE.
    lan.wait_log(&["TFTP read", "52-54-00-cc-00-01/ipxe.efi", "outcome=\"complete\""], wait::SHORT).unwrap();
    lan.wait_log(&["Answered", mac, "/boot/52-54-00-cc-00-01.ipxe", "ipxe=true"], wait::SHORT).unwrap();
    assert!(lan.discovers(mac) >= 2, "{}", lan.router_log());
}

/// Templates of a script that leads a machine to our loader first, as an operator's may: the ROM of a virtual card is iPXE already.
pub fn by_our_loader() -> tempfile::TempDir {
    let templates = tempfile::tempdir().unwrap();
    let detour = format!(
        "#!ipxe\niseq ${{net0/chip}} undionly && goto second ||\n\
         echo Fetching undionly.kpxe\nchain tftp://{SERVER}/${{net0/mac:hexhyp}}/undionly.kpxe\n:second\necho Here runs undionly\n"
    );
    let script = Template::Machine.built_in().replacen("#!ipxe\n", &detour, 1);
    std::fs::write(templates.path().join(Template::Machine.file_name()), script).unwrap();
    templates
}

#[test]
fn a_bios_machine_boots_over_the_wire_by_our_undionly() {
    let templates = by_our_loader();
    let (lan, image) = lan_with_image(&format!("templates_dir = \"{}\"\n", templates.path().display()));
    let mac = "52:54:00:cc:00:02";
    let machine = lan.api().add_machine("pc-bios", mac, image.image, WritebackPolicy::Discard).unwrap();
    let pc = Guest::builder("pxe-bios").mac(mac).firmware(Firmware::Bios);
    let mut pc = pc.tap(lan.ns(), &lan.tap().unwrap()).boot().unwrap();
    let line = pc.wait_boot().unwrap_or_else(|e| panic!("{e:?}\n{}\n{}", lan.server_log(), lan.router_log()));

    assert_eq!(line.firmware, "bios");
    check_boot(&lan, &image, machine.id, &line);
    assert!(pc.serial_text().contains("Here runs undionly"));
    lan.wait_log(&["TFTP read", "52-54-00-cc-00-02/undionly.kpxe", "outcome=\"complete\""], wait::SHORT)
        .unwrap();
    // Two rounds: the card's iPXE and ours each asked for an address, were sent to the script and read it.
    assert!(lan.discovers(mac) >= 2, "{}", lan.router_log());
    let stages: Vec<BootStage> = lan.api().stages(None, machine.id).unwrap();
    let until_login: Vec<BootStage> =
        stages.iter().copied().take_while(|s| *s != BootStage::IscsiLogin).collect();
    let boot = [BootStage::ScriptRead, BootStage::LoaderSent, BootStage::ScriptRead];
    assert!(
        until_login.starts_with(&[BootStage::AddressOffered]) && until_login.ends_with(&boot),
        "{stages:?}"
    );
    for stage in [BootStage::IscsiLogin, BootStage::FirstRead, BootStage::FirstWrite] {
        assert!(stages.contains(&stage), "{stages:?}");
    }
    // Neither script was used up by being read: one generation served both rounds.
    assert_eq!(lan.api().active(machine.id).unwrap().session.current.number, 1);
}

#[test]
fn a_loader_without_a_script_is_diagnosed_and_a_stranger_is_remembered() {
    let (lan, image) = lan_with_image("[session]\nscript_deadline = \"3s\"\n");
    let mac = "52:54:00:cc:00:03";
    let machine = lan.api().add_machine("locked", mac, image.image, WritebackPolicy::Discard).unwrap();
    let fetch = || lan.curl(&[&format!("tftp://{SERVER}/52-54-00-cc-00-03/ipxe.efi")]).unwrap();
    // Somebody fetches the file that is named after it: that says nothing of the machine.
    fetch();
    std::thread::sleep(Duration::from_secs(5));
    let events = lan.api().events(None, Some(machine.id)).unwrap();
    assert!(!events.iter().any(|e| matches!(e.event.kind, EventKind::BootDiagnosis { .. })), "{events:?}");
    lan.uefi_asks(mac).unwrap();
    let loader = fetch();
    assert!(loader == std::fs::read("/usr/lib/ipxe/ipxe.efi").unwrap(), "another loader than the host's");
    let message = wait::until("the diagnosis", wait::SHORT, || {
        let events = lan.api().events(None, Some(machine.id))?;
        Ok(events.into_iter().find_map(|e| match e.event.kind {
            EventKind::BootDiagnosis { message, .. } => Some(message),
            _ => None,
        }))
    });
    let message = message.unwrap_or_else(|e| panic!("{e}; the server's log:\n{}", lan.server_log()));
    assert!(message.contains("Secure Boot") && message.contains("52:54:00:cc:00:03"), "{message}");

    let stranger: MacAddr = "52:54:00:cc:00:99".parse().unwrap();
    let url = format!("http://{SERVER}:8080/boot/52-54-00-cc-00-99.ipxe?platform=efi");
    let script = String::from_utf8(lan.curl(&[&url]).unwrap()).unwrap();
    assert!(script.contains("not registered") && script.contains("52:54:00:cc:00:99"), "{script}");
    let seen = lan.api().seen().unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].mac, seen[0].firmware, seen[0].count), (stranger, Says::Uefi, 1));
    assert_eq!(seen[0].address.as_deref(), Some(SERVER));
}
