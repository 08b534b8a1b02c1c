//! The real `ggnet guest-kit`, without a server: what it writes, checked with tar, and what it refuses.

#![expect(clippy::disallowed_methods, reason = "tests start real processes and prepare files")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const MANIFEST: &str = "etc/ggnet/guest-kit.json";
const DROP_IN: &str = "etc/systemd/system/iscsid.service.d/ggnet-guest-kit.conf";

fn kit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggnet"));
    // No server is configured, and there is no home directory.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.args(["guest-kit", "debian"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it successfully; returns its result as JSON.
fn report(arguments: &[&str]) -> Value {
    let output = kit(&[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn results(report: &Value) -> Vec<&str> {
    report["files"].as_array().unwrap().iter().map(|f| f["result"].as_str().unwrap()).collect()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_folder_and_an_archive_hold_the_same_files_and_a_second_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (folder, archive, unpacked) = (path("kit"), path("kit.tar"), path("unpacked"));
    let first = report(&["--to", &folder]);
    assert_eq!(results(&first), ["written"; 5]);
    assert_eq!(first["run"], serde_json::json!(["update-initramfs -u -k all"]));
    assert_eq!(results(&report(&["--to", &folder])), ["unchanged"; 5]);
    let manifest: Value =
        serde_json::from_slice(&fs::read(Path::new(&folder).join(MANIFEST)).unwrap()).unwrap();
    assert_eq!((&manifest["kit"], &manifest["version"]), (&first["kit"], &first["version"]));

    assert_eq!(results(&report(&["--tar", &archive])), ["written"]);
    assert_eq!(results(&report(&["--tar", &archive])), ["unchanged"]);
    fs::create_dir(&unpacked).unwrap();
    run("tar", &["-C", &unpacked, "-xf", &archive]);
    run("diff", &["-r", &folder, &unpacked]);
    let listed = run("tar", &["-tvf", &archive]);
    assert_eq!(listed.lines().count(), 5, "files only: {listed}");
    assert!(listed.lines().all(|l| l.starts_with("-rw-r--r-- root/root ")), "{listed}");
    // Standard output contains only the archive; the command to run goes to standard error.
    let piped = kit(&["--tar", "-"]);
    assert_eq!(piped.stdout, fs::read(&archive).unwrap());
    assert!(text(&piped.stderr).contains("update-initramfs -u -k all"));
    assert_eq!(text(&kit(&["--quiet", "--tar", "-"]).stderr), "");

    fs::write(&archive, "something else").unwrap();
    assert_eq!(kit(&["--tar", &archive]).status.code(), Some(2));
    assert_eq!(results(&report(&["--tar", &archive, "--force"])), ["replaced"]);
}

#[test]
fn a_root_gets_its_files_and_the_lines_that_could_not_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    fs::create_dir_all(dir.path().join("boot")).unwrap();
    let said = report(&["--root", root]);
    assert_eq!(results(&said), ["written"; 5]);
    assert_eq!(said["initramfs_built"], false);
    assert!(
        said["run"][1].as_str().unwrap().starts_with(&format!("chroot {root} update-initramfs")),
        "{said}"
    );
    let drop_in = fs::read_to_string(dir.path().join(DROP_IN)).unwrap();
    assert!(drop_in.contains("\nEnvironment=OPENSSL_CONF=/dev/null\n"));

    let file = dir.path().join(DROP_IN);
    fs::write(&file, "[Service]\nEnvironment=MINE=1\n").unwrap();
    let refused = kit(&["--root", root]);
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains(DROP_IN) && why.contains("Nothing was written") && why.contains("--force"), "{why}");
    assert!(fs::read_to_string(&file).unwrap().contains("MINE"));
    let forced = text(&kit(&["--root", root, "--force"]).stdout);
    assert!(forced.contains("replaced"), "{forced}");
    assert_eq!(fs::read_to_string(&file).unwrap(), drop_in);
}

#[test]
fn its_errors_name_what_is_missing() {
    let nowhere = kit(&[]);
    assert_eq!(nowhere.status.code(), Some(2));
    let wants = text(&nowhere.stderr);
    assert!(["--root", "--to", "--tar"].iter().all(|o| wants.contains(o)), "{wants}");
    assert_eq!(kit(&["--to", "a", "--root", "b"]).status.code(), Some(2), "one place at a time");
    let gone = kit(&["--root", "/nonexistent"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(text(&gone.stderr).contains("/nonexistent"));
}
