//! The runner with real programs of this host.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use ggnet_core::error::ErrorKind;

use super::{Arg, CommandRunner, Invocation, Limits, Stdin, SystemRunner, system::LineSplitter};

fn program(name: &str) -> Invocation {
    Invocation::new(name, "apt-get install coreutils")
}

/// Runs a script; tests may use a shell, the product never does.
fn script(text: &str) -> Invocation {
    program("sh").arg("-c").arg(text)
}

/// Whether a process exists and is not a zombie.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| !s.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test]
async fn exit_code_stdout_stderr_and_stdin_come_through() {
    let runner = SystemRunner::new().unwrap();
    let run = script("cat; echo complaint >&2; exit 3").stdin(Stdin::Bytes(Bytes::from_static(b"hello")));
    let out = runner.run(run).await.unwrap();
    assert_eq!((out.code, out.signal), (Some(3), None));
    assert_eq!(&out.stdout[..], b"hello");
    assert_eq!(out.stderr_tail, "complaint");
    let e = out.require_success(ErrorKind::Corrupt, "It failed").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    assert_eq!(e.tool().unwrap().exit_code, Some(3));
    assert_eq!(e.tool().unwrap().stderr_tail, "complaint");
}

#[tokio::test]
async fn the_environment_is_fixed_and_stdin_is_not_inherited() {
    let runner = SystemRunner::new().unwrap();
    let out = runner.run(program("env")).await.unwrap();
    let text = String::from_utf8(out.stdout.to_vec()).unwrap();
    let mut names: Vec<_> = text.lines().filter_map(|l| l.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["LC_ALL", "PATH"], "{text}");
    let out = runner.run(program("readlink").arg("/proc/self/fd/0")).await.unwrap();
    assert_eq!(&out.stdout[..], b"/dev/null\n");
}

#[tokio::test]
async fn a_missing_program_is_unavailable_and_says_how_to_get_it() {
    let runner = SystemRunner::new().unwrap();
    for name in ["no-such-program", "/nonexistent/qemu-img"] {
        let e = runner.run(Invocation::new(name, "apt-get install it")).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
        assert_eq!(e.hint(), Some("apt-get install it"));
        assert!(e.message().contains(name), "{e}");
    }
    let e = runner.run(program("/etc/passwd")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Permission, "{e}");
}

#[tokio::test]
async fn limits_hold() {
    let runner = SystemRunner::new().unwrap();
    let limits = Limits { address_space: Some(1 << 30), cpu_seconds: Some(7), file_size: Some(512 * 1024) };
    let out = runner.run(script("ulimit -v; ulimit -t; ulimit -f; ulimit -c").limits(limits)).await.unwrap();
    assert_eq!(std::str::from_utf8(&out.stdout).unwrap(), "1048576\n7\n1024\n0\n");
    let busy = Limits { cpu_seconds: Some(1), ..Limits::default() };
    let out = runner.run(script("while :; do :; done").limits(busy)).await.unwrap();
    assert_eq!(out.signal, Some(24), "SIGXCPU: {out:?}");
}

#[tokio::test]
async fn background_work_is_niced() {
    let runner = SystemRunner::new().unwrap();
    // Our own priority may not be 0: `nice make test` is a valid way to run this.
    let own = rustix::process::getpriority_process(None).unwrap();
    let out = runner.run(program("nice").in_background()).await.unwrap();
    assert_eq!(std::str::from_utf8(&out.stdout).unwrap(), format!("{}\n", (own + 10).min(19)));
}

#[tokio::test]
async fn output_is_bounded() {
    let runner = SystemRunner::new().unwrap();
    let mut run = script("yes | head -c 5000000; yes complaint | head -n 100000 >&2");
    run.stdout_limit = 1000;
    let out = runner.run(run).await.unwrap();
    assert_eq!(out.stdout.len(), 1000);
    assert!(out.stdout_cut && out.success());
    assert_eq!(out.stderr_tail.lines().count(), 20);
}

#[tokio::test]
async fn lines_are_reported_as_they_come() {
    let runner = SystemRunner::new().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let run = script(r"printf 'one\rtwo\n\nthr'; printf 'ee'")
        .on_line(Arc::new(move |l| sink.lock().unwrap().push(l.to_owned())));
    runner.run(run).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["one", "two", "three"]);
    let mut pieces = Vec::new();
    LineSplitter::default().push(&[b'x'; 9000], true, |l| pieces.push(l.len()));
    assert_eq!(pieces, [4096, 4096, 808]);
}

/// A script that prints its process ID and that of its child, and keeps running. The child ignores its parent's death.
fn long_lived(pids: &Arc<Mutex<Vec<u32>>>) -> Invocation {
    let sink = pids.clone();
    script("sleep 1000 & echo $!; echo $$; wait")
        .on_line(Arc::new(move |l| sink.lock().unwrap().push(l.parse().unwrap())))
}

#[tokio::test]
async fn at_the_time_limit_the_whole_group_is_killed_and_reaped() {
    let runner = SystemRunner::new().unwrap();
    let pids = Arc::new(Mutex::new(Vec::new()));
    let run = long_lived(&pids).time_limit(Duration::from_secs(3));
    let e = runner.run(run).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
    let pids = pids.lock().unwrap().clone();
    assert_eq!(pids.len(), 2, "the script had time to speak");
    assert!(!fs::exists(format!("/proc/{}", pids[1])).unwrap(), "reaped, not even a zombie");
    until("the grandchild is dead", || !alive(pids[0])).await;
}

#[tokio::test]
async fn dropping_the_call_kills_the_whole_group() {
    let runner = SystemRunner::new().unwrap();
    let pids = Arc::new(Mutex::new(Vec::new()));
    let run = long_lived(&pids);
    #[expect(clippy::disallowed_methods, reason = "a task of the test, which it waits for")]
    let task = tokio::spawn(async move { runner.run(run).await });
    until("the script speaks", || pids.lock().unwrap().len() == 2).await;
    task.abort();
    let pids = pids.lock().unwrap().clone();
    until("both are gone", || !pids.iter().any(|p| alive(*p))).await;
    until("the leader is reaped", || !fs::exists(format!("/proc/{}", pids[1])).unwrap()).await;
}

/// Not a test of its own: [`a_sigkill_of_ours_takes_the_program_along`] runs it in another process.
const HELPER: &str = "GGNET_TEST_RUNNER_HELPER";

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "starts this test again as the process that is killed")]
async fn a_sigkill_of_ours_takes_the_program_along() {
    if let Some(file) = std::env::var_os(HELPER) {
        let run = script(&format!("echo $$ > '{}'; exec sleep 1000", file.to_string_lossy()));
        SystemRunner::new().unwrap().run(run).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let mut helper = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "run::tests::a_sigkill_of_ours_takes_the_program_along"])
        .env(HELPER, &file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut pid = None;
    until("the program says its id", || {
        pid = fs::read_to_string(&file).ok().and_then(|s| s.trim().parse::<u32>().ok());
        pid.is_some()
    })
    .await;
    let pid = pid.unwrap();
    assert!(alive(pid));
    helper.kill().await.unwrap();
    until("the program died with its parent", || !alive(pid)).await;
}

#[test]
fn nothing_private_is_shown() {
    let run =
        program("tool").arg("-u").hidden_arg("alice").stdin(Stdin::Bytes(Bytes::from_static(b"s3cret")));
    let shown = format!("{run:?}");
    assert!(!shown.contains("alice") && !shown.contains("s3cret"), "{shown}");
    assert_eq!(run.shown_argv(), ["tool", "-u", "<hidden>"]);
    assert_eq!(Arg::plain("a\nb\u{1b}[2J").shown(), "a\\nb\\u{1b}[2J");
}
