//! Linux's own initiator against the built-in iSCSI target: Debian's kernel, open-iscsi and fio in an emulated machine.
//!
//! Two machines. One logs in to a target in this process, whose disks are in memory: what the guest wrote can be looked at
//! from behind, and nothing of GGnet but the crate `ggnet-iscsi` is there. The other logs in to a real `ggnet-server`, as a
//! machine that it knows, and fio writes and verifies while that server is killed with SIGKILL and started again.
//!
//! A kill of the server loses no page cache of the host. That nothing *flushed* is lost when the host itself loses power
//! cannot be tried on the host that runs the tests; it is proven over simulated files, with the same device and the same
//! flush, by `a_flushed_write_survives_a_power_cut_and_nothing_is_invented` and its sisters in
//! `ggnet-backends/src/writeback/layers/tests/power.rs`. `every_acknowledged_write_survives_kill_9` in `kill.rs` beside it
//! kills a bare process a thousand times, ten thousand in the long tier.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ggnet_core::nouns::WritebackPolicy;
use ggnet_core::testkit::tier::rounds;
use ggnet_iscsi::{
    Chap, ChapPair, Exclusivity, Identity, IscsiServer, LoginDecision, LoginPolicy, LoginRequest, Lun,
    Secret, ServerConfig, SessionEvent, SessionObserver, TargetConfig,
};
use ggnet_tests::account::chap_in;
use ggnet_tests::open_iscsi::{LOGIN_FATAL, NOT_AUTHENTICATED};
use ggnet_tests::{Answer, GgnetServer, OpenIscsi, ServerOptions, process, wait};
use sha2::{Digest as _, Sha256};

use self::mem_disk::MemDisk;
use crate::load::{account, next, random};

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../../ggnet-backends/iscsi/tests/iscsi_support/mem_disk.rs"]
mod mem_disk;

const MIB: usize = 1 << 20;
const NAME: &str = "iqn.2024-01.org.example:linux";
const OPEN: &str = "iqn.2024-01.org.example:open";
const ONE_WAY: &str = "iqn.2024-01.org.example:one-way";
const MUTUAL: &str = "iqn.2024-01.org.example:mutual";
const UNITS: &str = "iqn.2024-01.org.example:units";

/// User and secret of the initiator, then of the target.
const OURS: (&str, &str) = ("linux", "Secret0123456789");
const THEIRS: (&str, &str) = ("target", "9876543210Secret");
const WRONG: &str = "Wrong01234567890";

/// What each target wants to be proved.
struct Policy(Vec<(&'static str, Chap)>);

#[async_trait::async_trait]
impl LoginPolicy for Policy {
    async fn decide(&self, request: &LoginRequest) -> LoginDecision {
        let chap = match &request.target {
            None => Some(Chap::None),
            Some(target) => self.0.iter().find(|(iqn, _)| iqn == target).map(|(_, chap)| chap.clone()),
        };
        chap.map_or(LoginDecision::NotFound, |chap| LoginDecision::Accept {
            chap,
            exclusivity: Exclusivity::ByInitiatorName,
        })
    }

    async fn discover(&self, _: &LoginRequest) -> Vec<String> {
        self.0.iter().map(|(iqn, _)| (*iqn).to_owned()).collect()
    }
}

/// The targets whose sessions began, in order.
#[derive(Default)]
struct Logins(Mutex<Vec<String>>);

impl SessionObserver for Logins {
    fn observe(&self, event: SessionEvent) {
        if let SessionEvent::LoggedIn(session) = event {
            self.0.lock().unwrap().extend(session.target);
        }
    }
}

/// Targets in this process, and a machine that may log in to them.
struct Bench {
    linux: OpenIscsi,
    server: IscsiServer,
    port: u16,
    logins: Arc<Logins>,
    /// LUN 0 of `OPEN`.
    disk: Arc<MemDisk>,
    /// The units of `UNITS`: one with 512-byte blocks, one that is write protected, one with 4-KiB blocks.
    units: [Arc<MemDisk>; 3],
    // Last: it runs the server.
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let pair = |(user, secret): (&str, &str)| ChapPair { user: user.into(), secret: Secret::new(secret) };
        let policy = Policy(vec![
            (OPEN, Chap::None),
            (ONE_WAY, Chap::OneWay(pair(OURS))),
            (MUTUAL, Chap::Mutual { initiator: pair(OURS), target: pair(THEIRS) }),
            (UNITS, Chap::None),
        ]);
        let port = process::free_port().unwrap();
        let config = ServerConfig {
            listen: vec![([127, 0, 0, 1], port).into()],
            // What the guest sees of it.
            advertise: Some(format!("10.0.2.2:{port}")),
            ..ServerConfig::default()
        };
        let logins = Arc::new(Logins::default());
        let server = IscsiServer::bind(config, Arc::new(policy), logins.clone()).unwrap();
        let disk = filled(MemDisk::new(4 * MIB, 512), 1);
        let units = [(4, 512, 2), (3, 512, 3), (5, 4096, 4)]
            .map(|(mib, block, seed)| filled(MemDisk::new(mib * MIB, block), seed));
        for (iqn, naa) in [(OPEN, 1), (ONE_WAY, 2), (MUTUAL, 3)] {
            let luns = vec![lun(0, naa, disk.clone())];
            server.add_target(TargetConfig { iqn: iqn.into(), luns }).unwrap();
        }
        let mut luns: Vec<_> =
            (0..).zip(&units).map(|(n, unit)| lun(n, 16 + u64::from(n), unit.clone())).collect();
        luns[1].read_only = true;
        server.add_target(TargetConfig { iqn: UNITS.into(), luns }).unwrap();
        let linux = OpenIscsi::boot("open-iscsi", NAME).unwrap();
        Self { linux, server, port, logins, disk, units, _runtime: runtime }
    }

    fn sh(&mut self, command: &str) -> String {
        self.linux.guest.sh(command).unwrap()
    }

    fn node(&mut self, iqn: &str, settings: &[(&str, &str)]) {
        self.linux.node(iqn, self.port, settings).unwrap();
    }

    /// A login that must work; the target sees it as that of our machine.
    fn login(&mut self, iqn: &str) {
        self.linux.login(iqn).unwrap();
        let sessions = self.server.sessions_of(iqn);
        assert_eq!(sessions.iter().map(|s| s.initiator.as_str()).collect::<Vec<_>>(), [NAME]);
    }

    /// A login that must fail with this code of iscsiadm, and of which no session comes.
    fn refused(&mut self, iqn: &str, wanted: i32) {
        let before = self.logins.0.lock().unwrap().len();
        let Answer { code, text } = self.linux.try_login(iqn).unwrap();
        assert_eq!(code, wanted, "{text}");
        assert_eq!(self.logins.0.lock().unwrap().len(), before, "a session has begun");
    }

    fn logout(&mut self, iqn: &str) {
        self.linux.logout(iqn).unwrap();
    }

    fn sum(&mut self, disk: &str) -> String {
        fresh_sum(&mut self.linux, disk)
    }

    /// Fills a part of the disk from the guest, and waits until it is flushed.
    fn fill(&mut self, disk: &str, at_mib: usize, mib: usize) {
        self.sh(&format!(
            "dd if=/dev/urandom of=/dev/{disk} bs=1M seek={at_mib} count={mib} conv=notrunc,fsync"
        ));
    }
}

fn filled(disk: Arc<MemDisk>, seed: u64) -> Arc<MemDisk> {
    let mut data = disk.data.write().unwrap();
    let len = data.len();
    data.copy_from_slice(&random(len, seed));
    drop(data);
    disk
}

fn lun(number: u16, naa: u64, device: Arc<MemDisk>) -> Lun {
    let identity = Identity {
        serial: format!("serial-{naa}"),
        naa,
        vendor: "GGnet".into(),
        product: "TEST DISK".into(),
        revision: "1".into(),
    };
    Lun { number, device, identity, read_only: false, removable: false }
}

/// The SHA-256 of a disk as the guest reads it now, not from its memory.
fn fresh_sum(linux: &mut OpenIscsi, disk: &str) -> String {
    let sum = linux.guest.sh(&format!("blockdev --flushbufs /dev/{disk}; sha256sum </dev/{disk}")).unwrap();
    sum.split(' ').next().unwrap().to_owned()
}

/// The SHA-256 of a disk as it is in memory.
fn sum(disk: &MemDisk) -> String {
    Sha256::digest(&disk.data.read().unwrap()[..]).iter().map(|b| format!("{b:02x}")).collect()
}

/// One machine for all of these: a boot takes longer than any of them.
#[test]
fn linux_is_served_right_by_the_target() {
    let mut bench = Bench::new();
    discovery_tells_every_target(&mut bench);
    logins_are_let_in_and_refused_by_chap_one_way_and_mutual(&mut bench);
    digests_of_headers_and_data_are_used_and_the_data_is_right(&mut bench);
    three_units_are_three_disks_one_write_protected_and_one_of_4_kib_blocks(&mut bench);
    a_busy_disk_is_asked_again_until_it_answers(&mut bench);
    a_unit_that_grew_is_used_to_its_end_without_a_new_login(&mut bench);
    assert_eq!(bench.linux.complaints().unwrap(), "");
}

fn discovery_tells_every_target(bench: &mut Bench) {
    let port = bench.port;
    let told = bench.sh(&format!("iscsiadm -m discovery -t sendtargets -p 10.0.2.2:{port}"));
    let mut told: Vec<_> = told.lines().collect();
    told.sort_unstable();
    let wanted = [MUTUAL, ONE_WAY, OPEN, UNITS].map(|iqn| format!("10.0.2.2:{port},1 {iqn}"));
    assert_eq!(told, wanted);
}

fn logins_are_let_in_and_refused_by_chap_one_way_and_mutual(bench: &mut Bench) {
    bench.node(OPEN, &[]);
    bench.login(OPEN);
    bench.logout(OPEN);

    let one_way = |secret| {
        [
            ("node.session.auth.authmethod", "CHAP"),
            ("node.session.auth.username", OURS.0),
            ("node.session.auth.password", secret),
        ]
    };
    bench.node(ONE_WAY, &[]);
    bench.refused(ONE_WAY, NOT_AUTHENTICATED);
    bench.node(ONE_WAY, &one_way(WRONG));
    bench.refused(ONE_WAY, NOT_AUTHENTICATED);
    bench.node(ONE_WAY, &one_way(OURS.1));
    bench.login(ONE_WAY);
    bench.logout(ONE_WAY);

    let mutual = |secret, theirs| {
        let theirs = [("node.session.auth.username_in", THEIRS.0), ("node.session.auth.password_in", theirs)];
        [&one_way(secret)[..], &theirs].concat()
    };
    bench.node(MUTUAL, &mutual(WRONG, THEIRS.1));
    bench.refused(MUTUAL, NOT_AUTHENTICATED);
    // The other way round it is open-iscsi that refuses us.
    bench.node(MUTUAL, &mutual(OURS.1, WRONG));
    bench.refused(MUTUAL, LOGIN_FATAL);
    let why = bench.sh("grep 'incorrect CHAP response' /run/iscsid.log");
    assert!(why.ends_with(MUTUAL), "{why}");
    bench.node(MUTUAL, &mutual(OURS.1, THEIRS.1));
    bench.login(MUTUAL);
    bench.logout(MUTUAL);
}

fn digests_of_headers_and_data_are_used_and_the_data_is_right(bench: &mut Bench) {
    for (header, data) in [("CRC32C", "None"), ("None", "CRC32C"), ("CRC32C", "CRC32C")] {
        let settings = [("node.conn[0].iscsi.HeaderDigest", header), ("node.conn[0].iscsi.DataDigest", data)];
        bench.node(OPEN, &settings);
        bench.login(OPEN);
        // The kernel's word for it, not that of the record.
        let used = |on| if on == "CRC32C" { "1" } else { "0" };
        let in_use = bench
            .sh("cat /sys/class/iscsi_connection/*/header_digest /sys/class/iscsi_connection/*/data_digest");
        assert_eq!(in_use, format!("{}\n{}", used(header), used(data)));
        let disk = bench.linux.disk(0).unwrap();
        assert_eq!(bench.sum(&disk), sum(&bench.disk), "read, {header} {data}");
        let before = sum(&bench.disk);
        bench.fill(&disk, 0, 3);
        assert_ne!(sum(&bench.disk), before);
        assert_eq!(bench.sum(&disk), sum(&bench.disk), "written, {header} {data}");
        bench.logout(OPEN);
    }
}

fn three_units_are_three_disks_one_write_protected_and_one_of_4_kib_blocks(bench: &mut Bench) {
    bench.node(UNITS, &[]);
    bench.login(UNITS);
    let disks = [0, 1, 2].map(|lun| bench.linux.disk(lun).unwrap());
    let units = bench.units.clone();
    let mut names = Vec::new();
    for ((disk, unit), (block, protected)) in disks.iter().zip(&units).zip([(512, 0), (512, 1), (4096, 0)]) {
        let told = bench.sh(&format!(
            "cat /sys/block/{disk}/queue/logical_block_size /sys/block/{disk}/ro; blockdev --getsize64 /dev/{disk}"
        ));
        let size = unit.data.read().unwrap().len();
        assert_eq!(told, format!("{block}\n{protected}\n{size}"));
        assert_eq!(bench.sum(disk), sum(unit));
        names.push(bench.sh(&format!("cat /sys/block/{disk}/device/wwid")));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");

    // Each takes its own writes, but for the protected one.
    let sums = [0, 1, 2].map(|n| sum(&units[n]));
    for (n, disk) in disks.iter().enumerate() {
        if n == 1 {
            let refused =
                bench.linux.guest.shell(&format!("dd if=/dev/zero of=/dev/{disk} bs=4096 count=1")).unwrap();
            assert!(refused.code != 0 && refused.text.contains("Read-only"), "{}", refused.text);
            assert!(
                bench
                    .sh(&format!("dmesg | grep '\\[{disk}\\] Write Protect'"))
                    .contains("Write Protect is on")
            );
            assert_eq!(sum(&units[n]), sums[n]);
        } else {
            bench.fill(disk, 1, 1);
            assert_ne!(sum(&units[n]), sums[n]);
            // Space is given back: the guest's discard arrives.
            bench.sh(&format!("blkdiscard -o {MIB} -l 65536 /dev/{disk}"));
            assert!(units[n].data.read().unwrap()[MIB..MIB + 65536].iter().all(|b| *b == 0));
        }
        assert_eq!(bench.sum(disk), sum(&units[n]));
    }
    bench.logout(UNITS);
}

fn a_busy_disk_is_asked_again_until_it_answers(bench: &mut Bench) {
    bench.node(OPEN, &[]);
    bench.login(OPEN);
    let disk = bench.linux.disk(0).unwrap();
    for command in [
        format!("dd if=/dev/{disk} of=/dev/null bs=64k count=16 iflag=direct"),
        format!("dd if=/dev/urandom of=/dev/{disk} bs=64k count=16 oflag=direct conv=notrunc,fsync"),
        format!("blkdiscard -o {MIB} -l 65536 /dev/{disk}"),
    ] {
        bench.disk.be_busy(0, 25);
        // It succeeds: the guest's program never hears of it. And nor does the kernel's log, at which `complaints` looks.
        bench.sh(&command);
        assert!(!bench.disk.is_busy(), "{command}: asked again too seldom");
    }
    assert_eq!(bench.sum(&disk), sum(&bench.disk));
    bench.logout(OPEN);
}

fn a_unit_that_grew_is_used_to_its_end_without_a_new_login(bench: &mut Bench) {
    bench.node(OPEN, &[]);
    bench.login(OPEN);
    let disk = bench.linux.disk(0).unwrap();
    let logins = bench.logins.0.lock().unwrap().len();
    // The guest goes on writing all the while.
    let fio = FioRounds::start(&mut bench.linux, &disk, 2);
    let mut mib = bench.disk.data.read().unwrap().len() / MIB;
    for rescan in [format!("echo 1 >/sys/block/{disk}/device/rescan"), "iscsiadm -m session --rescan".into()]
    {
        let changed = "dmesg | grep -c 'Capacity data has changed'";
        let told = bench.linux.guest.shell(changed).unwrap().text;
        bench.disk.data.write().unwrap().resize((mib + 3) * MIB, 0);
        wait::until("the kernel to be told", wait::SHORT, || {
            Ok((bench.linux.guest.shell(changed)?.text != told).then_some(()))
        })
        .unwrap();
        assert_eq!(bench.sh(&format!("blockdev --getsize64 /dev/{disk}")), (mib * MIB).to_string());
        bench.sh(&rescan);
        mib += 3;
        assert_eq!(bench.sh(&format!("blockdev --getsize64 /dev/{disk}")), (mib * MIB).to_string());
        bench.fill(&disk, mib - 3, 3);
        assert!(bench.disk.data.read().unwrap()[mib * MIB - 4096..].iter().any(|b| *b != 0));
    }
    fio.finish(&mut bench.linux);
    assert_eq!(bench.sum(&disk), sum(&bench.disk));
    assert_eq!(bench.logins.0.lock().unwrap().len(), logins, "a new login");
    bench.logout(OPEN);
}

/// fio in the guest, round after round until told to end: it writes the first megabytes of a disk in random order, with a
/// flush every 32 writes, and then reads them all and compares each block with what that round wrote there.
struct FioRounds {
    /// Of the round `$n`.
    command: String,
}

impl FioRounds {
    fn start(linux: &mut OpenIscsi, disk: &str, mib: usize) -> Self {
        // Each block is its offset and the round's number, over and over. fio's headers with checksums would not do: it takes
        // a block of the round before for right, and that is what a lost write leaves.
        let command = format!(
            "fio --name=verify --filename=/dev/{disk} --thread --direct=1 --ioengine=libaio --iodepth=16 --bs=4k --size={mib}M \
             --rw=randwrite --randseed=$n --fsync=32 --verify=pattern --verify_pattern=%o0x$(printf %08x $n) --verify_fatal=1"
        );
        linux
            .guest
            .sh(&format!(
                "rm -f /run/fio.*; (n=0; while [ ! -e /run/fio.stop ]; do n=$((n + 1)); \
                 {command} >/run/fio.log 2>&1 || {{ echo $n >/run/fio.failed; break; }}; \
                 echo $n >/run/fio.rounds; done; echo >/run/fio.ended) </dev/null >/dev/null 2>&1 &"
            ))
            .unwrap();
        Self { command }
    }

    /// Ends after the round that runs, and returns how many there were. None of them found anything wrong.
    fn finish(&self, linux: &mut OpenIscsi) -> u64 {
        linux.guest.sh("touch /run/fio.stop").unwrap();
        wait::until("fio's last round", HANG, || {
            Ok((linux.guest.shell("test -e /run/fio.ended")?.code == 0).then_some(()))
        })
        .unwrap();
        let failed = linux.guest.shell("cat /run/fio.failed && cat /run/fio.log").unwrap();
        assert_eq!(failed.code, 1, "fio failed in round {}", failed.text);
        linux.guest.sh("cat /run/fio.rounds").unwrap().parse().unwrap()
    }

    /// Reads once more, and tells whether every block is what this round wrote.
    fn verify_again(&self, linux: &mut OpenIscsi, round: u64) -> bool {
        linux.guest.shell(&format!("n={round}; {} --verify_only", self.command)).unwrap().code == 0
    }
}

const IMAGE_MIB: usize = 16;
/// What fio writes of it, from the start.
const FIO_MIB: usize = 4;
/// Ends a test that would never end; asserted is nothing about time.
const HANG: Duration = Duration::from_secs(300);

#[test]
fn fio_finds_every_write_it_made_although_the_server_is_killed_at_random_moments() {
    let seed = std::env::var("GGNET_KILL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id())
    });
    println!("the moments follow from GGNET_KILL_SEED={seed}");
    let mut dice = seed.max(1);
    let dir = tempfile::Builder::new().prefix("ggnet-open-iscsi-").tempdir().unwrap();
    let file = dir.path().canonicalize().unwrap().join("disk.raw");
    let image = random(IMAGE_MIB * MIB, 7);
    std::fs::write(&file, &image).unwrap();
    let options =
        ServerOptions { import_dirs: vec![file.parent().unwrap().into()], ..ServerOptions::default() };
    let mut server = GgnetServer::start(options).unwrap();
    let api = server.api().unwrap();
    let version = api.import_and_wait("disk", &file, |_| {}).unwrap().version;
    let machine =
        api.add_machine("linux", "52:54:00:bb:00:31", version.image, WritebackPolicy::Keep).unwrap();
    let started = api.start_session(machine.id).unwrap();
    let account = account(&started, 0);
    let target = account.target.as_deref().unwrap();
    let (user, secret) = chap_in(&started.boot_script).unwrap();

    let mut linux = OpenIscsi::boot("open-iscsi-kill", &account.initiator).unwrap();
    let chap = [
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", user),
        ("node.session.auth.password", secret),
    ];
    linux.node(target, server.iscsi_port(), &chap).unwrap();
    linux.login(target).unwrap();
    let disk = linux.disk(account.lun.into()).unwrap();
    let fio = FioRounds::start(&mut linux, &disk, FIO_MIB);
    let mut kills = 0;
    // While it serves; now and then once more while the guest logs in again.
    let wanted = rounds(6, 30);
    for _ in 0..wanted {
        wait_served(&mut linux, &disk);
        std::thread::sleep(Duration::from_millis(next(&mut dice) % 3000));
        kill_and_start(&mut server, &mut dice);
        // Sometimes again before all is well: in the middle of the login, or of the first requests.
        if next(&mut dice).is_multiple_of(3) {
            std::thread::sleep(Duration::from_millis(next(&mut dice) % 3000));
            kill_and_start(&mut server, &mut dice);
            kills += 1;
        }
        kills += 1;
    }
    wait_served(&mut linux, &disk);
    let rounds = fio.finish(&mut linux);

    // Once more after all was acknowledged: none of it was in the server's memory alone. And fio would have told a block of
    // another round.
    kill_and_start(&mut server, &mut dice);
    assert!(fio.verify_again(&mut linux, rounds));
    assert!(!fio.verify_again(&mut linux, rounds + 1));
    let recovered: u64 =
        linux.guest.sh("grep -c 'operational after recovery' /run/iscsid.log").unwrap().parse().unwrap();
    println!("{} kills, {recovered} recoveries, {rounds} rounds of fio", kills + 1);
    assert!(recovered > wanted, "a kill was not noticed");
    assert_eq!(linux.complaints().unwrap(), "");
    // Where fio did not write, the image shines through; and the image itself is what it was.
    let rest = IMAGE_MIB - FIO_MIB;
    let read = linux
        .guest
        .sh(&format!("dd if=/dev/{disk} bs=1M skip={FIO_MIB} count={rest} 2>/dev/null | sha256sum"))
        .unwrap();
    let wanted: String = Sha256::digest(&image[FIO_MIB * MIB..]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(read.split(' ').next(), Some(wanted.as_str()));
    assert!(std::fs::read(server.version_file(version.id)).unwrap() == image, "the image has changed");
    linux.logout(target).unwrap();
}

/// SIGKILL, and a start some moment later.
fn kill_and_start(server: &mut GgnetServer, dice: &mut u64) {
    server.kill_9().unwrap();
    std::thread::sleep(Duration::from_millis(next(dice) % 1500));
    server.restart().unwrap();
}

/// Waits until the session is there and more requests were answered than before.
fn wait_served(linux: &mut OpenIscsi, disk: &str) {
    linux.guest.wait_session("LOGGED_IN").unwrap();
    let done = format!("awk '{{ print $1 + $5 }}' /sys/block/{disk}/stat");
    let before: u64 = linux.guest.sh(&done).unwrap().parse().unwrap();
    wait::until("requests to be answered", HANG, || {
        Ok((linux.guest.sh(&done)?.parse::<u64>()? > before).then_some(()))
    })
    .unwrap();
}
