//! How long a session's start takes on the native backends, all of them in one virtual server: the kernel's target by configfs (also by
//! the helper) and by targetcli; dnsmasq, ISC's dhcpd by restart and by OMAPI; reflinked files on XFS and tftpd-hpa in all. The calls of
//! the DHCP servers alone are `native_dhcp`'s.
//!
//! A machine with auto start is told to the DHCP server when it is registered, so its start waits for no daemon: that is the case "told
//! before". In the others the machines have none: each start tells the daemon of its machine, and each stop takes it away again.
//!
//! The server is what `make install` puts there, under its unit; the time is that of the API call, seen from outside of the machine. An
//! emulated machine is slow, so only how the rows compare means something. Nothing is asserted about time.
//!
//! Words after `--` choose cases by a part of their names (`-- OMAPI`); all by default.
//!
//! `cargo build --release -p ggnet-server -p ggnet-cli` comes first: the product in the machine is the one beside this program.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "no runtime is blocked here")]

use std::thread;
use std::time::{Duration, Instant};

use ggnet_benches::{TABLE, Times, heading};
use ggnet_core::api::UpdateMachineRequest;
use ggnet_core::nouns::{Machine, SessionState, WritebackPolicy};
use ggnet_tests::native_room::{BY_CONFIGFS, BY_HELPER, BY_TARGETCLI, COMMON, Dhcp, IMAGE};
use ggnet_tests::{Api, NativeRoom};

const SINGLE: usize = 20;
const AT_ONCE: &[usize] = &[100];
/// The tool makes one after the other: how long for, by how many wait for it.
const AT_ONCE_BY_TOOL: &[usize] = &[10, 30, 100];

/// The last of a hundred by the tool waits for minutes, beside other work for much longer; what takes this long has gone wrong.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

const TOLD_BEFORE: &str = "configfs, dnsmasq, told before";

struct Case {
    name: &'static str,
    target: &'static str,
    dhcp: Dhcp,
}

/// The one whose server is not root comes first: root's files would be in its way.
const CASES: [Case; 6] = [
    Case { name: "configfs by the helper, dnsmasq", target: BY_HELPER, dhcp: Dhcp::Dnsmasq },
    Case { name: "configfs, dnsmasq", target: BY_CONFIGFS, dhcp: Dhcp::Dnsmasq },
    Case { name: TOLD_BEFORE, target: BY_CONFIGFS, dhcp: Dhcp::Dnsmasq },
    Case { name: "configfs, dhcpd by restart", target: BY_CONFIGFS, dhcp: Dhcp::Dhcpd },
    Case { name: "configfs, dhcpd by OMAPI", target: BY_CONFIGFS, dhcp: Dhcp::DhcpdByOmapi },
    Case { name: "targetcli, dnsmasq", target: BY_TARGETCLI, dhcp: Dhcp::Dnsmasq },
];

fn main() {
    println!("{}", heading("cargo bench -p ggnet-benches --bench native_starts"));
    let mut room = NativeRoom::new(&[]).unwrap();
    let api = begin(&mut room, &CASES[0]);
    let image = api.import_and_wait("golden", IMAGE.as_ref(), |_| {}).unwrap().version.image;
    let machines: Vec<Machine> = (0..100)
        .map(|n| {
            let mac = format!("52:54:00:dd:00:{n:02x}");
            api.add_machine(&format!("pc-{n}"), &mac, image, WritebackPolicy::Discard).unwrap()
        })
        .collect();
    tell_before(&api, &machines, false);
    room.stop().unwrap();
    println!("\n{TABLE}");
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for case in CASES {
        if !chosen.is_empty() && !chosen.iter().any(|word| case.name.contains(word)) {
            continue;
        }
        if case.target != BY_HELPER {
            room.become_root().unwrap();
        }
        let api = begin(&mut room, &case);
        if case.name == TOLD_BEFORE {
            tell_before(&api, &machines, true);
        }
        measure(&api, &case, &machines);
        if case.name == TOLD_BEFORE {
            tell_before(&api, &machines, false);
        }
        room.stop().unwrap();
    }
}

/// Whether the DHCP server knows the machines before their sessions start.
fn tell_before(api: &Api, machines: &[Machine], auto_start: bool) {
    let change = UpdateMachineRequest { auto_start: Some(auto_start), ..UpdateMachineRequest::default() };
    together(machines, |machine| drop(api.update_machine(machine.id, &change).unwrap()));
}

fn begin(room: &mut NativeRoom, case: &Case) -> Api {
    room.daemons(case.dhcp).unwrap();
    let by_helper = case.target == BY_HELPER;
    // By the tool the last of many waits for all before it.
    let common = COMMON.replace("start_deadline = \"10m\"", "start_deadline = \"2h\"");
    room.start(&format!("{common}{}{}", case.target, case.dhcp.config(by_helper))).unwrap()
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
    for &many in if case.target == BY_TARGETCLI { AT_ONCE_BY_TOOL } else { AT_ONCE } {
        for (verb, call) in [("starts", start as fn(&Api, &Machine)), ("stops", stop)] {
            let begun = Instant::now();
            let each = together(&machines[..many], |machine| call(api, machine));
            let all = begun.elapsed();
            print(&format!("{many} {verb} at once, each"), each);
            print(&format!("{many} {verb} at once, all"), vec![all]);
        }
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
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(done) = call() {
            return done;
        }
        thread::sleep(Duration::from_secs(2));
    }
    panic!("not in {PATIENCE:?}")
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
