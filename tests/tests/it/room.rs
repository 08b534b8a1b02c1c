//! What the tests of live machines share: a server with the guest image in it, and a writer inside of a guest.

use ggnet_core::nouns::{BootStage, ImageVersion};
use ggnet_tests::{Api, GgnetServer, Guest, GuestBuilder, GuestImage, ServerOptions, sha256_file, wait};

/// A server with one image, imported as qcow2 through the API.
pub struct Room {
    pub server: GgnetServer,
    pub api: Api,
    pub image: ImageVersion,
}

impl Room {
    /// With this text in the server's configuration file.
    pub fn new(config: &str) -> Self {
        let guest = GuestImage::get().unwrap();
        let qcow2 = guest.qcow2().canonicalize().unwrap();
        let server = GgnetServer::start(ServerOptions {
            config: config.to_owned(),
            import_dirs: vec![qcow2.parent().unwrap().to_owned()],
            data_dir: None,
            token: None,
        })
        .unwrap();
        let api = server.api().unwrap();
        let image = api.import_and_wait("golden", &qcow2, |_| {}).unwrap().version;
        let room = Self { server, api, image };
        assert_eq!(
            room.image.sha256,
            Some(sha256_file(&guest.raw()).unwrap()),
            "another disk than was imported"
        );
        room
    }

    /// A machine in QEMU's user-mode network that asks this server for its script.
    pub fn machine(&self, name: &str, mac: &str) -> GuestBuilder {
        Guest::builder(name).mac(mac).user_network(self.server.script_url(mac))
    }

    /// The image on disk is what it was when it was imported, and what the API says.
    pub fn check_image(&self) {
        let said = self.api.version(self.image.id).unwrap().version;
        assert_eq!(said, self.image);
        assert_eq!(said.sha256, Some(sha256_file(&self.server.version_file(self.image.id)).unwrap()));
    }
}

/// The stages of a boot in the order of their first times. The firmware's own initiator goes away before the kernel's logs in,
/// so `Disconnected` is left out: it says something only of a machine that was up.
pub fn first_times(stages: &[BootStage]) -> Vec<BootStage> {
    let mut firsts = Vec::new();
    for stage in stages {
        if *stage != BootStage::Disconnected && !firsts.contains(stage) {
            firsts.push(*stage);
        }
    }
    firsts
}

/// Starts a writer that flushes each line, and keeps count in memory of what was acknowledged.
pub fn start_writer(pc: &mut Guest) {
    pc.sh("(i=0; while i=$((i + 1)); do echo $i | dd of=/root/lines oflag=append conv=notrunc,fsync && echo $i >/run/acked || echo $i >>/run/errors; done) \
           >/dev/null 2>&1 &")
        .unwrap();
    wait_more(pc, 0);
}

/// How many lines the guest's writer knows to be on its disk.
pub fn acked(pc: &mut Guest) -> u64 {
    // The shell may look between the writer's truncation of the file and its number.
    pc.sh("cat /run/acked 2>/dev/null").ok().and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// Waits until more than this is acknowledged, and returns how many lines are.
pub fn wait_more(pc: &mut Guest, than: u64) -> u64 {
    wait::until("writes to go on", wait::SHORT, || Ok(Some(acked(pc)).filter(|n| *n > than))).unwrap()
}

/// No write failed, the root is writable, and the kernel has no I/O error to tell of.
pub fn check_no_io_error(pc: &mut Guest) {
    assert_eq!(pc.shell("cat /run/errors").unwrap().code, 1, "a write failed");
    assert!(pc.sh("grep ' / ' /proc/mounts").unwrap().contains(" rw,"));
    let complaints = pc.shell("dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|Remounting'").unwrap();
    assert_eq!((complaints.code, complaints.text.as_str()), (1, ""), "the kernel complains");
}

/// Every line up to `last` is in the text, in order, with no gap.
pub fn check_lines(text: &str, last: u64) {
    let whole: Vec<u64> = text.lines().filter_map(|l| l.parse().ok()).collect();
    assert!(whole.len() as u64 >= last, "{} lines on the disk, {last} acknowledged", whole.len());
    assert!(whole.iter().zip(1..).all(|(line, i)| *line == i), "lines are missing or out of order");
}
