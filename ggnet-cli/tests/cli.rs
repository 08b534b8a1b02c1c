//! The real `ggnet` against a real ggnet-server: exit codes, tables, JSON, messages.

#![expect(clippy::disallowed_methods, reason = "tests start real processes and prepare files")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use support::{Server, free_port, ggnet};

const MAC: &str = "52:54:00:aa:00:01";

#[test]
fn login_checks_the_token_before_it_stores_it() {
    let server = Server::start();
    server.run("machine list").ends(3).says("Not logged in").says("ggnet login");
    server.login("wrong").ends(3).says("what to do:");
    assert!(!server.home().join("config/ggnet/cli.toml").exists(), "a wrong token is not stored");
    server.login("").ends(2).says("field: token");
    server.login(&server.token).ends(0).shows("Logged in");
    let file = server.home().join("config/ggnet/cli.toml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // A file that other users can read is replaced by a private one.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    server.run("machine list").ends(0).says("other users of this machine can read the token");
    server.login(&server.token).ends(0);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let other = format!("http://127.0.0.1:{}", free_port());
    server.run(&format!("machine list --server {other}")).ends(3).says("the stored token is for");
    let named = server.command("machine list").env("GGNET_TOKEN", "wrong").output().unwrap();
    support::Ran::from(named).ends(3).says("The token is wrong");

    server.run("logout").ends(0).shows("Logged out");
    server.run("logout").ends(0).shows("No token was stored");
    let problem = server.run("machine list --output json").ends(3).problem();
    assert_eq!((problem["kind"].as_str(), problem["exit_code"].as_u64()), (Some("permission"), Some(3)));
    let mut with_token = server.command(&format!("machine list --server {}", server.address));
    support::Ran::from(with_token.env("GGNET_TOKEN", &server.token).output().unwrap()).ends(0);
}

#[test]
fn a_server_that_is_gone_is_5_and_a_broken_file_is_2() {
    let mut server = Server::logged_in();
    server.kill();
    server.run("machine list").ends(5).says("cannot be reached").says("what to do:");
    let problem = server.run("server -o json").ends(5).problem();
    assert_eq!(problem["retryable"], true);
    assert!(problem.get("status").is_none(), "no server sent one");
    server.run("server --wait 0.3").ends(6);
    // The time limit also holds for a server that accepts the connection and sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let mut waiting = server.command(&format!("server --wait 0.3 --server http://{address}"));
    let ran = waiting.env("GGNET_TOKEN", "any").output().unwrap();
    support::Ran::from(ran).ends(6).says("does not respond");
    server.run("machine list --server https://127.0.0.1:1").ends(2).says("--server");
    std::fs::write(server.home().join("config/ggnet/cli.toml"), "server = \"http://h\"\ntokn = \"x\"\n")
        .unwrap();
    server.run("machine list").ends(2).says("cli.toml, line 2").says("ggnet login");
}

#[test]
fn a_new_database_beside_images_is_refused_and_costs_neither_images_nor_the_token() {
    let mut server = Server::logged_in();
    let path = server.raw_image("golden.raw", 4);
    server.run(&format!("image import golden {path}")).ends(0);
    server.kill();
    let (images, aside) = (server.data().join("images"), server.data().join("aside"));
    let mut files = std::fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path());
    let version = files.find(|path| path.extension().is_some_and(|suffix| suffix == "raw")).unwrap();
    let id = version.file_stem().unwrap().to_str().unwrap().to_owned();
    for entry in std::fs::read_dir(server.data()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("ggnet.db") {
            std::fs::remove_file(path).unwrap();
        }
    }
    // However often systemd starts it.
    for _ in 0..2 {
        let ran = server.over_again().ends(2).says("The database is new").says("what to do:");
        assert!(ran.stderr.contains(&id), "{ran:#?}");
        assert!(version.exists());
    }
    std::fs::rename(&images, &aside).unwrap();
    server.over_again().ends(0).shows("The administrator token");
}

#[test]
fn a_lost_key_is_refused_until_it_is_back_or_reset() {
    let mut server = Server::logged_in();
    let path = server.raw_image("golden.raw", 4);
    server.run(&format!("image import golden {path}")).ends(0);
    server.run(&format!("machine add pc-1 --mac {MAC} --image golden")).ends(0);
    server.run("session start pc-1").ends(0);
    server.offline("key reset").ends(1).says("it is not lost");
    let (key, aside) = (server.data().join("ggnet.key"), server.data().join("aside"));
    std::fs::rename(&key, &aside).unwrap();
    // However often systemd starts it.
    for _ in 0..2 {
        let ran = server
            .over_again()
            .ends(2)
            .says("is missing")
            .says("1 live session")
            .says("ggnet-server key reset");
        assert!(ran.stderr.contains(key.to_str().unwrap()), "{ran:#?}");
        assert!(!key.exists(), "no new key was made");
    }
    std::fs::write(&key, [7; 32]).unwrap();
    server
        .over_again()
        .ends(2)
        .says("is not the key that sealed")
        .says("1 live session")
        .says("ggnet-server key reset");
    server.offline("token reset").ends(2).says("ggnet-server key reset");

    std::fs::copy(&aside, &key).unwrap();
    server.again();
    server.run("server --wait 60").ends(0);
    server.run("session list").ends(0).shows("pc-1").shows("active");
    server.kill();

    std::fs::write(&key, [7; 32]).unwrap();
    server
        .offline("key reset")
        .ends(0)
        .shows("1 session was ended")
        .shows("ggnet.key.old-1")
        .shows("must boot anew");
    assert_eq!(std::fs::read(server.data().join("ggnet.key.old-1")).unwrap(), [7; 32]);
    server.offline("key reset").ends(0).shows("No session needed the old one").shows("ggnet.key.old-2");
    server.again();
    server.run("server --wait 60").ends(0);
    assert_eq!(server.json("session list --all --machine pc-1")[0]["state"], "failed");
    server.run("session start pc-1").ends(0);
}

#[test]
fn a_lost_instance_file_is_refused_until_its_line_is_back() {
    let mut server = Server::logged_in();
    server.kill();
    let file = server.data().join("instance");
    let line = std::fs::read_to_string(&file).unwrap();
    let instance = line.trim();
    for held in [None, Some("0badcafe\n"), Some("")] {
        std::fs::remove_file(&file).unwrap();
        if let Some(held) = held {
            std::fs::write(&file, held).unwrap();
        }
        // However often systemd starts it.
        let mut hint = String::new();
        for _ in 0..2 {
            let ran = server.over_again().ends(2).says(file.to_str().unwrap()).says(instance);
            assert_eq!(std::fs::read_to_string(&file).ok().as_deref(), held, "nothing was changed");
            hint = ran.stderr;
        }
        // Restored with the command of the message.
        let by_hand = hint.split('`').nth(1).unwrap();
        assert!(by_hand.contains(instance), "{by_hand}");
        assert!(Command::new("sh").args(["-c", by_hand]).status().unwrap().success());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), line);
    }
    server.again();
    server.run("server --wait 60").ends(0).shows(instance);
}

#[test]
fn machines_from_registration_to_removal() {
    let server = Server::logged_in();
    server.run("machine list").ends(0).says("Nothing found");
    assert_eq!(server.json("machine list"), Value::Array(vec![]));

    server.run("machine add pc-1 --mac 52:54:00:zz:00:01").ends(2).says("--mac").says("is not a MAC address");
    // `seen` is a fixed word at that place in a path of the API.
    server.run("machine add seen --mac 52:54:00:aa:00:01").ends(2).says("seen").says("Choose another name");
    let problem = server.run("machine add pc-1 --mac 52:54:00:zz:00:01 -o json").ends(2).problem();
    assert!(problem["field"].as_str().unwrap().contains("--mac"), "{problem}");
    server.run("machine add pc_1 --mac 52:54:00:aa:00:01").ends(2).says("is not a name");
    // Errors that only the server can detect.
    server
        .run("machine add pc-1 --mac 52:54:00:aa:00:01 --fixed-address 127.0.0.1")
        .ends(2)
        .says("field: fixed_address");
    server.run("machine add pc-1 --mac 52:54:00:aa:00:01 --image nothing").ends(4).says("ggnet image list");

    let line = format!(
        "machine add PC-1 --mac {MAC} --mac 52-54-00-AA-00-02 --firmware uefi --group room-2 --keep --no-auto-start"
    );
    server.run(&line).ends(0).shows("pc-1").says("no image to boot yet");
    server.run(&format!("machine add pc-1 --mac {MAC}")).ends(1);
    server.run("machine add pc-1 --mac 52:54:00:aa:00:09").ends(1).says("pc-1").says("code: name_taken");
    let problem = server.run(&format!("machine add pc-2 --mac {MAC} -o json")).ends(1).problem();
    assert_eq!((problem["status"].as_u64(), problem["kind"].as_str()), (Some(409), Some("conflict")));
    assert_eq!((&problem["code"], &problem["args"]["machine"]), (&"mac_taken".into(), &"pc-1".into()));

    let shown = server.json("machine show pc-1");
    assert_eq!(shown["macs"][1], "52:54:00:aa:00:02");
    assert_eq!((&shown["writeback"], &shown["auto_start"]), (&Value::from("keep"), &Value::from(false)));
    let id = shown["id"].as_str().unwrap();
    assert_eq!(server.json(&format!("machine show {id}")), shown);
    server.run("machine show pc-404").ends(4).says("ggnet machine list").says("code: machine_not_found");
    server.run("machine list --group room-2").ends(0).shows("pc-1").shows("uefi");
    assert_eq!(server.json("machine list --group elsewhere"), Value::Array(vec![]));

    server.run("machine set pc-1").ends(2);
    let changed = server
        .json("machine set pc-1 --discard --auto-start --description repaired --no-groups --revision 1");
    assert_eq!((&changed["writeback"], &changed["groups"]), (&Value::from("discard"), &Value::Array(vec![])));
    let late = server.run("machine set pc-1 --description late --revision 1").ends(1);
    late.says("what to do:").says("code: machine_changed");
    server.run("machine set pc-1 --fixed-address 10.9.9.9").ends(0).shows("10.9.9.9");
    assert_eq!(server.json("machine set pc-1 --fixed-address none")["fixed_address"], Value::Null);

    server.run("machine remove pc-1").ends(2).says("--yes");
    server.run("machine show pc-1").ends(0);
    assert_eq!(server.json("machine remove pc-1 --yes")["removed"], "pc-1");
    server.run("machine remove pc-1 --yes").ends(4);
    server.run("audit").ends(0).shows("machine.create").shows("admin at 127.0.0.1").shows("→ repaired");
    server.run("events").ends(0).shows("machine-deleted");
}

#[test]
fn an_unknown_machine_is_seen_and_registered() {
    let server = Server::logged_in();
    let answer = server.boot_request("/boot/52-54-00-aa-00-07.ipxe");
    // The user sees only the line on that machine's screen.
    let line = answer.lines().find_map(|l| l.split_once("ggnet machine add ")).expect(&answer).1.trim();
    server.run("machine seen").ends(0).shows("52:54:00:aa:00:07").says("ggnet machine add");
    server.run(&format!("machine add {line}")).ends(0).shows("pc-aa0007");
    assert_eq!(server.json("machine show pc-aa0007")["macs"][0], "52:54:00:aa:00:07");
    server.run("machine add --seen 52:54:00:aa:00:08").ends(4).says("ggnet machine seen");
    server.boot_request("/boot/52-54-00-aa-00-09.ipxe");
    server.run("machine forget 52:54:00:aa:00:09").ends(0);
    server.run("machine forget 52:54:00:aa:00:09").ends(4);
    let named = server.boot_request("/boot/52-54-00-aa-00-0a.ipxe");
    assert!(named.contains("--seen"), "{named}");
    assert_eq!(server.json("machine add kiosk --seen 52:54:00:aa:00:0a")["name"], "kiosk");
}

#[test]
fn an_image_is_imported_booted_and_removed() {
    let server = Server::logged_in();
    let path = server.raw_image("disk.raw", 8);
    server.run("image import debian /etc/passwd").ends(4).says("what to do: Put it below").says("import");
    server.run(&format!("image import debian {path} --sha256 12")).ends(2).says("--sha256");
    server.run(&format!("image import import {path}")).ends(2).says("Choose another name");
    let wrong = server.run(&format!("image import debian {path} --sha256 {}", "0".repeat(64))).ends(1);
    wrong.says("failed").says("what to do: The file is damaged").says("code: checksum_mismatch");
    let shown = server.run("image show debian").ends(0);
    shown.shows("what to do:").shows("The file is damaged").shows("checksum_mismatch");
    let failed = &server.json("image show debian")["versions"][0]["failure"];
    assert_eq!(
        (&failed["code"], &failed["args"]["path"]),
        (&"checksum_mismatch".into(), &path.clone().into())
    );
    server.run("events").ends(0).shows("what to do: The file is damaged");

    let done = server.run(&format!("image import debian {path} --format raw --comment first")).ends(0);
    let done = done.says("importing debian:2: ").shows("ready").shows("8.00 MiB");
    assert!(!done.stdout.contains("importing"), "progress is no result");
    let second = server.json(&format!("image import debian {path} --format raw --no-current"));
    assert_eq!((&second["state"], &second["number"]), (&Value::from("ready"), &Value::from(3)));
    server.run("image list").ends(0).shows("debian").shows("ready");
    server.run("image show debian").ends(0).shows("debian:2 (current)").shows("first");
    assert_eq!(server.json("image list")[0]["versions"].as_array().unwrap().len(), 3);

    server.run(&format!("machine add pc-1 --mac {MAC}")).ends(0);
    server.run("session start pc-1").ends(1).says("what to do:").says("code: machine_without_image");
    let problem = server.run("--output json session start pc-1").ends(1).problem();
    assert_eq!((&problem["code"], &problem["kind"]), (&"machine_without_image".into(), &"conflict".into()));
    assert_eq!(problem["args"]["machine"], "pc-1");
    server.run("machine set pc-1 --image debian --pin debian:2").ends(0).shows("debian");
    server.run("session show pc-1").ends(4).says("ggnet session start pc-1");
    server.run("session start pc-404").ends(4);

    let started = server.json("session start pc-1");
    let session = started["session"]["id"].as_str().unwrap();
    assert!(started["boot_script"].as_str().unwrap().starts_with("#!ipxe"));
    server.run("session start pc-1").ends(1).says("what to do:");
    server.run("session list").ends(0).shows("pc-1").shows("active").shows("debian");
    server.run("session stats").ends(0).shows("1 (0 online)");
    server.run("machine boot-script pc-1").ends(0).shows("#!ipxe").shows("sanboot");
    server.run("target list").ends(0).shows("pc-1");
    server.run("image remove-version debian:2 --yes").ends(1).says("code: version_is_current");
    server.run("machine remove pc-1 --yes").ends(1);
    assert_eq!(server.json(&format!("session show {session}"))["machine_name"], "pc-1");

    server.run("session stop pc-1").ends(0).shows("stopped").shows("operator");
    server.run("session stop pc-1").ends(1);
    server.run(&format!("session stop {session}")).ends(1);
    assert_eq!(server.json("session list"), Value::Array(vec![]));
    assert_eq!(server.json("session list --all --machine pc-1")[0]["id"], session);

    server.run("image set-current debian").ends(2).says("debian:NUMBER");
    server.run("image set-current debian:9").ends(4).says("no version 9");
    server.run("image set-current debian:3").ends(0).shows("debian:3 (current)");
    server.run("target add tools debian:9").ends(4);
    server.run("target add tools debian --initiator nonsense").ends(2).says("is not an IQN");
    server.run("target add tools debian").ends(0).shows("iqn.");
    server.run("target list").ends(0).shows("tools (by hand)");
    server.run("target remove tools").ends(2).says("--yes");
    server.run("target remove tools --yes").ends(0);
    server.run("target remove tools --yes").ends(4);
    server.run("machine set pc-1 --image none").ends(0);
    server.run("image remove debian --yes").ends(0);
    server.run("image show debian").ends(4);
}

/// Starts a command with its output in pipes and waits for `line` on stderr; returns the reader of the rest.
#[expect(clippy::unwrap_used, reason = "a helper of tests fails as tests fail")]
fn until_it_says(mut command: Command, line: &str) -> (Child, impl std::io::Read + use<>) {
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(process.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(line) {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended and said only {said:?}");
    }
    (process, stderr)
}

#[test]
fn boot_stages_are_shown_as_they_happen() {
    let server = Server::logged_in();
    let path = server.raw_image("disk.raw", 4);
    server.run(&format!("image import debian {path}")).ends(0);
    server.run(&format!("machine add pc-1 --mac {MAC} --image debian")).ends(0);
    server.run("session start pc-1").ends(0);

    let watch = server.command("session watch pc-1 --until script-read --timeout 60");
    let (process, _stderr) = until_it_says(watch, "Watching from now on");
    assert!(server.boot_request(&format!("/boot/{}.ipxe", MAC.replace(':', "-"))).contains("#!ipxe"));
    let watched = process.wait_with_output().unwrap();
    assert!(watched.status.success());
    let line = String::from_utf8(watched.stdout).unwrap();
    let last: Vec<&str> = line.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last[1..3], ["pc-1", "script-read"], "{line}");
    assert!(last[0].ends_with('Z'), "{line}");
    assert!(!line.contains("session-active"), "that was before the watch: {line}");

    let all =
        server.run("session watch --since-start --until script-read --timeout 60 --output json").ends(0);
    let events: Vec<Value> = all.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(
        events.iter().any(|e| e["kind"] == "session_active" && e["machine_name"] == "pc-1"),
        "{events:?}"
    );
    assert_eq!(events.last().unwrap()["stage"], "script_read");

    server
        .run("session watch pc-1 --until first-write --timeout 0.5")
        .ends(6)
        .says("first-write was not reached");
    server.run("session watch pc-1 --timeout 0.2").ends(0);
    server.run("session watch pc-404").ends(4);
    server.run("session watch --until teatime").ends(2).says("iscsi-login");
    let newest = server.json("events --limit 3");
    assert_eq!(newest.as_array().unwrap().len(), 3);
    let of_machine = server.json("events --machine pc-1 --limit 1");
    assert_eq!(of_machine[0]["stage"], "script_read");
    let after = newest[1]["cursor"].as_str().unwrap();
    assert_eq!(server.json(&format!("events --after {after}"))[0], newest[2]);
    let oldest = server.json("events --after 0 --limit 1");
    assert_eq!(
        (oldest.as_array().unwrap().len(), &oldest),
        (1, &server.json("events --after e1-0 --limit 1"))
    );
    server.run("events --after e1-ffffffff").ends(4).says("leave `after` out");
    server.run("events --after nonsense").ends(2).says("is not a cursor");
}

#[test]
fn ctrl_c_leaves_the_import_running_and_says_how_to_cancel_it() {
    let server = Server::logged_in();
    // Large, so that the import takes a while; sparse, so that it takes no space.
    let path = server.raw_image("large.raw", 64 << 10);
    let (process, mut stderr) =
        until_it_says(server.command(&format!("image import large {path}")), "importing large:1");
    let killed = Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(process.wait_with_output().unwrap().status.code(), Some(130));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("continues") && said.contains("`ggnet image cancel large:1`"), "{said}");
    assert_eq!(server.json("image show large")["versions"][0]["state"], "importing");

    let waiting = format!("image import other {path} --timeout 0.3");
    server.run(&waiting).ends(6).says("`ggnet image cancel other:1`");
    server.run("image cancel other").ends(0);
    server.run("image cancel large:1").ends(0);
    let ended = (0..2000).any(|_| server.json("image show large")["versions"][0]["state"] == "failed");
    assert!(ended, "a cancelled import fails");
    server.run("image cancel large").ends(4).says("No import");
}

#[test]
fn jobs_are_listed_cancelled_and_retried() {
    let server = Server::logged_in();
    server.run("job list").ends(0).says("Nothing found");
    let path = server.raw_image("large.raw", 64 << 10);
    server.run(&format!("image import large {path} --no-wait")).ends(0);
    let job = server.json("job list")[0].clone();
    let id = job["id"].as_str().unwrap();
    assert_eq!((&job["kind"], &job["state"]), (&"import".into(), &"running".into()), "{job}");
    server.run(&format!("job retry {id}")).ends(1).says("job_not_retryable");
    server.run(&format!("job cancel {id}")).ends(0).shows("import of large:1");
    let becomes = |state: &str| (0..2000).any(|_| server.json(&format!("job show {id}"))["state"] == state);
    assert!(becomes("cancelled"));
    server.run(&format!("job cancel {id}")).ends(1).says("job_ended");
    server.run("job list").ends(0).says("Nothing found");
    let cancelled = server.json("job list --state cancelled");
    assert_eq!((&cancelled[0]["id"], &cancelled[0]["attempts"]), (&id.into(), &1.into()));

    // The same import, now with the changed file.
    server.raw_image("large.raw", 1);
    server.run(&format!("job retry {id}")).ends(0).shows("import of large:1");
    assert!(becomes("succeeded"));
    assert_eq!(server.json("job list --all")[0]["attempts"], 2);
    let image = server.json("image show large");
    assert_eq!((&image["versions"][0]["number"], &image["state"]), (&1.into(), &"ready".into()), "{image}");
    server.run("job show nonsense").ends(2).says("is not a job id");
    server.run("job show 00000000-0000-7000-8000-000000000000").ends(4).says("job_not_found");
}

#[test]
fn the_server_shows_its_version_and_health() {
    let server = Server::logged_in();
    server.run("server").ends(0).shows("machines can boot").shows("import");
    let about = server.json("server");
    assert_eq!(about["ready"], true);
    assert!(
        about["backends"].as_array().unwrap().iter().any(|b| b["port"] == "target" && b["status"] == "up"),
        "{about}"
    );
    let quiet = server.run("machine list --quiet").ends(0);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet:?}");
}

#[test]
fn every_shell_has_completion_and_help_has_examples() {
    let home = tempfile::tempdir().unwrap();
    let run =
        |words: &str| support::Ran::from(ggnet(home.path()).args(words.split_whitespace()).output().unwrap());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        run(&format!("completion {shell}")).ends(0).shows("discard-writeback");
    }
    run("completion tcsh").ends(2);
    run("--help").ends(0).shows("Exit codes:").shows("timed out while waiting").shows("Examples:");
    run("machine add --help").ends(0).shows("--seen").shows("Examples:");
    run("--version").ends(0).shows(env!("CARGO_PKG_VERSION"));
    run("").ends(2);
    run("machine fly").ends(2);
    let problem = run("machine fly -o json").ends(2).problem();
    assert_eq!(problem["kind"], "invalid");
    // The reader of a pipe may exit.
    let shell = format!(
        "{} completion bash | head -n 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_ggnet")
    );
    let piped = Command::new("bash").args(["-c", &shell]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&piped.stdout).trim(),
        "0",
        "{}",
        String::from_utf8_lossy(&piped.stderr)
    );
}
