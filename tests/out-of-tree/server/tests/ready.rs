//! The server with a stranger's backend starts, is ready, and names it; a wrong setting of it is refused, its checks and keys are shown.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ends with the test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(dir: &Path, dhcp: &str) -> Command {
    let config = dir.join("ggnet-server.toml");
    std::fs::write(&config, format!("[dhcp]\nbackend = \"ethers\"\n{dhcp}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ethers-server"));
    command.arg("--config").arg(&config).arg("--data-dir").arg(dir.join("data"));
    command.args(["--http-listen", "127.0.0.1:0", "--iscsi-listen", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_server_with_a_strangers_backend_is_ready_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Server(server(dir.path(), "").spawn().unwrap());
    let mut said = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let address = loop {
        let line = said.next().expect("the server ended before it said where it listens").unwrap();
        if let Some((_, address)) = line.split_once("--server http://") {
            break address.to_owned();
        }
    };
    let patience = Instant::now() + Duration::from_secs(60);
    let answer = loop {
        match get(&address, "/health/ready") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => break answer,
            other => assert!(Instant::now() < patience, "never ready: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(answer.contains("\"ethers\""), "{answer}");
}

#[test]
fn a_wrong_setting_of_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = server(dir.path(), "pfad = \"/tmp/ethers\"").stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ethers") && said.contains("pfad"), "{said}");
    assert!(said.contains("Keys of ethers: path"), "{said}");
}

#[test]
fn check_prints_what_a_strangers_backend_found() {
    let dir = tempfile::tempdir().unwrap();
    let check = |dhcp: &str| {
        let output = server(dir.path(), dhcp).arg("check").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check("");
    assert!(said.contains("\nok   ethers file ") && said.contains("It has 0 lines"), "{said}");
    let said = check("path = \"/no/such/folder/ethers\"");
    assert!(said.contains("\nfail ethers file /no/such/folder/ethers: "), "{said}");
    assert!(said.contains("what to do: sudo install -d -o ggnet /no/such/folder"), "{said}");
    let said = check("pfad = \"/tmp/ethers\"");
    assert!(
        said.contains("\nfail section [dhcp]: ") && said.contains("what to do: Keys of ethers: path"),
        "{said}"
    );
    assert!(!dir.path().join("data").exists(), "it looks and changes nothing");
}

#[test]
fn the_list_of_backends_has_it_with_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let output = server(dir.path(), "").arg("backends").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let ours = "[dhcp] backend = \"ethers\": An ethers file, for a DHCP server that somebody else runs\n    path  The file";
    assert!(said.contains(ours), "{said}");
    assert!(said.contains("[dhcp] backend = \"proxy\" (default)"), "{said}");
}
