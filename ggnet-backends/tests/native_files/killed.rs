//! A child that is killed with SIGKILL at a random time: this test binary again; an environment variable specifies its work.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const SETUP: &str = "GGNET_TEST_KILLED";
/// Printed once for each completed operation; the harness prints only text.
const DONE: u8 = 1;

/// In the child: its folder. In the test itself: none.
pub fn setup() -> Option<std::path::PathBuf> {
    std::env::var_os(SETUP).map(Into::into)
}

/// In the child: reports a completed operation to the parent.
pub fn done() {
    use std::io::Write as _;
    std::io::stdout().write_all(&[DONE]).unwrap();
    std::io::stdout().flush().unwrap();
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the test `name` as a child with `dir`, whose files only the child's user can read by default, and kills it `late` after it reported
/// a completed operation.
pub fn run_and_kill(name: &str, dir: &Path, late: Duration) {
    let exe = std::env::current_exe().unwrap();
    let line = format!("umask 077; exec \"$0\" --exact {name} --nocapture --test-threads=1");
    let child = Command::new("sh")
        .args(["-c", &line, exe.to_str().unwrap()])
        .env(SETUP, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Reaped(child);
    let mut pipe = child.0.stdout.take().unwrap();
    let mut buffer = [0; 4096];
    loop {
        let n = pipe.read(&mut buffer).unwrap();
        assert!(n > 0, "{name} ended by itself");
        if buffer[..n].contains(&DONE) {
            break;
        }
    }
    std::thread::sleep(late);
    child.0.kill().unwrap();
}
