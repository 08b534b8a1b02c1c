//! Whole records to put into a store: for the suite, and for tests of a backend's own.

use crate::nouns::{
    AuditAction, AuditRow, AuditSubject, ChapPair, DeviceType, DiskAccess, Disks, EventKind, Firmware,
    Generation, Image, ImageFormat, ImageId, ImageVersion, ImageVersionId, MacAddr, Machine, MachineId,
    MachineState, ManualTarget, NewEvent, Principal, ResourceId, SeenMachine, Session, SessionDisk,
    SessionId, SessionState, TargetId, Timestamp, VersionSource, VersionState, WritebackPolicy,
};

/// The moment `seconds` after a fixed one.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// The `n`th MAC address of the tests.
#[must_use]
pub fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr::new([0x52, 0x54, a, b, c, d]).unwrap()
}

/// A new machine `pc-<n>` with one card.
#[must_use]
pub fn machine(n: u32) -> Machine {
    Machine {
        id: MachineId::generate(),
        name: format!("pc-{n}").parse().unwrap(),
        description: format!("Row {n}"),
        macs: vec![mac(n)],
        device_type: DeviceType::X64,
        firmware: Firmware::Uefi,
        fixed_address: Some("10.1.2.3".parse().unwrap()),
        groups: vec!["room-1".parse().unwrap()],
        state: MachineState::Active,
        image: None,
        pinned_version: None,
        auto_start: true,
        writeback: WritebackPolicy::Discard,
        created_at: at(0),
        updated_at: at(1),
        revision: 0,
    }
}

/// A new image of this name.
#[must_use]
pub fn image(name: &str) -> Image {
    Image {
        id: ImageId::generate(),
        name: name.parse().unwrap(),
        description: "An image".to_owned(),
        current: None,
        last_version: 0,
        created_at: at(0),
        updated_at: at(1),
        revision: 0,
    }
}

/// A ready version of an image.
#[must_use]
pub fn version(image: ImageId, number: u32) -> ImageVersion {
    ImageVersion {
        id: ImageVersionId::generate(),
        image,
        number,
        state: VersionState::Ready,
        comment: "first".to_owned(),
        source: VersionSource::Import {
            path: "/srv/images/a.qcow2".into(),
            format: Some(ImageFormat::Qcow2),
            expected_sha256: Some("ab".repeat(32)),
        },
        size_bytes: 1 << 33,
        sha256: Some("cd".repeat(32)),
        error: None,
        failure: None,
        created_at: at(0),
        finished_at: Some(at(9)),
    }
}

/// A generation of a machine's session, with credentials.
#[must_use]
pub fn generation(machine: MachineId, version: &ImageVersion, number: u32) -> Generation {
    Generation {
        number,
        chap: Some(ChapPair::random(format!("user-{number}")).unwrap()),
        disks: Disks::of_system(version.image, version.id, ResourceId::generation(machine, number)),
        prepared_at: at(10),
        committed_at: None,
    }
}

/// These disks with shared data disks of these versions behind them.
#[must_use]
pub fn with_data(disks: &Disks, versions: &[&ImageVersion]) -> Disks {
    let mut all = disks.to_vec();
    for version in versions {
        let lun = all.last().unwrap().lun + 1;
        let access = DiskAccess::Shared;
        all.push(SessionDisk { lun, image: version.image, version: version.id, access });
    }
    Disks::new(all).unwrap()
}

/// A new session in `state`; ended at second 50 when it is not live.
#[must_use]
pub fn session(machine: MachineId, version: &ImageVersion, state: SessionState) -> Session {
    Session {
        id: SessionId::generate(),
        machine,
        state,
        policy: WritebackPolicy::Discard,
        chosen_image: None,
        data_disks: Vec::new(),
        initiator: "iqn.2026-11.local.ggnet:525400000001".parse().unwrap(),
        current: generation(machine, version, 1),
        next: None,
        last_generation: 1,
        started_at: at(10),
        active_at: None,
        ended_at: (!state.is_live()).then(|| at(50)),
        stop_reason: None,
        stop_forced: false,
        error: None,
        failure: None,
        owner: None,
        epoch: 0,
        revision: 0,
    }
}

/// A manual target of this name.
#[must_use]
pub fn target(name: &str, version: ImageVersionId) -> ManualTarget {
    ManualTarget {
        id: TargetId::generate(),
        name: name.parse().unwrap(),
        version,
        initiator: Some("iqn.2026-11.org.example:pc-1".parse().unwrap()),
        created_at: at(3),
    }
}

/// An unknown machine, seen once at second `n`.
#[must_use]
pub fn seen(n: u32) -> SeenMachine {
    let when = at(i64::from(n));
    SeenMachine {
        mac: mac(n),
        firmware: Firmware::Bios,
        address: Some("10.0.0.9".to_owned()),
        first_seen: when,
        last_seen: when,
        count: 1,
    }
}

/// An audit row about the token `subject`, `seconds` after the fixed moment.
#[must_use]
pub fn audit(subject: &str, seconds: i64) -> AuditRow {
    let by = Principal::administrator().at(Some("192.0.2.7".to_owned())).asking("a-request".parse().ok());
    AuditRow::new(at(seconds), &by, AuditAction::TokenReset, AuditSubject::Token(subject.to_owned()))
        .before(serde_json::json!({ "name": "old", "n": 7, "nothing": null }))
        .after(serde_json::json!(["new", 7.5]))
}

/// An event, `seconds` after the fixed moment.
#[must_use]
pub fn event(seconds: i64) -> NewEvent {
    NewEvent::new(at(seconds), EventKind::MachineCreated)
}
