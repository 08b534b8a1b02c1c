//! The crate's examples, as README.md says how to use them: each serves libiscsi's tools.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::process::Stdio;

use iscsi_support::tool;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// An example that runs, and where its portal is. It is killed when dropped.
struct Example {
    _child: Child,
    /// Open, because a program cannot print into a closed pipe.
    _output: BufReader<ChildStdout>,
    portal: String,
}

impl Example {
    async fn start(name: &str, args: &[&str]) -> Self {
        let me = std::env::current_exe().unwrap();
        let program = me.parent().unwrap().parent().unwrap().join("examples").join(name);
        assert!(
            program.is_file(),
            "there is no {name}. Run: cargo build -p ggnet-iscsi --all-features --examples"
        );
        #[expect(clippy::disallowed_methods, reason = "a program of the test, killed with it")]
        let mut command = Command::new(program);
        let mut child = command.args(args).kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).await.unwrap();
        // "iqn… at [127.0.0.1:12345]"
        let portal = line.split(['[', ']']).nth(1).unwrap_or_else(|| panic!("{name} says {line:?}"));
        Self { _child: child, _output: output, portal: portal.to_owned() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_served_to_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk.raw");
    std::fs::File::create_new(&file).unwrap().set_len(64 << 20).unwrap();
    let example = Example::start("serve_file", &[file.to_str().unwrap(), "127.0.0.1:0"]).await;
    let said = tool("libiscsi-bin", &["iscsi-ls", "-s", &format!("iscsi://{}/", example.portal)]).await;
    assert!(said.ok && said.text.contains("Target:iqn.2026-01.org.example:file"), "{}", said.text);
    // The tool leaves out the last block of 64 MiB, and rounds down.
    assert!(said.text.contains("Lun:0") && said.text.contains("Size:63M"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_ones_own_is_served_to_who_knows_the_secret() {
    let example = Example::start("own_device", &["127.0.0.1:0"]).await;
    let url = |login: &str| format!("iscsi://{login}{}/iqn.2026-01.org.example:memory/0", example.portal);
    let said = tool("libiscsi-bin", &["iscsi-readcapacity16", &url("reader%secretsecret@")]).await;
    assert!(said.ok && said.text.contains(&format!("Total size:{}", 1 << 30)), "{}", said.text);
    let said = tool("libiscsi-bin", &["iscsi-readcapacity16", &url("reader%something-else@")]).await;
    assert!(!said.ok, "{}", said.text);
    let disk = format!(
        "file.driver=iscsi,file.transport=tcp,file.portal={},file.target=iqn.2026-01.org.example:memory,file.lun=0,file.user=reader",
        example.portal
    );
    let (secret, image) =
        ("secret,id=s,data=secretsecret", format!("driver=raw,{disk},file.password-secret=s"));
    for [first, then] in [["write -P 7 1M 64k", "read -P 7 1M 64k"], ["discard 1M 64k", "read -P 0 1M 64k"]] {
        let qemu = ["qemu-io", "--object", secret, "--image-opts", &image, "-c", first, "-c", then];
        let said = tool("qemu-utils", &qemu).await;
        assert!(said.ok && !said.text.contains("verification failed"), "{first}: {}", said.text);
    }
}
