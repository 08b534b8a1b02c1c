//! How long a session's start takes on the native backends, all of them in one virtual server: the kernel's target by configfs (also by
//! the helper) and by targetcli; dnsmasq, reflinked files on XFS and tftpd-hpa in all. What the DHCP daemons differ in is
//! `native_dhcp`'s.
//!
//! The server is what `make install` puts there, under its unit; the time is that of the API call, seen from outside of the machine. An
//! emulated machine is slow, so only how the rows compare means something. Nothing is asserted about time.
//!
//! Words after `--` choose cases by a part of their names (`-- targetcli`); all by default.
//!
//! `cargo build --release -p ggnet-server -p ggnet-cli` comes first: the product in the machine is the one beside this program.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "no runtime is blocked here")]

use std::thread;
use std::time::{Duration, Instant};

use ggnet_benches::{TABLE, Times, heading};
use ggnet_core::nouns::{Machine, SessionState, WritebackPolicy};
use ggnet_tests::native_room::IMAGE;
use ggnet_tests::{Api, NativeRoom};

const SINGLE: usize = 10;
const AT_ONCE: usize = 100;
/// The tool looks at every object of the host for each new one: a hundred were not through after twenty minutes in an emulated
/// machine.
const AT_ONCE_BY_TOOL: usize = 10;

const COMMON: &str = r#"
data_dir = "/var/lib/ggnet"
[http]
listen = "0.0.0.0:8080"
[network]
advertise = "10.79.0.1"
[images]
import_dirs = ["/product/import"]
[session]
start_deadline = "30m"
[writeback]
backend = "reflink"
[boot_files]
backend = "tftpd-hpa"
"#;

const HELPER: &str = "[target]\nbackend = \"lio-configfs\"\nlisten = [\"0.0.0.0:3260\"]\nhelper = \"/run/ggnet/helper.sock\"\n";
const CONFIGFS: &str = "[target]\nbackend = \"lio-configfs\"\nlisten = [\"0.0.0.0:3260\"]\n";
const TARGETCLI: &str = "[target]\nbackend = \"lio-targetcli\"\nlisten = [\"0.0.0.0:3260\"]\n";
const DNSMASQ: &str = "[dhcp]\nbackend = \"dnsmasq\"\nmac_prefix = false\n";
const BY_HELPER: &str = "service = { manager = \"helper\" }\n";

const PREPARE: [&str; 2] = [
    "sed -e 's/192\\.0\\.2\\./10.79.0./g' /product/infra/examples/dnsmasq.conf >/etc/dnsmasq.d/ggnet.conf",
    "systemctl enable --now ggnet-helper.socket && systemctl start dnsmasq tftpd-hpa",
];

struct Case {
    name: &'static str,
    target: &'static str,
    dhcp: String,
}

fn main() {
    println!("{}", heading("cargo bench -p ggnet-benches --bench native_starts"));
    let mut room = NativeRoom::new(&[]).unwrap();
    for line in PREPARE {
        room.server.sh(line).unwrap();
    }
    // The one whose server is not root comes first: root's files would be in its way.
    let first =
        Case { name: "configfs by the helper", target: HELPER, dhcp: format!("{DNSMASQ}{BY_HELPER}") };
    let api = begin(&mut room, &first);
    let image = api.import_and_wait("golden", IMAGE.as_ref(), |_| {}).unwrap().version.image;
    let machines: Vec<Machine> = (0..AT_ONCE)
        .map(|n| {
            let mac = format!("52:54:00:dd:00:{n:02x}");
            api.add_machine(&format!("pc-{n}"), &mac, image, WritebackPolicy::Discard).unwrap()
        })
        .collect();
    println!("\n{TABLE}");
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_chosen = |case: &Case| chosen.is_empty() || chosen.iter().any(|word| case.name.contains(word));
    if is_chosen(&first) {
        measure(&api, &first, &machines);
    }
    end(&mut room);
    let unit = "/etc/systemd/system/ggnet-server.service.d";
    let example = "/product/infra/examples/ggnet-server-targetcli.conf";
    room.server.sh(&format!("mkdir -p {unit} && cp {example} {unit}/root.conf")).unwrap();
    let cases = [("configfs", CONFIGFS), ("targetcli", TARGETCLI)];
    let cases = cases.map(|(name, target)| Case { name, target, dhcp: DNSMASQ.to_owned() });
    for case in cases.into_iter().filter(is_chosen) {
        let api = begin(&mut room, &case);
        measure(&api, &case, &machines);
        end(&mut room);
    }
}

fn begin(room: &mut NativeRoom, case: &Case) -> Api {
    room.start(&format!("{COMMON}{}{}", case.target, case.dhcp)).unwrap()
}

fn end(room: &mut NativeRoom) {
    room.server.sh("systemctl stop ggnet-server").unwrap();
}

fn measure(api: &Api, case: &Case, machines: &[Machine]) {
    let print =
        |what: &str, times| println!("{}", Times::new(times).row(&format!("{}: {what}", case.name), "-"));
    let mut alone = [Vec::new(), Vec::new()];
    for machine in machines.iter().take(SINGLE) {
        alone[0].push(timed(|| start(api, machine)));
        alone[1].push(timed(|| stop(api, machine)));
    }
    let [starts, stops] = alone;
    print("start", starts);
    print("stop", stops);
    let many = if case.target == TARGETCLI { AT_ONCE_BY_TOOL } else { AT_ONCE };
    let machines = &machines[..many];
    for (verb, call) in [("starts", start as fn(&Api, &Machine)), ("stops", stop)] {
        let begun = Instant::now();
        let each = together(machines, |machine| call(api, machine));
        let all = begun.elapsed();
        print(&format!("{many} {verb} at once, each"), each);
        print(&format!("{many} {verb} at once, all"), vec![all]);
    }
}

fn start(api: &Api, machine: &Machine) {
    until_done(|| {
        let active =
            || api.active(machine.id).is_ok_and(|active| active.session.state == SessionState::Active);
        (api.start_session(machine.id).is_ok() || active()).then_some(())
    });
}

fn stop(api: &Api, machine: &Machine) {
    let session = until_done(|| api.active(machine.id).ok()).session.id;
    until_done(|| {
        (api.stop_session(session, false).is_ok() || api.active(machine.id).is_err()).then_some(())
    });
}

/// Asks again as a machine does: who is told to come later (409, 503), or was not answered in a minute, has not been served yet.
fn until_done<T>(call: impl Fn() -> Option<T>) -> T {
    for _ in 0..300 {
        if let Some(done) = call() {
            return done;
        }
        thread::sleep(Duration::from_secs(2));
    }
    panic!("not in ten minutes")
}

fn timed(call: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    call();
    begun.elapsed()
}

fn together(machines: &[Machine], call: impl Fn(&Machine) + Sync) -> Vec<Duration> {
    thread::scope(|scope| {
        let call = &call;
        let started: Vec<_> =
            machines.iter().map(|machine| scope.spawn(move || timed(|| call(machine)))).collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    })
}
