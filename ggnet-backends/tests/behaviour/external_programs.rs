//! The backends "external" with programs that misbehave: in every case the caller gets the reason in time, only the program ends, and the
//! next call uses a new one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{future::join_all, poll};
use ggnet_backends::external::{ExternalConfig, ExternalDhcp};
use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{Firmware, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpBackendExt as _, DhcpHost, Health, NullObserver, Observation, Observer,
    },
    testkit::suite::instance,
};
use serde_json::json;
use tempfile::TempDir;

use crate::native_dhcp::host;

/// The common start of all programs here. Each start adds a line with its process ID to the file `starts`.
const BEGIN: &str = r#"
import json, os, signal, sys, time
def hear():
    line = sys.stdin.readline()
    if not line: sys.exit()
    return json.loads(line)
def say(**message): print(json.dumps(message), flush=True)
def note(name, text):
    with open(os.path.join(DIR, name), "a") as f: f.write(str(text) + "\n")
def starts(): return len(open(os.path.join(DIR, "starts")).readlines())
HELLO = hear()
DIR = HELLO["params"]["config"]["dir"]
note("starts", os.getpid())
def hello(**other):
    result = {"protocol": 2, "port": "dhcp", "capabilities": {"leases": False, "observes": True}}
    say(id=0, result={**result, **other})
def serve():
    for line in sys.stdin:
        m = json.loads(line)
        if m["method"] == "shutdown": sys.exit()
        if "id" in m: say(id=m["id"], result={"list": [], "apply": {"failed": []}}.get(m["method"]))
"#;

/// A program and the folder for its notes.
pub struct World {
    dir: TempDir,
    pub config: ExternalConfig,
}

impl World {
    pub fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let command = ["python3", "-c", &format!("{BEGIN}{script}")].map(str::to_owned);
        let mut config = ExternalConfig::new(command.into());
        config.config.insert("dir".to_owned(), dir.path().to_str().unwrap().into());
        Self { dir, config }
    }

    fn with(mut self, change: impl FnOnce(&mut ExternalConfig)) -> Self {
        change(&mut self.config);
        self
    }

    async fn open(&self) -> Result<ExternalDhcp> {
        ExternalDhcp::open(self.config.clone(), instance()).await
    }

    async fn refused(&self) -> Error {
        let e = self.open().await.err().unwrap();
        assert_eq!((e.backend(), e.subject()), (Some("external"), None), "{}", e.report());
        e
    }

    /// The notes of this name.
    fn notes(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The process that was started last.
    fn process(&self) -> PathBuf {
        Path::new("/proc").join(self.notes("starts").last().unwrap())
    }
}

async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be: {what}");
}

fn id(n: u8) -> ResourceId {
    host(n).id
}

#[tokio::test]
async fn another_version_or_port_or_no_answer_to_hello_is_refused_in_words() {
    for (script, words) in [
        ("hello(protocol=1)", "version 1 of the protocol, but GGnet uses version 2"),
        ("hello(port='target')", "for the port target, but dhcp was requested"),
        ("hello(capabilities={'leases': True})", "missing field `observes`"),
        ("say(id=0, result={'port': 'dhcp'})", "missing field `protocol`"),
    ] {
        let e = World::new(&format!("{script}\nserve()")).refused().await;
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
        assert!(e.message().contains(words), "{e}");
    }
    let silent = World::new("time.sleep(1000)").with(|c| c.deadline_s = 1);
    let e = silent.refused().await;
    assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
    until("the silent one is gone", || !silent.process().exists()).await;
}

#[tokio::test]
async fn what_it_refuses_comes_through_in_full_and_is_no_reason_to_end_it() {
    let refuses = r#"
hello()
say(id=hear()["id"], error={"kind": "busy", "message": "Lease\nin use", "retryable": False, "hint": "Wait", "subject": "pc-1"})
say(id=hear()["id"], error={"kind": "full", "message": "No space"})
serve()"#;
    let dhcp = World::new(refuses).open().await.unwrap();
    let e = dhcp.remove(&id(1)).await.unwrap_err();
    assert_eq!((e.kind(), e.is_retryable(), e.message()), (ErrorKind::Busy, false, "Lease\\nin use"));
    assert_eq!((e.hint(), e.subject(), e.backend()), (Some("Wait"), Some("pc-1"), Some("external")));
    let e = dhcp.ensure(&host(1)).await.unwrap_err();
    assert_eq!((e.kind(), e.is_retryable(), e.subject()), (ErrorKind::Full, false, Some("m1")));
    assert_eq!(dhcp.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_not_found_and_named() {
    let e = World::new("").with(|c| c.command = vec!["/no/such/backend".to_owned()]).refused().await;
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    assert!(e.message().contains("/no/such/backend") && e.hint().unwrap().contains("command"), "{e:?}");
    let e = World::new("").with(|c| c.command = vec!["/etc/passwd".to_owned()]).refused().await;
    assert_eq!(e.kind(), ErrorKind::Permission, "{}", e.report());
    for (change, field) in [
        (|c: &mut ExternalConfig| c.command.clear(), "command"),
        (|c| c.command[0].clear(), "command"),
        (|c| c.deadline_s = 0, "deadline_s"),
        (|c| c.shutdown_s = 4000, "shutdown_s"),
        (|c| c.max_line = 10, "max_line"),
    ] as [(fn(&mut ExternalConfig), &str); 5]
    {
        let e = World::new("").with(change).open().await.err().unwrap();
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some(field)), "{}", e.report());
    }
}

#[tokio::test]
async fn what_is_no_message_ends_it_and_the_error_quotes_its_beginning() {
    for (said, words) in [
        (r"print('debug\x1b[2J' + 'x' * 100_000, flush=True)", r"it sent `debug\u{1b}[2Jxxx"),
        ("print('{}', flush=True)", "a response has `id` and either"),
        ("say(id=99, result=None)", "request 99, which was never sent"),
        ("say(id=1, reslut=None)", "unknown field `reslut`"),
        ("say(id=1, result=1, error={'kind': 'busy', 'message': ''})", "either `result` or `error`"),
        ("say(id=1, error={'kind': 'odd', 'message': ''})", "unknown variant `odd`"),
        ("say(method='shout', params={})", "method \"shout\" is unknown"),
        ("say(method='observed', params={'boot_file_sent': {}})", "missing field"),
        ("sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush()", "it sent `\u{fffd}`"),
        ("print('x' * 20_000, flush=True)", "a line longer than 10000 bytes"),
    ] {
        let script = format!("hello()\nif starts() > 1: serve()\nhear(); {said}; time.sleep(1000)");
        let limit = if words.starts_with("a line") { 10_000 } else { 32 << 20 };
        let world = World::new(&script).with(|c| c.max_line = limit);
        let dhcp = world.open().await.unwrap();
        let program = world.process();
        let e = dhcp.ensure(&host(1)).await.unwrap_err();
        assert_eq!((e.kind(), e.subject()), (ErrorKind::Unavailable, Some("m1")), "{}", e.report());
        assert!(e.message().contains(words), "{e}");
        assert!(e.message().len() < 1500 && !e.message().contains(char::is_control), "{e}");
        dhcp.ensure(&host(1)).await.unwrap();
        assert_eq!(world.notes("starts").len(), 2, "the next call has a new one");
        assert!(!program.exists(), "and the old one is gone, not even a zombie");
    }
}

#[tokio::test]
async fn one_that_dies_fails_what_is_in_flight_and_the_next_call_has_a_new_one() {
    let dies = r#"
hello()
if starts() > 1: serve()
for n in range(3): hear()
print("my last words", file=sys.stderr, flush=True)
os._exit(7)"#;
    let world = World::new(dies);
    let dhcp = world.open().await.unwrap();
    let (a, b, c) = (host(1), host(2), host(3));
    for outcome in join_all([dhcp.ensure(&a), dhcp.ensure(&b), dhcp.ensure(&c)]).await {
        let e = outcome.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
        assert!(e.message().contains("it ended with exit code 7"), "{e}");
        let tool = e.tool().unwrap();
        assert_eq!((tool.exit_code, tool.stderr_tail.as_str()), (Some(7), "my last words"));
        assert!(tool.argv[0].contains("python3"), "{tool:?}");
    }
    assert_eq!(dhcp.list().await.unwrap(), []);
    assert_eq!(world.notes("starts").len(), 2);
}

#[tokio::test]
async fn one_that_dies_again_and_again_is_not_started_at_every_call() {
    let world = World::new("hello()\nhear()\nos._exit(1)");
    let dhcp = world.open().await.unwrap();
    let mut failures = 0;
    // The delays grow: on any machine, some call arrives within one of them.
    let refused = loop {
        let e = dhcp.list().await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
        if e.message().contains("not be restarted for") {
            break e;
        }
        failures += 1;
    };
    assert_eq!(world.notes("starts").len(), failures);
    assert!(refused.message().contains("exit code 1"), "it says why: {refused}");
    assert!(matches!(dhcp.health().await, Health::Down(why) if why.contains("not be restarted")));
    dhcp.shutdown().await;
    let e = dhcp.list().await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unavailable && e.message().contains("shut down"), "{e}");
    assert_eq!(world.notes("starts").len(), failures, "after the shutdown none is started");
}

#[tokio::test]
async fn one_that_never_answers_costs_its_callers_a_deadline_and_is_replaced_by_and_by() {
    let silent = r#"
hello()
if starts() > 1: serve()
while True: note("heard", json.dumps(hear()))"#;
    let world = World::new(silent).with(|c| c.deadline_s = 1);
    let dhcp = world.open().await.unwrap();
    let e = dhcp.ensure(&host(1)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
    assert!(e.is_retryable() && e.message().contains("apply within 1s"), "{e}");
    let cancelled = json!({ "method": "cancel", "params": { "id": 1 } }).to_string();
    let heard = || world.notes("heard").iter().any(|line| line.replace(' ', "") == cancelled);
    until("it is told that nobody waits any more", heard).await;
    let e = dhcp.ensure(&host(1)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
    dhcp.ensure(&host(1)).await.unwrap();
    assert_eq!(world.notes("starts").len(), 2, "silent for two deadlines: a new one");
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let backwards = r#"
hello()
asked = [hear() for n in range(8)]
for m in reversed(asked): say(id=m["id"], error={"kind": "conflict", "message": m["params"]["changes"][0]["ensure"]["id"]})
serve()"#;
    let dhcp = World::new(backwards).open().await.unwrap();
    let hosts: Vec<DhcpHost> = (1..=8).map(host).collect();
    let outcomes = join_all(hosts.iter().map(|h| dhcp.ensure(h))).await;
    for (host, outcome) in hosts.iter().zip(outcomes) {
        assert_eq!(outcome.unwrap_err().message(), host.id.as_str());
    }
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_any_more_is_dropped() {
    let late = r#"
hello()
first = hear()
note("heard", first["method"])
cancel, second = hear(), hear()
note("heard", cancel["method"])
say(id=first["id"], error={"kind": "full", "message": "late"})
say(id=second["id"], result=[{"id": "a.1", "completeness": "partial"}])
serve()"#;
    let world = World::new(late);
    let dhcp = world.open().await.unwrap();
    let host = host(1);
    let mut call = dhcp.ensure(&host);
    assert!(poll!(&mut call).is_pending());
    until("it was asked", || !world.notes("heard").is_empty()).await;
    drop(call);
    // A request that was not written never arrives.
    assert!(poll!(dhcp.ensure(&host)).is_pending());
    let listed = dhcp.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].completeness, listed[0].digest), (1, Completeness::Partial, None));
    assert_eq!(world.notes("heard"), ["apply", "cancel"]);
}

#[tokio::test]
async fn an_answer_of_another_form_fails_its_call_alone() {
    let odd = r#"
hello()
say(id=hear()["id"], result={"a": "b"})
serve()"#;
    let world = World::new(odd);
    let dhcp = world.open().await.unwrap();
    let e = dhcp.list().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Internal, "{}", e.report());
    assert!(e.message().contains("response to list is invalid"), "{e}");
    assert_eq!(dhcp.list().await.unwrap(), []);
    assert_eq!(world.notes("starts").len(), 1);
}

#[tokio::test]
async fn a_flood_on_stderr_holds_nothing_up() {
    let floods = r#"
hello()
sys.stderr.write("x" * 3_000_000)
for n in range(100_000): print("complaint", n, file=sys.stderr)
serve()"#;
    let dhcp = World::new(floods).open().await.unwrap();
    assert_eq!(dhcp.list().await.unwrap(), []);
}

#[tokio::test]
async fn answers_and_requests_that_fill_both_pipes_do_not_lock_each_other_up() {
    let chatty = r#"
hello()
for n in range(200): say(method="observed", params={"not_answered": {"mac": "52:54:00:aa:00:01", "reason": "x" * 10_000}})
serve()"#;
    let dhcp = World::new(chatty).open().await.unwrap();
    let mut big = host(1);
    big.macs = (0..20_000_u32)
        .map(|n| format!("52:54:00:{:02x}:{:02x}:{:02x}", n >> 16, n >> 8 & 255, n & 255).parse().unwrap())
        .collect();
    for done in join_all((0..20).map(|_| dhcp.ensure(&big))).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_made() {
    let world = World::new("hello()\nserve()").with(|c| c.max_line = 5000);
    let dhcp = world.open().await.unwrap();
    let mut big = host(1);
    big.macs = vec![big.macs[0]; 1000];
    let e = dhcp.ensure(&big).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("max_line")), "{}", e.report());
    dhcp.ensure(&host(1)).await.unwrap();
    assert_eq!(world.notes("starts").len(), 1);
}

#[tokio::test]
async fn one_that_can_do_other_things_after_a_restart_is_refused() {
    let changes = r#"
hello(capabilities={"leases": starts() > 1, "observes": False})
hear()"#;
    let world = World::new(changes);
    let dhcp = world.open().await.unwrap();
    dhcp.list().await.unwrap_err();
    let e = dhcp.list().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
    assert!(e.message().contains("capabilities differ"), "{e}");
    assert!(!dhcp.capabilities().leases);
}

#[tokio::test]
async fn what_it_sees_is_told_to_the_observer() {
    struct Told(tokio::sync::mpsc::UnboundedSender<Observation>);
    impl Observer for Told {
        fn observe(&self, observation: Observation) {
            self.0.send(observation).unwrap();
        }
    }
    let sees = r#"
hello()
hear()
say(method="observed", params={"unknown_asked": {"mac": "52:54:00:aa:00:09", "firmware": "uefi"}})
serve()"#;
    let dhcp = World::new(sees).open().await.unwrap();
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    dhcp.attach(Arc::new(Told(told)));
    // A second call violates the contract, and changes nothing.
    dhcp.attach(Arc::new(NullObserver));
    let mut unanswered = dhcp.list();
    assert!(poll!(&mut unanswered).is_pending());
    let mac = "52:54:00:aa:00:09".parse().unwrap();
    assert_eq!(seen.recv().await, Some(Observation::UnknownAsked { mac, firmware: Firmware::Uefi }));
}

#[tokio::test]
async fn the_end_is_announced_and_waited_for() {
    let tidy = r#"
hello()
note("heard", hear()["method"])
note("heard", "end of input" if not sys.stdin.readline() else "more")
note("heard", "tidied up")"#;
    let world = World::new(tidy);
    let dhcp = world.open().await.unwrap();
    let program = world.process();
    dhcp.shutdown().await;
    assert_eq!(world.notes("heard"), ["shutdown", "end of input", "tidied up"]);
    assert!(!program.exists());
    // Again: nothing to do.
    dhcp.shutdown().await;
}

#[tokio::test]
async fn one_that_will_not_end_is_killed_with_its_children() {
    let stubborn = r#"
if os.fork() == 0:
    note("starts", os.getpid())
    time.sleep(1000)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while starts() < 2: time.sleep(0.01)
hello()
while True: time.sleep(1000)"#;
    for orderly in [true, false] {
        let world = World::new(stubborn).with(|c| c.shutdown_s = 1);
        let dhcp = world.open().await.unwrap();
        let programs: Vec<PathBuf> =
            world.notes("starts").iter().map(|p| Path::new("/proc").join(p)).collect();
        assert_eq!(programs.len(), 2);
        if orderly {
            dhcp.shutdown().await;
        } else {
            drop(dhcp);
        }
        // A child of the program is reaped by another process, or not at all in a container without an init.
        let gone = |p: &PathBuf| std::fs::read_to_string(p.join("stat")).map_or(true, |s| s.contains(") Z"));
        until("both are gone", || programs.iter().all(gone)).await;
    }
}

#[tokio::test]
async fn its_own_settings_go_over_the_pipe_alone() {
    let world = World::new("note('config', HELLO['params']['config']['password'])\nhello()\nserve()")
        .with(|c| drop(c.config.insert("password".to_owned(), "s3cret".into())));
    let dhcp = world.open().await.unwrap();
    assert_eq!(world.notes("config"), ["s3cret"]);
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(world.process().join(file)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("s3cret"), "{file}");
    }
    assert_eq!(dhcp.list().await.unwrap(), []);
}
