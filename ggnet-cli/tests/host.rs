//! A real server and `ggnet` under hostile conditions: readers of their output that exit or hang, a full disk behind it, a terminal that
//! closes, clients that send arbitrary data.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "programs of the test, and waiting for them")]

mod support;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use support::{boot_request, free_port, ggnet, serve, serve_and_log, token_in};
use tempfile::TempDir;

/// A folder for a server, and its address.
fn folder() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("import")).unwrap();
    File::create(folder.path().join("empty.toml")).unwrap();
    (folder, format!("127.0.0.1:{}", free_port()))
}

/// A running server, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts it and waits until machines can boot.
    fn start(mut command: Command, address: &str) -> Self {
        let mut running = Self(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(60);
        let ready = || {
            TcpStream::connect(address).is_ok()
                && boot_request(address, "/health/ready").starts_with("HTTP/1.1 200")
        };
        while !ready() {
            assert!(running.0.try_wait().unwrap().is_none() && Instant::now() < end, "it is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn signal(&mut self, name: &str) -> ExitStatus {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        self.0.wait().unwrap()
    }
}

fn dev_full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Sends many requests of machines, which all succeed; each writes lines to the log.
fn it_serves(address: &str) {
    for n in 0..100 {
        let answer = boot_request(address, &format!("/boot/52-54-00-aa-00-{n:02x}.ipxe"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("not registered"), "{n}: {answer}");
        assert!(boot_request(address, "/health/live").starts_with("HTTP/1.1 200"));
    }
}

/// Sends requests until health reports lost log lines; machines still boot.
fn it_loses_lines(address: &str) {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        it_serves(address);
        let health = boot_request(address, "/health/ready");
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        if health.contains("Lines of the log are lost") {
            break assert!(health.contains(r#""status":"degraded""#), "{health}");
        }
        assert!(Instant::now() < end, "lost lines are not said: {health}");
    }
}

/// The number of lost log lines in `/metrics`.
fn lines_lost(address: &str, token: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close");
    write!(stream, "GET /metrics HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let counted = answer.lines().find_map(|line| line.strip_prefix("ggnet_log_lines_lost_total "));
    counted.unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
}

#[test]
fn a_log_without_a_reader_affects_only_the_log() {
    let (folder, address) = folder();
    let mut command = serve_and_log(folder.path(), &address, "debug");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = Running::start(command, &address);
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let token = lines.find_map(|line| token_in(&line).map(ToOwned::to_owned)).unwrap();
    assert_eq!(lines_lost(&address, &token), 0);
    assert!(!boot_request(&address, "/health/ready").contains("are lost"));
    // The reader exits.
    drop(server.0.stderr.take());
    it_loses_lines(&address);
    assert_ne!(lines_lost(&address, &token), 0);
    assert!(server.signal("TERM").success());
}

#[test]
fn a_log_on_a_full_disk_affects_only_the_log() {
    let (folder, address) = folder();
    let mut command = serve_and_log(folder.path(), &address, "debug");
    command.stdout(Stdio::null()).stderr(dev_full());
    let mut server = Running::start(command, &address);
    it_loses_lines(&address);
    assert!(server.signal("TERM").success());
}

#[test]
fn a_log_reader_that_hangs_blocks_nothing() {
    let (folder, address) = folder();
    let mut command = serve_and_log(folder.path(), &address, "trace");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let server = Running::start(command, &address);
    // A pipe holds 64 KiB and the queue some thousand lines; this writes far more, and nothing reads it.
    it_loses_lines(&address);
    drop(server);
}

/// A server that is started by another program with exec.
fn through(starter: &[&str], server: &Command) -> Command {
    let mut command = Command::new(starter[0]);
    command.args(&starter[1..]).arg(server.get_program()).args(server.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[test]
fn a_terminal_that_closes_is_a_clean_stop() {
    let (folder, address) = folder();
    // The test runner may ignore the signal, and its children inherit that.
    let mut command = through(&["env", "--default-signal=HUP"], &serve(folder.path(), &address));
    command.stderr(File::create(folder.path().join("log")).unwrap());
    let mut server = Running::start(command, &address);
    assert!(server.signal("HUP").success());
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("stopped"), "{log}");
}

#[test]
fn a_server_under_nohup_outlives_its_terminal() {
    let (folder, address) = folder();
    let mut command = through(&["nohup"], &serve(folder.path(), &address));
    command.stderr(File::create(folder.path().join("log")).unwrap());
    let mut server = Running::start(command, &address);
    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-s", "HUP", &pid]).status().unwrap().success());
    it_serves(&address);
    assert!(server.signal("TERM").success());
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(log.matches("stopping").count(), 1, "{log}");
}

/// The token that a start prints; none if it prints none.
fn shown(folder: &Path, address: &str) -> Option<String> {
    let mut child = Running(serve(folder, address).spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).find_map(|line| token_in(&line).map(ToOwned::to_owned))
}

#[test]
fn a_token_that_could_not_be_printed_is_not_stored_and_the_next_start_prints_one() {
    let (folder, address) = folder();
    let mut command = serve(folder.path(), &address);
    command.stdout(dev_full());
    let mut first = Running(command.spawn().unwrap());
    assert_eq!(first.0.wait().unwrap().code(), Some(1));
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("error: ") && log.contains("standard output"), "{log}");
    assert!(shown(folder.path(), &address).is_some());

    // The same for a reset: the old token stays valid.
    let reset = |out: Stdio| {
        let mut command = serve(folder.path(), &address);
        command.args(["token", "reset"]).stdout(out).output().unwrap()
    };
    let before = fs::read(folder.path().join("data/ggnet.db")).unwrap();
    assert_eq!(reset(dev_full().into()).status.code(), Some(1));
    assert!(fs::read(folder.path().join("data/ggnet.db")).unwrap() == before, "the old token was replaced");
    assert!(reset(Stdio::piped()).status.success());
}

#[test]
fn connections_with_half_a_request_or_none_are_closed_and_lock_nobody_out() {
    let (folder, address) = folder();
    let mut command = serve(folder.path(), &address);
    command.stdout(Stdio::null());
    let _server = Running::start(command, &address);
    let half = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /boot/52-54-00-aa-00-01.ipxe HTTP/1.1\r\nHost: x\r\n").unwrap();
        stream
    };
    // More than one source may have: the oldest connections are closed.
    let mut halves: Vec<_> = (0..400).map(|_| half()).collect();
    it_serves(&address);
    for stream in &mut halves {
        let mut rest = Vec::new();
        // Closed or reset; a timeout would be another error.
        let ended = stream.read_to_end(&mut rest).map_err(|e| e.kind());
        assert!(!matches!(ended, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{ended:?}");
    }
}

#[test]
fn a_start_that_hangs_can_be_stopped() {
    let (folder, address) = folder();
    let silent = "[dhcp]\nbackend = \"external\"\ncommand = [\"/bin/sleep\", \"300\"]\n";
    fs::write(folder.path().join("empty.toml"), silent).unwrap();
    let mut command = serve(folder.path(), &address);
    let mut server = Running(command.stdout(Stdio::null()).spawn().unwrap());
    let pid = server.0.id().to_string();
    let program = || Command::new("pgrep").args(["-P", &pid]).output().unwrap().status.success();
    let end = Instant::now() + Duration::from_secs(60);
    // It sends no response, so the start waits for it.
    while !program() {
        assert!(Instant::now() < end, "{:?}", fs::read_to_string(folder.path().join("log")));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.signal("TERM").code(), Some(0));
    assert!(fs::read_to_string(folder.path().join("log")).unwrap().contains("before the start was complete"));
}

#[test]
fn the_limit_of_open_files_is_raised_and_problems_are_logged() {
    let (folder, address) = folder();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = serve(folder.path(), &address);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=200:1000", "--"]).arg(server.get_program()).args(server.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(folder.path().join("log")).unwrap());
    let server = Running::start(command, &address);
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.0.id())).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1000"), "{files}");
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !(log().contains("LimitNOFILE=8192") && log().contains("chmod 700")) {
        assert!(Instant::now() < end, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_endless_header_is_refused_before_it_uses_much_memory() {
    let (folder, address) = folder();
    let mut command = serve(folder.path(), &address);
    command.stdout(Stdio::null());
    let _server = Running::start(command, &address);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: ").unwrap();
    // Not more than the server reads at once: unread data would turn the response into a reset.
    stream.write_all(&[b'x'; 32 << 10]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    it_serves(&address);
}

#[test]
fn invalid_requests_get_a_problem_document_and_are_logged_shortened() {
    let (folder, address) = folder();
    let mut command = serve(folder.path(), &address);
    command.stdout(Stdio::null());
    let _server = Running::start(command, &address);
    for path in ["/boot/x/report?stage=a", "/boot/%ff%fe.ipxe", "/files/%ff"] {
        let answer = boot_request(&address, path);
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains("application/problem+json"),
            "{path}: {answer}"
        );
    }
    let long = "x".repeat(4000);
    let mut stream = TcpStream::connect(&address).unwrap();
    let request = format!(
        "GET /nothing/{long} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {long}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains(&long), "{answer}");
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains(&long), "quoted whole");
}

#[test]
fn ggnet_exits_with_its_code_even_if_its_output_cannot_be_written() {
    let home = tempfile::tempdir().unwrap();
    for (words, code) in [("machine list", 3), ("machine add", 2)] {
        let mut command = ggnet(home.path());
        let ended = command.args(words.split(' ')).stdout(dev_full()).stderr(dev_full()).status().unwrap();
        let mut again = ggnet(home.path());
        let said = again.args(words.split(' ')).output().unwrap();
        assert_eq!(ended.code(), said.status.code(), "{words}");
        assert_eq!(ended.code(), Some(code), "{words}");
        let mut text = String::new();
        said.stderr.as_slice().read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
    }
}
