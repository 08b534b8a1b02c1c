//! Data folders of earlier versions: this server opens them, and everything is there.
//!
//! The folders are in `tests/data-folders`, one for each format that was ever released or run; README.md there says what is in them and
//! how they were made. Each is tried in three states:
//!
//! ```text
//!   archive    boot id of the layers' `hot` maps    writes that must be there
//!   killed     this kernel's                        all that were acknowledged
//!   killed     another's, as after a power cut      those before the last flush
//!   stopped    another's, as after a reboot         all
//! ```
//! In the long tier a machine that was registered there boots, too: the disks of the archives are too small for an operating system, so one
//! of them is replaced by the guest's before the server starts.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use ggnet_core::api::{ImageResponse, SessionResponse};
use ggnet_core::nouns::{
    AuditRow, BootStage, Firmware, ImageVersionId, MachineState, SessionState, StopReason, WritebackPolicy,
};
use ggnet_tests::account::{self, MAX_SECTORS, SECTOR};
use ggnet_tests::server::script_path;
use ggnet_tests::{
    Account, Api, GgnetServer, Guest, GuestImage, Machine, ServerOptions, process, sha256_file,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;

/// The folders, and the schema of each one's database.
const FOLDERS: &[(&str, i64)] = &[("09e99f4", 1), ("3725b06", 1)];
/// Events of a folder are as old as the folder; here they are never forgotten.
const CONFIG: &str = "[session]\nretention = \"876000h\"\n";
/// A boot id that no kernel has.
const OTHER_KERNEL: &str = "00000000-0000-0000-0000-000000000000";

#[test]
fn every_folder_is_tried() {
    let mut there: Vec<_> = entries(&folders()).into_iter().filter(|p| p.is_dir()).collect();
    there.sort();
    let tried: Vec<_> = FOLDERS.iter().map(|(name, _)| folders().join(name)).collect();
    assert_eq!(there, tried);
}

#[test]
fn a_folder_whose_server_was_killed_opens_with_every_acknowledged_write() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for (name, schema) in FOLDERS {
        Folder::unpack(name, "killed", boot.trim()).opens(*schema, Unflushed::Kept);
    }
}

#[test]
fn a_folder_after_a_power_cut_opens_with_every_flushed_write() {
    for (name, schema) in FOLDERS {
        Folder::unpack(name, "killed", OTHER_KERNEL).opens(*schema, Unflushed::Lost);
    }
}

#[test]
fn a_folder_whose_server_was_stopped_opens_with_every_write() {
    for (name, schema) in FOLDERS {
        Folder::unpack(name, "stopped", OTHER_KERNEL).opens(*schema, Unflushed::Kept);
    }
}

/// `pc-pinned` boots twice, in BIOS mode, from the version that it was pinned to by the earlier server. Run by the long tier.
pub fn a_machine_boots() {
    let guest = GuestImage::get().unwrap();
    for (name, schema) in FOLDERS {
        let folder = Folder::unpack(name, "stopped", OTHER_KERNEL);
        let version = folder.replace_gold_2(&guest);
        let mut server = folder.start(*schema);
        let api = server.api().unwrap();
        let said = api.version(version).unwrap().version;
        let pinned = api.machine("pc-pinned").unwrap();
        assert_eq!((pinned.pinned_version, pinned.writeback), (Some(version), WritebackPolicy::Discard));
        // It has no auto start.
        let started = api.start_session(pinned.id).unwrap();

        let mac = mac(6);
        let machine = Guest::builder(&format!("folder-{name}")).mac(&mac);
        let mut pc = machine.user_network(server.script_url(&mac)).boot().unwrap();
        for generation in 1..=2 {
            let line = pc.wait_boot().unwrap();
            assert_eq!((line.transport.as_str(), line.firmware.as_str()), ("iscsi", "bios"));
            assert_eq!((line.boots, line.writable, line.iscsid), (1, true, true), "a clean disk: {line:?}");
            assert!(line.chap.is_some(), "logged in without CHAP: {line:?}");
            assert_eq!(line.mac, mac);
            assert_eq!(line.portal, format!("10.0.2.2:{}", server.iscsi_port()));
            let session = api.active(pinned.id).unwrap();
            assert_eq!(session.session.id, started.session.session.id);
            assert_eq!((session.session.current.number, session.session.next), (generation, None));
            assert_eq!(line.target, session.target_iqn.to_string());
            assert_eq!(line.initiator, session.session.initiator.to_string());
            if generation == 1 {
                pc.sh("echo mine >/root/mine && sync").unwrap();
                assert_eq!(pc.sh("cat /root/mine").unwrap(), "mine");
                pc.reboot().unwrap();
            }
        }
        assert_eq!(pc.shell("test -e /root/mine").unwrap().code, 1);

        // Its writes are on no other machine's disk, which is read with the credentials of the earlier server, and not in the image.
        block_on(holds(folder.running("pc-kept", &server), Content::Written(33, Unflushed::Kept)));
        pc.power_off().unwrap();
        server.stop().unwrap();
        assert_eq!(said.sha256, Some(sha256_file(&server.version_file(version)).unwrap()));
        assert_eq!(said.sha256, Some(sha256_file(&guest.raw()).unwrap()));
    }
}

/// What became of the write after the last flush, in the sessions that were live.
#[derive(Clone, Copy)]
enum Unflushed {
    Kept,
    Lost,
}

/// What must be on a disk.
#[derive(Clone, Copy)]
enum Content {
    /// The version and nothing else.
    Clean(&'static str),
    /// `gold:1` with the writes of `make`, of this pattern.
    Written(u8, Unflushed),
}

/// An unpacked folder.
struct Folder(TempDir);

impl Folder {
    /// Unpacks an archive. The layers in it say that their last kernel was `boot`.
    fn unpack(name: &str, archive: &str, boot: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ggnet-folder-").tempdir().unwrap();
        let file = folders().join(name).join(format!("{archive}.tar.xz"));
        process::tool("xz", "xz-utils").unwrap();
        let mut tar = Command::new(process::tool("tar", "tar").unwrap());
        tar.args(["--extract", "--xz", "--no-same-owner", "--preserve-permissions", "--file"]);
        process::run(tar.arg(&file).arg("--directory").arg(dir.path())).unwrap();
        let folder = Self(dir);
        for layer in entries(&folder.data().join("writebacks")) {
            set_boot_id(&layer.join("hot"), boot);
        }
        folder
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn note(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join("notes").join(name)).unwrap()
    }

    /// Whom the machine's running system logs in to, over a restart and an upgrade of the server.
    fn running(&self, machine: &str, server: &GgnetServer) -> Account {
        let last = machine.bytes().last().unwrap();
        let script = self.note(&format!("{machine}.ipxe"));
        let account = account::from_script(&script, [0x80, 0, 0, 0, 1, last]).unwrap();
        Account { portal: ([127, 0, 0, 1], server.iscsi_port()).into(), ..account }
    }

    /// Makes `gold:2` a version that can be booted: the folder is then as if the guest's disk had been imported in its place, with the
    /// bytes, the size and the checksum that an import records. No session ever used it. Only while no server has the folder.
    fn replace_gold_2(&self, guest: &GuestImage) -> ImageVersionId {
        let size = i64::try_from(fs::metadata(guest.raw()).unwrap().len()).unwrap();
        let sha256 = sha256_file(&guest.raw()).unwrap();
        let options = SqliteConnectOptions::new().filename(self.data().join("ggnet.db"));
        let id: String = block_on(async {
            let mut database = options.connect().await.unwrap();
            let of_gold_2 = "SELECT v.id FROM image_versions v JOIN images i ON i.id = v.image_id \
                             WHERE i.name = 'gold' AND v.number = 2";
            let id: String = sqlx::query_scalar(of_gold_2).fetch_one(&mut database).await.unwrap();
            let change = "UPDATE image_versions \
                          SET doc = json_set(doc, '$.size_bytes', $1, '$.sha256', $2) WHERE id = $3";
            let change = sqlx::query(change).bind(size).bind(&sha256).bind(&id);
            assert_eq!(change.execute(&mut database).await.unwrap().rows_affected(), 1);
            database.close().await.unwrap();
            id
        });
        let file = self.data().join("images").join(format!("{id}.raw"));
        assert!(file.is_file(), "{}", file.display());
        guest.copy_raw(&file).unwrap();
        id.parse().unwrap()
    }

    /// Starts the server of today on it; its database had this schema.
    fn start(&self, schema: i64) -> GgnetServer {
        let server = GgnetServer::start(ServerOptions {
            config: CONFIG.into(),
            data_dir: Some(self.data()),
            token: Some(self.note("token").trim().to_owned()),
            ..ServerOptions::default()
        })
        .unwrap();
        self.database_was_copied_if_its_schema_changed(schema);
        server
    }

    fn opens(self, schema: i64, unflushed: Unflushed) {
        let mut server = self.start(schema);
        let gold = images_are_there(&server);
        machines_are_there(&server, &gold);
        let live = sessions_are_there(&server);
        history_is_there(&server);
        let tools = manual_target_is_there(&server);
        block_on(async {
            // Machines that run on: they know one pair of credentials and one name.
            holds(self.running("pc-live", &server), Content::Written(17, unflushed)).await;
            holds(self.running("pc-kept", &server), Content::Written(33, unflushed)).await;
            holds(tools, Content::Clean("tools:1")).await;
            // The next boot of each.
            for (machine, content) in [
                (1, Content::Clean("gold:1")),
                (2, Content::Written(33, unflushed)),
                // Its session was stopped, and a stop flushes.
                (3, Content::Written(49, Unflushed::Kept)),
                (4, Content::Clean("gold:1")),
            ] {
                let machine = Machine::new(&server.url(), &mac(machine)).unwrap();
                holds(machine.account().await.unwrap(), content).await;
            }
        });
        let api = server.api().unwrap();
        let (status, script) = api.plain("GET", &script_path(&mac(5))).unwrap();
        assert!(status == 200 && !script.contains("sanhook"), "a machine in maintenance: {status} {script}");
        for (machine, id) in ["pc-live", "pc-kept"].into_iter().zip(live) {
            let now = api.active(api.machine(machine).unwrap().id).unwrap().session;
            assert_eq!(now.id, id, "{machine} has another session");
        }
        server.stop().unwrap();
        assert_eq!(schema_of(&self.data().join("ggnet.db")), newest_schema());
    }

    fn database_was_copied_if_its_schema_changed(&self, schema: i64) {
        let newest = newest_schema();
        let copy = self.data().join(format!("ggnet.db.{schema}.bak"));
        assert_eq!(copy.exists(), schema < newest, "{}", copy.display());
        if schema < newest {
            assert!(fs::read(&copy).unwrap().starts_with(b"SQLite format 3\0"));
            assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o600);
            assert_eq!(schema_of(&copy), schema, "the copy was made after the migration");
        }
    }
}

/// The schema that the server of today gives a database.
fn newest_schema() -> i64 {
    let migrations =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../ggnet-backends/src/store/sqlite/migrations");
    let number =
        |file: &PathBuf| -> Option<i64> { file.file_name()?.to_str()?.split_once('_')?.0.parse().ok() };
    entries(&migrations).iter().filter_map(number).max().unwrap()
}

/// The schema of a database that nobody has open.
fn schema_of(database: &Path) -> i64 {
    let options = SqliteConnectOptions::new().filename(database);
    block_on(async {
        let mut database = options.connect().await.unwrap();
        let newest = "SELECT max(version) FROM _sqlx_migrations WHERE success";
        let schema: i64 = sqlx::query_scalar(newest).fetch_one(&mut database).await.unwrap();
        database.close().await.unwrap();
        schema
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

fn images_are_there(server: &GgnetServer) -> ImageResponse {
    let api = server.api().unwrap();
    let gold = api.image("gold").unwrap();
    let numbers: Vec<_> = gold.versions.iter().map(|v| v.version.number).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(gold.image.current, Some(gold.versions[0].version.id));
    assert_eq!(gold.versions[0].version.comment, "the first");
    assert_eq!(api.image("tools").unwrap().versions.len(), 1);
    gold
}

fn machines_are_there(server: &GgnetServer, gold: &ImageResponse) {
    let api = server.api().unwrap();
    let [live, kept, off, ended, broken, pinned] =
        ["pc-live", "pc-kept", "pc-off", "pc-ended", "pc-broken", "pc-pinned"]
            .map(|name| api.machine(name).unwrap());
    let policies = [&live, &kept, &off, &ended].map(|m| m.writeback);
    let (discard, keep) = (WritebackPolicy::Discard, WritebackPolicy::Keep);
    assert_eq!(policies, [discard, keep, keep, discard]);
    assert_eq!(live.firmware, Firmware::Uefi);
    assert_eq!(kept.groups.iter().map(|g| g.as_str()).collect::<Vec<_>>(), ["room-a", "kept"]);
    assert_eq!((broken.state, broken.description.as_str()), (MachineState::Maintenance, "fan broken"));
    assert!([&live, &pinned].iter().all(|m| m.image == Some(gold.image.id)));
    assert_eq!(pinned.pinned_version, Some(gold.versions[1].version.id));
    assert_eq!(pinned.macs.iter().map(ToString::to_string).collect::<Vec<_>>(), [mac(6), mac(7)]);
    assert_eq!((pinned.fixed_address, pinned.auto_start), (Some([192, 0, 2, 6].into()), false));
    let seen = api.seen().unwrap();
    assert!(seen.iter().any(|s| s.mac.to_string() == "52:54:00:0d:00:99"), "{seen:?}");
}

/// Returns the live ones, of pc-live and of pc-kept.
fn sessions_are_there(server: &GgnetServer) -> [ggnet_core::nouns::SessionId; 2] {
    let text = server.ggnet(&["session", "list", "--all", "--output", "json"]).unwrap();
    let all: Vec<SessionResponse> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 4, "{text}");
    let of = |name: &str| {
        let found = all.iter().find(|s| s.machine_name.as_ref().is_some_and(|n| n.as_str() == name));
        found.unwrap_or_else(|| panic!("no session of {name}: {text}")).session.clone()
    };
    for name in ["pc-off", "pc-ended"] {
        let ended = of(name);
        let state = (ended.state, ended.stop_reason, ended.ended_at.is_some());
        assert_eq!(state, (SessionState::Stopped, Some(StopReason::Operator), true), "{name}");
    }
    ["pc-live", "pc-kept"].map(|name| {
        let live = of(name);
        assert_eq!((live.state, live.current.number), (SessionState::Active, 1), "{name}");
        assert!(live.current.committed_at.is_some(), "{name} has logged in");
        live.id
    })
}

fn history_is_there(server: &GgnetServer) {
    let api = server.api().unwrap();
    let stages = api.stages(None, api.machine("pc-kept").unwrap().id).unwrap();
    for stage in [BootStage::IscsiLogin, BootStage::FirstRead, BootStage::FirstWrite] {
        assert!(stages.contains(&stage), "{stage:?} is not in {stages:?}");
    }
    let text = server.ggnet(&["audit", "--limit", "1000", "--output", "json"]).unwrap();
    let rows: Vec<AuditRow> = serde_json::from_str(&text).unwrap();
    for (action, times) in [("machine.create", 6), ("session.start", 4), ("session.stop", 2)] {
        assert_eq!(rows.iter().filter(|r| r.action.as_str() == action).count(), times, "{action}: {text}");
    }
}

/// Returns how to log in to it: anybody may.
fn manual_target_is_there(server: &GgnetServer) -> Account {
    let api: Api = server.api().unwrap();
    let targets = api.targets().unwrap();
    let tools = targets.iter().find(|t| t.manual.is_some()).expect("the target made by hand");
    let portal = ([127, 0, 0, 1], server.iscsi_port()).into();
    let account = Account::new(portal, tools.iqn.to_string(), "iqn.2026-11.org.example:anybody");
    Account { isid: [0x80, 0, 0, 0, 2, 0], ..account }
}

/// Logs in, compares every sector, and logs out.
async fn holds(account: Account, content: Content) {
    let name = account.target.clone().unwrap();
    let (what, sectors) = match content {
        Content::Clean("tools:1") => ("tools:1", 2048),
        Content::Clean(what) => (what, 4096),
        Content::Written(..) => ("gold:1", 4096),
    };
    let mut disk = account::log_in(account).await.unwrap();
    for at in (0..sectors).step_by(usize::from(MAX_SECTORS)) {
        let got = disk.read(at as u64, u32::from(MAX_SECTORS)).await.unwrap();
        for (sector, got) in (at..).zip(got.chunks(SECTOR)) {
            let mut right = written(content, sector).map_or_else(
                || format!("{:<511}\n", format!("{what} sector {sector}")).into_bytes(),
                |byte| vec![byte; SECTOR],
            );
            right.resize(SECTOR, 0);
            assert!(
                got == right,
                "{name} sector {sector}: {:?} in place of {:?}",
                String::from_utf8_lossy(&got[..32]),
                String::from_utf8_lossy(&right[..32])
            );
        }
    }
    disk.logout().await.unwrap();
}

/// The byte that `make` filled a sector with; none where it did not write, or where that was lost.
fn written(content: Content, sector: usize) -> Option<u8> {
    let Content::Written(pattern, unflushed) = content else { return None };
    match sector * SECTOR / 1024 {
        64..128 | 301 => Some(pattern),
        // Discarded.
        512..576 => Some(0),
        1024..1032 if matches!(unflushed, Unflushed::Kept) => Some(pattern + 1),
        _ => None,
    }
}

fn mac(n: u8) -> String {
    format!("52:54:00:0d:00:{n:02}")
}

fn folders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data-folders")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect()
}

/// Writes another boot id into the header of a `hot` map: where the archive is unpacked it means nothing. The places are those of
/// `ggnet-backends/src/layers/format.rs`.
fn set_boot_id(hot: &Path, boot: &str) {
    assert_eq!(boot.len(), 36);
    let file = fs::File::options().read(true).write(true).open(hot).unwrap();
    let mut header = [0; 512];
    file.read_exact_at(&mut header, 0).unwrap();
    assert_eq!(&header[..8], b"GGnetLyr");
    header[136..172].copy_from_slice(boot.as_bytes());
    let sum = crc32c(&header[..508]);
    header[508..].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
