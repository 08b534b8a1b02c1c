//! The observations of backends become a machine's boot timeline.

use std::{sync::Arc, time::Duration};

use ggnet_core::{
    nouns::{BootStage, Diagnosis, EventKind, Firmware, MacAddr},
    ports::{BootBundle, BootFileStore as _, Observation, Observer as _, Store as _},
};

use crate::site::{Process, Site, all, mac, peer, until};

fn stages(events: &[EventKind]) -> Vec<BootStage> {
    let stage = |kind: &EventKind| match kind {
        EventKind::BootStage { stage, .. } => Some(*stage),
        _ => None,
    };
    events.iter().filter_map(stage).collect()
}

#[tokio::test]
async fn a_boot_is_told_stage_by_stage() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let has = async |n: usize| {
        until("the stage is recorded", async || stages(&p.events(machine.id).await).len() >= n).await;
    };
    assert!(p.dhcp.request(mac(1), Firmware::Bios, false).is_some());
    has(1).await;
    loader(&p, mac(1), "undionly.kpxe").await;
    has(2).await;
    // iPXE asks DHCP again, which is no stage.
    assert!(p.dhcp.request(mac(1), Firmware::Bios, true).is_some());
    let script = p.script(&machine).await;
    has(3).await;
    let disk = p.login(&script.target, &machine).await.unwrap();
    has(4).await;
    disk.read(0, 0, 512).await.unwrap();
    disk.read(0, 512, 512).await.unwrap();
    has(5).await;
    disk.write(0, 0, &[1; 512]).await.unwrap();
    has(6).await;
    disk.logout().await;
    has(7).await;
    assert_eq!(stages(&p.events(machine.id).await), BootStage::ALL);
    let session = p.session(&machine).await;
    let events = p.store.events(None, 1000, Some(machine.id)).await.unwrap();
    let of_disk = events.iter().filter(
        |e| matches!(e.event.kind, EventKind::BootStage { stage, .. } if stage >= BootStage::IscsiLogin),
    );
    for event in of_disk {
        assert_eq!(event.event.session, Some(session.id));
        assert!(matches!(event.event.kind, EventKind::BootStage { generation: Some(1), .. }));
    }
}

/// The machine fetches a loader whose path names it.
async fn loader(p: &Process, mac: MacAddr, name: &str) {
    let path: ggnet_core::ports::BootPath = format!("{}/{name}", mac.hyphenated()).parse().unwrap();
    let bundle = BootBundle {
        id: "loaders".parse().unwrap(),
        files: [(path.clone(), bytes::Bytes::from_static(b"loader"))].into(),
    };
    p.files.ensure(&bundle).await.unwrap();
    p.files.fetch(&path, peer()).unwrap();
}

#[tokio::test]
async fn strangers_and_trouble_are_told() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    // Many in one batch: the first sighting is one event.
    for _ in 0..10 {
        assert!(p.dhcp.request(mac(9), Firmware::Uefi, false).is_none());
    }
    let session = p.start(&machine).await.unwrap().session;
    p.o.observe(Observation::NotAnswered { mac: mac(1), reason: "no loader for arm64".to_owned() });
    p.o.observe(Observation::DiskTrouble {
        target: session.target(&session.current),
        message: "the host's disk is full".to_owned(),
    });
    until("all of it is recorded", async || {
        p.events(machine.id).await.iter().any(|k| matches!(k, EventKind::DiskTrouble { .. }))
    })
    .await;
    let events = p.all_events().await;
    assert_eq!(events.iter().filter(|k| **k == EventKind::MachineSeen { mac: mac(9) }).count(), 1);
    let message = "no loader for arm64".to_owned();
    let diagnosis = Some(Diagnosis::not_answered(&message));
    let diagnosis = EventKind::BootDiagnosis { message, diagnosis };
    assert!(p.events(machine.id).await.contains(&diagnosis));
    let seen = p.store.seen(all()).await.unwrap().items;
    assert_eq!((seen.len(), seen[0].count, seen[0].firmware), (1, 10, Firmware::Uefi));
}

/// Time is paused: it jumps when everybody waits.
#[tokio::test(start_paused = true)]
async fn a_uefi_loader_and_no_script_is_probably_secure_boot() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let silent = p.machine(1, image, |_| ()).await;
    let asks = p.machine(2, image, |_| ()).await;
    let bios = p.machine(3, image, |_| ()).await;
    let diagnosed = async |machine: &ggnet_core::nouns::Machine| {
        let events = p.events(machine.id).await;
        events
            .iter()
            .filter(|k| {
                matches!(k, EventKind::BootDiagnosis { message, diagnosis: Some(d) }
                if message.contains("Secure Boot") && d.code == "secure_boot_likely")
            })
            .count()
    };
    let boots = async |machine: &ggnet_core::nouns::Machine, file| {
        assert!(p.dhcp.request(machine.macs[0], Firmware::Uefi, false).is_some());
        loader(&p, machine.macs[0], file).await;
    };
    for (machine, file) in [(&silent, "ipxe.efi"), (&asks, "ipxe.efi"), (&bios, "undionly.kpxe")] {
        boots(machine, file).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(diagnosed(&silent).await, 0, "there is still time");
    p.script(&asks).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!((diagnosed(&silent).await, diagnosed(&asks).await, diagnosed(&bios).await), (1, 0, 0));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(diagnosed(&silent).await, 1, "told once");
    // It retries: offered, loaded, silent. And a third time, with success.
    boots(&silent, "ipxe.efi").await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(diagnosed(&silent).await, 2);
    boots(&silent, "ipxe.efi").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    p.script(&silent).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(diagnosed(&silent).await, 2);
    // Another client fetches its loader: that says nothing about the machine.
    loader(&p, silent.macs[0], "ipxe.efi").await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(diagnosed(&silent).await, 2);
    let _ = Arc::strong_count(&p.files);
}

/// Time is paused: it jumps when everybody waits.
#[tokio::test(start_paused = true)]
async fn a_running_machine_that_stalls_in_its_login_is_explained_once_an_hour() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let other = p.machine(2, image, |_| ()).await;
    let session = p.start(&machine).await.unwrap().session;
    let first = session.target(&session.current);
    let stall = async |target: &ggnet_core::nouns::ResourceId| {
        for _ in 0..20 {
            p.o.observe(Observation::LoginStalled { target: target.clone(), peer: peer() });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let explained = async |machine: &ggnet_core::nouns::Machine| {
        let hint = |k: &&EventKind| matches!(k, EventKind::BootDiagnosis { message, .. } if message.contains("guest-kit"));
        p.events(machine.id).await.iter().filter(hint).count()
    };
    stall(&first).await;
    assert_eq!(explained(&machine).await, 0, "nobody was logged in yet");
    p.power_on(&machine).await.logout().await;
    stall(&first).await;
    stall(&first).await;
    assert_eq!(explained(&machine).await, 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stall(&first).await;
    assert_eq!(explained(&machine).await, 2, "an hour later it is said again");

    // It boots again: its old target is gone, and the next one is not committed yet.
    let script = p.script(&machine).await;
    assert_ne!(script.target, first);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stall(&script.target).await;
    assert_eq!(explained(&machine).await, 2);
    let disk = p.login(&script.target, &machine).await.unwrap();
    stall(&first).await;
    stall(&script.target).await;
    assert_eq!((explained(&machine).await, explained(&other).await), (2, 0), "it has its disk");
    disk.logout().await;
    stall(&script.target).await;
    assert_eq!(explained(&machine).await, 3);
}

/// A loader that asks for an address is running, even if it fails later; a card whose ROM is iPXE has no loader before it.
#[tokio::test(start_paused = true)]
async fn a_loader_that_runs_is_not_blamed_on_secure_boot() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let loads = p.machine(1, image, |_| ()).await;
    let rom = p.machine(2, image, |_| ()).await;
    let asks = |machine: &ggnet_core::nouns::Machine, ipxe| {
        p.o.observe(Observation::AddressOffered {
            mac: machine.macs[0],
            firmware: Firmware::Uefi,
            boot_file: "x".to_owned(),
            ipxe,
        });
    };
    asks(&loads, false);
    loader(&p, loads.macs[0], "ipxe.efi").await;
    asks(&loads, true);
    asks(&rom, true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let offered = EventKind::BootStage { stage: BootStage::AddressOffered, generation: None };
    for machine in [&loads, &rom] {
        let events = p.events(machine.id).await;
        assert_eq!(events.iter().filter(|k| **k == offered).count(), 1, "{events:?}");
    }
    let diagnoses: Vec<String> = p
        .all_events()
        .await
        .into_iter()
        .filter_map(|k| match k {
            EventKind::BootDiagnosis { message, .. } => Some(message),
            _ => None,
        })
        .collect();
    assert!(
        matches!(&diagnoses[..], [one] if one.contains("HTTP") && !one.contains("Secure Boot")),
        "{diagnoses:?}"
    );
}

/// Time is paused: it jumps when everybody waits.
#[tokio::test(start_paused = true)]
async fn whoever_asks_for_a_disk_that_is_gone_is_explained_once_an_hour() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let first = p.script(&machine).await.target;
    let displaced = p.login(&first, &machine).await.unwrap();
    let late = async |target: &ggnet_core::nouns::ResourceId| {
        for _ in 0..20 {
            p.o.observe(Observation::LoginTooLate { target: target.clone(), peer: peer() });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let told = async |words: &str| {
        let said =
            |k: &&EventKind| matches!(k, EventKind::BootDiagnosis { message, .. } if message.contains(words));
        p.events(machine.id).await.iter().filter(said).count()
    };
    // Another machine boots with its MAC address.
    let second = p.script(&machine).await.target;
    let newer = p.login(&second, &machine).await.unwrap();
    assert!(!displaced.is_connected() && newer.is_connected());
    late(&second).await;
    assert_eq!(told("MAC address").await, 0, "that is the running machine's own disk");
    late(&first).await;
    late(&first).await;
    assert_eq!(told("likely two machines boot with the same MAC address").await, 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    late(&first).await;
    assert_eq!(told("likely two machines boot with the same MAC address").await, 2);
    // Stopped under the running machine.
    p.stop(&p.session(&machine).await, true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    late(&second).await;
    assert_eq!(told("its session was stopped").await, 1);
}

#[tokio::test]
async fn a_flood_in_one_machines_name_leaves_no_hole_in_anothers_timeline() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let flooded = p.machine(1, image, |_| ()).await;
    let other = p.machine(2, image, |_| ()).await;
    let observe =
        |mac: MacAddr| p.o.observe(Observation::NotAnswered { mac, reason: "no loader".to_owned() });
    let told = async |machine: &ggnet_core::nouns::Machine| {
        let events = p.events(machine.id).await;
        events.iter().filter(|k| matches!(k, EventKind::BootDiagnosis { .. })).count()
    };
    // The writer has no turn meanwhile.
    for _ in 0..20_000 {
        observe(flooded.macs[0]);
    }
    observe(other.macs[0]);
    until("the other's event is recorded", async || told(&other).await == 1).await;
    assert_ne!(told(&flooded).await, 0, "the flood came first");
}
