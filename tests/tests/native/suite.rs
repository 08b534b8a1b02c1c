//! The target's behaviour suite on the kernel's own target: the test program `lio_kernel`, run in a virtual machine, and what it says
//! held against its own list of tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ggnet_tests::{NativeRoom, kernel, wait};

/// Emulated on a busy host it takes a quarter of an hour. No test asserts a time: this only ends one that would never end.
const LIMIT: Duration = Duration::from_secs(5400);
/// In the names of those that need the program.
const TARGETCLI: &str = "targetcli";
/// What differs where targetcli makes the changes: its words for each object and attribute, the order of its commands, what it keeps
/// and prints of secrets, a call that is cut or fails half-way, and what it saves and restores. The rest is the same code for both.
const WHAT_DIFFERS: [&str; 12] = [
    "by_targetcli::ensure_twice_equals_once",
    "by_targetcli::list_shows_exactly_what_was_ensured",
    "by_targetcli::a_changed_spec_converges_or_is_busy",
    "by_targetcli::fifty_ensures_at_once_of_different_names",
    "by_targetcli::a_dropped_ensure_is_completed_by_the_next",
    "by_targetcli::a_crash_within_a_call_is_mended",
    "by_targetcli::what_is_not_ours_is_left_alone",
    "by_targetcli::what_is_written_reaches_the_disk",
    "by_targetcli::force_removes_under_a_live_initiator",
    "by_targetcli::changed_access_holds_for_new_logins",
    "by_targetcli::the_target_proves_itself",
    "beside_targetcli::it_shows_saves_and_restores_our_targets",
];

/// The test program, built if it is not yet.
pub fn program() -> PathBuf {
    kernel::test_program("lio_kernel").unwrap()
}

/// All that needs no targetcli, in a machine that has nothing but the kernel's target.
pub fn by_configfs() {
    let program = program();
    // One at a time: there is one tree.
    let ended = kernel::run(&program, &["--test-threads=1", "--skip", TARGETCLI], LIMIT).unwrap();
    println!("{}", ended.text);
    assert_all_passed(&ended.text, &names(&program, |name| !name.contains(TARGETCLI)));
    assert_eq!(ended.code, 0, "{}", ended.text);
}

/// All that needs targetcli, in a server machine that has the program and where no GGnet runs.
pub fn by_targetcli(room: &mut NativeRoom) {
    in_server(room, &names(&program(), |name| name.contains(TARGETCLI)));
}

/// Of these what [`WHAT_DIFFERS`].
pub fn what_differs_by_targetcli(room: &mut NativeRoom) {
    in_server(room, &WHAT_DIFFERS.map(ToOwned::to_owned));
}

fn in_server(room: &mut NativeRoom, names: &[String]) {
    // A unit of its own: it takes longer than an answer on the serial line may.
    room.server
        .sh("modprobe -a target_core_mod iscsi_target_mod && rm -f /run/suite && : >/run/suite.names")
        .unwrap();
    // In a file: a terminal takes no line as long as all of them.
    for name in names {
        room.server.sh(&format!("echo {name} >>/run/suite.names")).unwrap();
    }
    room.server
        .sh("systemd-run -q --unit=suite --working-directory=/tmp -p StandardOutput=file:/run/suite -p StandardError=inherit \
             -p Environment=RUST_BACKTRACE=1 /bin/sh -c 'exec /product/bin/lio_kernel --test-threads=1 --exact $(cat /run/suite.names)'")
        .unwrap();
    wait::until("the suite's end in the machine", LIMIT, || {
        let state = room.server.shell("sleep 5; systemctl is-active suite")?.text;
        Ok((!matches!(state.trim(), "active" | "activating")).then_some(()))
    })
    .unwrap_or_else(|e| panic!("{e:?}\n{}", room.server.sh("cat /run/suite").unwrap()));
    let text = room.server.sh("cat /run/suite").unwrap();
    println!("{text}");
    assert_all_passed(&text, names);
}

/// The program's tests that are meant, by its own list.
fn names(program: &Path, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let output = Command::new(program).arg("--list").output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let meant: Vec<String> = names.filter(|name| is_meant(name)).map(ToOwned::to_owned).collect();
    assert!(meant.len() > 20, "{list}");
    meant
}

/// Fails unless as many have passed as are named, and none failed or was ignored. The program was asked for these by their whole names.
fn assert_all_passed(text: &str, names: &[String]) {
    // Said once more at the very end: what is above is long, and a log that is cut keeps its end.
    let failures = text.split_once("\nfailures:\n").map_or("", |(_, failures)| failures);
    let result =
        text.lines().find(|l| l.starts_with("test result:")).unwrap_or_else(|| panic!("no result:\n{text}"));
    let all_passed = format!("test result: ok. {} passed; 0 failed; 0 ignored;", names.len());
    assert!(result.starts_with(&all_passed), "{result}\n{failures}");
}
