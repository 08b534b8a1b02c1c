//! What `make install` puts on a host, and whether the host's own tools take it: units, user, folders, proxy. And the processes as
//! those units start them: the server that says when it serves, the helper behind its socket.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ggnet_tests::process::{self, Process};
use ggnet_tests::{GgnetServer, ServerOptions, server, wait};

const UNITS: [&str; 3] = ["ggnet-server.service", "ggnet-helper.service", "ggnet-helper.socket"];
/// nobody, and somebody else.
const USER: &str = "65534";
const STRANGER: &str = "65533";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn make(target: &str, variables: &[String]) -> String {
    let binaries = server::binary().unwrap().parent().unwrap().display().to_string();
    let mut make = Command::new(process::tool("make", "make").unwrap());
    make.current_dir(repository()).arg(target).arg(format!("BIN_DIR={binaries}")).args(variables);
    process::run(&mut make).unwrap()
}

/// A command that is root among users of its own, where we are not root: it may change owners.
fn as_root(program: &str, package: &str) -> Command {
    let program = process::tool(program, package).unwrap();
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--map-auto", "--"]).arg(program);
    command
}

/// Every file below a folder, with its mode.
fn files(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, path.metadata().unwrap().permissions().mode() & 0o7777);
            }
        }
    }
    found
}

#[test]
fn everything_is_put_in_its_place_once_and_a_configuration_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let destination = [format!("DESTDIR={}", dir.path().display())];
    let said = make("install", &destination);
    assert!(said.contains("systemctl enable --now ggnet-server"), "{said}");
    let expected = [
        ("etc/ggnet/ggnet-server.toml", 0o644),
        ("usr/bin/ggnet", 0o755),
        ("usr/bin/ggnet-server", 0o755),
        ("usr/lib/systemd/system/ggnet-helper.service", 0o644),
        ("usr/lib/systemd/system/ggnet-helper.socket", 0o644),
        ("usr/lib/systemd/system/ggnet-server.service", 0o644),
        ("usr/lib/sysusers.d/ggnet.conf", 0o644),
        ("usr/lib/tmpfiles.d/ggnet.conf", 0o644),
        ("usr/share/bash-completion/completions/ggnet", 0o644),
        ("usr/share/fish/vendor_completions.d/ggnet.fish", 0o644),
        ("usr/share/zsh/vendor-completions/_ggnet", 0o644),
    ]
    .map(|(name, mode)| (name.to_owned(), mode));
    assert_eq!(files(dir.path()), expected.clone().into());
    let completion = fs::read_to_string(dir.path().join(&expected[8].0)).unwrap();
    assert!(completion.contains("ggnet"), "{completion}");

    // The configuration that is installed is one that the server takes.
    let config = dir.path().join("etc/ggnet/ggnet-server.toml");
    let installed = dir.path().join("usr/bin/ggnet-server");
    let check =
        process::output(Command::new(&installed).arg("--config").arg(&config).args(["check", "--json"]));
    let check = check.unwrap();
    assert!(check.stdout.starts_with(b"["), "{check:?}");
    let mut everything = fs::read_to_string(&config).unwrap();
    everything = everything.replace("\n#[", "\n[").lines().map(uncommented).collect();
    fs::write(&config, &everything).unwrap();
    let check =
        process::output(Command::new(&installed).arg("--config").arg(&config).args(["check", "--json"]));
    let check = check.unwrap();
    assert!(check.stdout.starts_with(b"["), "with every line switched on: {check:?}");
    assert!(!String::from_utf8_lossy(&check.stdout).contains("section ["), "a section is wrong: {check:?}");

    make("install", &destination);
    assert_eq!(fs::read_to_string(&config).unwrap(), everything, "the operator's own");
    make("uninstall", &destination);
    assert_eq!(files(dir.path()).into_keys().collect::<Vec<_>>(), ["etc/ggnet/ggnet-server.toml"]);
}

/// A line of the example with its setting switched on.
fn uncommented(line: &str) -> String {
    let setting = line
        .strip_prefix('#')
        .filter(|l| l.contains(" = ") && l.starts_with(|c: char| c.is_ascii_lowercase()));
    format!("{}\n", setting.unwrap_or(line))
}

#[test]
fn systemd_takes_the_units_and_says_how_exposed_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    make(
        "install",
        &[format!("PREFIX={}", at("usr").display()), format!("SYSCONFDIR={}", at("etc").display())],
    );
    let analyze = process::tool("systemd-analyze", "systemd").unwrap();
    let units = UNITS.map(|unit| at("usr/lib/systemd/system").join(unit));
    for unit in &units {
        let text = fs::read_to_string(unit).unwrap();
        assert!(!text.contains(" /usr/bin/") && !text.contains("=/usr/bin/"), "{text}");
    }
    let verified = process::output(Command::new(&analyze).arg("verify").args(&units)).unwrap();
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    let book = fs::read_to_string(repository().join("docs/operators.md")).unwrap();
    for unit in &units[..2] {
        let mut security = Command::new(&analyze);
        security.args(["security", "--offline=yes", "--no-pager"]).arg(unit);
        let said = process::run(&mut security).unwrap();
        let line = said.lines().find(|l| l.contains("Overall exposure level")).unwrap();
        let exposure = line.rsplit(": ").next().unwrap().split(' ').next().unwrap();
        let name = unit.file_name().unwrap().to_str().unwrap();
        let row = format!("| `{name}` | {exposure} |");
        assert!(book.contains(&row), "docs/operators.md says something else than {row}");
    }
}

#[test]
fn its_user_and_folders_are_made_by_systemds_own_tools() {
    let dir = tempfile::tempdir().unwrap();
    make("install", &[format!("DESTDIR={}", dir.path().display())]);
    fs::create_dir_all(dir.path().join("etc")).unwrap();
    let root = format!("--root={}", dir.path().display());
    process::run(as_root("systemd-sysusers", "systemd").arg(&root)).unwrap();
    let users = fs::read_to_string(dir.path().join("etc/passwd")).unwrap();
    let user = users.lines().find_map(|l| l.strip_prefix("ggnet:")).unwrap().to_owned();
    assert!(user.ends_with(":/var/lib/ggnet:/usr/sbin/nologin"), "{user}");
    let uid: u32 = user.split(':').nth(1).unwrap().parse().unwrap();
    process::run(as_root("systemd-tmpfiles", "systemd").arg(&root).args(["--create", "ggnet.conf"])).unwrap();
    let mut owners = Vec::new();
    let dhcp = "var/lib/ggnet-dhcp";
    for name in [dhcp, &format!("{dhcp}/dnsmasq/hosts"), &format!("{dhcp}/dnsmasq/options"), "etc/dhcp/ggnet"]
    {
        let folder = dir.path().join(name).metadata().unwrap();
        assert_eq!(folder.permissions().mode() & 0o7777, 0o755, "{name:?} is for the daemon to read");
        owners.push(folder.uid());
    }
    owners.dedup();
    assert_eq!(owners.len(), 1);
    if rustix::process::geteuid().is_root() {
        assert_eq!(owners[0], uid);
    }
    // The defaults of the configuration are these folders.
    let book = fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    assert!(book.contains("`/var/lib/ggnet-dhcp/dnsmasq/hosts`"));
}

/// A socket as systemd's, which hears what a service says of itself.
fn notify_socket(dir: &Path) -> (UnixDatagram, PathBuf) {
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(wait::SHORT)).unwrap();
    (socket, path)
}

fn hear(socket: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap();
    String::from_utf8_lossy(&message[..length]).into_owned()
}

#[test]
fn the_server_tells_systemd_when_it_serves_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, path) = notify_socket(dir.path());
    let config = dir.path().join("config.toml");
    fs::write(&config, "").unwrap();
    let port = process::free_port().unwrap();
    let mut command = process::command(server::binary().unwrap());
    command
        .env("NOTIFY_SOCKET", &path)
        .arg("--config")
        .arg(&config)
        .arg("--data-dir")
        .arg(dir.path().join("data"));
    command.arg(format!("--http-listen=127.0.0.1:{port}"));
    command.arg(format!("--iscsi-listen=127.0.0.1:{}", process::free_port().unwrap()));
    let mut served = Process::spawn("ggnet-server", command, &dir.path().join("log")).unwrap();
    assert!(hear(&socket).contains("READY=1"), "{}", served.log_text());
    // systemctl start returns here.
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    served.signal(rustix::process::Signal::TERM).unwrap();
    assert!(hear(&socket).contains("STOPPING=1"), "{}", served.log_text());
    assert!(served.wait(wait::SHORT).unwrap().success(), "{}", served.log_text());
}

/// A folder in the place of configfs, and a configuration that has the helper used.
fn helped(dir: &Path) -> PathBuf {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(dir.join("configfs/core")).unwrap();
    let config = dir.join("config.toml");
    let text = format!(
        "data_dir = \"{0}/data\"\n[target]\nbackend = \"lio-configfs\"\nhelper = \"{0}/helper.sock\"\nroot = \"{0}/configfs\"\n",
        dir.display()
    );
    fs::write(&config, text).unwrap();
    config
}

/// What the helper answers a user: `socat` in the server's place.
fn ask(socket: &Path, uid: &str, question: &str) -> String {
    let socat = process::tool("socat", "socat").unwrap();
    let script =
        format!("printf '%s\\n' '{question}' | {} -t30 - UNIX-CONNECT:{}", socat.display(), socket.display());
    let mut shell = as_root("setpriv", "util-linux");
    shell.args(["--reuid", uid, "--regid", USER, "--clear-groups", "--", "sh", "-c", &script]);
    process::run(&mut shell).unwrap()
}

#[test]
fn the_helper_behind_systemds_socket_answers_the_servers_user_and_nobody_else() {
    assert!(
        rustix::process::geteuid().is_root() || users_of_our_own(),
        "as root, or with uidmap: apt-get install uidmap"
    );
    let dir = tempfile::tempdir().unwrap();
    let config = helped(dir.path());
    let socket = dir.path().join("helper.sock");
    let mut command = as_root("systemd-socket-activate", "systemd");
    command.arg("--listen").arg(&socket).arg(server::binary().unwrap()).arg("--config").arg(&config);
    command.args(["helper", "--user", "nobody", "--unit", "dnsmasq.service"]);
    let helper = Process::spawn("helper", command, &dir.path().join("log")).unwrap();
    wait::until("the socket", wait::SHORT, || Ok(socket.exists().then_some(()))).unwrap();
    // As ggnet-helper.socket has it, but that strangers get as far as to be asked.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();

    let refused = ask(&socket, STRANGER, "\"load_target\"");
    assert!(refused.contains("\"permission\"") && refused.contains(STRANGER), "{refused}");
    assert!(!dir.path().join("configfs/iscsi").exists());
    assert_eq!(ask(&socket, USER, "\"load_target\""), "\"done\"\n", "{}", helper.log_text());
    assert!(dir.path().join("configfs/iscsi").is_dir());
    let other = ask(&socket, USER, r#"{"unit":{"unit":"ssh.service","action":"restart"}}"#);
    assert!(other.contains("\"permission\"") && other.contains("ssh.service"), "{other}");
    let garbage = ask(&socket, USER, r#"{"run":"reboot"}"#);
    assert!(garbage.contains("\"invalid\"") && !garbage.contains("reboot"), "{garbage}");
    // systemd is not what runs this test: the unit is named, and the helper lives.
    let unit = ask(&socket, "0", r#"{"unit":{"unit":"dnsmasq.service","action":"state"}}"#);
    assert!(unit.contains("dnsmasq.service") || unit.contains("D-Bus"), "{unit}");
}

fn users_of_our_own() -> bool {
    process::output(as_root("true", "coreutils").arg("--version")).is_ok_and(|o| o.status.success())
}

#[test]
fn the_helper_makes_a_socket_of_its_own_where_systemd_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = helped(dir.path());
    let socket = dir.path().join("helper.sock");
    // What one left that was killed.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let me = process::run(Command::new("id").arg("-un")).unwrap();
    let start = |log: &str| {
        let mut command = process::command(server::binary().unwrap());
        command.arg("--config").arg(&config).args(["helper", "--user", me.trim(), "--socket"]).arg(&socket);
        Process::spawn("helper", command, &dir.path().join(log)).unwrap()
    };
    let mut first = start("log");
    wait::until("the helper", wait::SHORT, || {
        first.check_running()?;
        Ok(first.log_text().contains("helper ready").then_some(()))
    })
    .unwrap();
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let mut second = start("second");
    assert!(!second.wait(wait::SHORT).unwrap().success());
    assert!(second.log_text().contains("Another helper already listens"), "{}", second.log_text());
    first.signal(rustix::process::Signal::TERM).unwrap();
    assert!(first.wait(wait::SHORT).unwrap().success());
    // Neither a socket nor the name of one.
    let mut command = process::command(server::binary().unwrap());
    command.arg("--config").arg(&config).args(["helper", "--user", me.trim()]);
    let mut third = Process::spawn("helper", command, &dir.path().join("third")).unwrap();
    assert!(!third.wait(wait::SHORT).unwrap().success());
    assert!(third.log_text().contains("systemctl start ggnet-helper.socket"), "{}", third.log_text());
}

#[test]
fn nginx_with_the_example_gives_the_api_tls_and_hides_what_machines_boot_from() {
    let served = GgnetServer::start(ServerOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut certificate = Command::new(process::tool("openssl", "openssl").unwrap());
    certificate.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]);
    certificate.args(["-keyout", &at("key"), "-out", &at("pem")]);
    process::run(&mut certificate).unwrap();
    let port = process::free_port().unwrap();
    let upstream = served.url().rsplit(':').next().unwrap().to_owned();
    let mut site = fs::read_to_string(repository().join("infra/examples/nginx.conf")).unwrap();
    for (from, to) in [
        ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
        ("127.0.0.1:8080", format!("127.0.0.1:{upstream}")),
        ("/etc/ssl/certs/ggnet.pem", at("pem")),
        ("/etc/ssl/private/ggnet.key", at("key")),
        ("ggnet.example;", "localhost;".to_owned()),
    ] {
        assert!(site.contains(from), "{from}");
        site = site.replace(from, &to);
    }
    let around = format!(
        "pid {};\ndaemon off;\nmaster_process off;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
         client_body_temp_path {1};\nproxy_temp_path {1};\nfastcgi_temp_path {1};\nuwsgi_temp_path {1};\n\
         scgi_temp_path {1};\n{site}\n}}\n",
        at("pid"),
        at("temp"),
    );
    fs::write(dir.path().join("conf"), around).unwrap();
    let nginx = process::tool("nginx", "nginx").unwrap();
    process::run(Command::new(&nginx).args(["-t", "-e", "stderr", "-c", &at("conf")])).unwrap();
    let mut command = process::command(&nginx);
    command.args(["-e", "stderr", "-c", &at("conf")]);
    let mut proxy = Process::spawn("nginx", command, &dir.path().join("log")).unwrap();
    let get = |path: &str, token: &str| {
        let mut curl = Command::new(process::tool("curl", "curl").unwrap());
        curl.args([
            "--silent",
            "--cacert",
            &at("pem"),
            "--output",
            &at("body"),
            "--write-out",
            "%{http_code}",
        ]);
        // In a file: a secret is no argument.
        fs::write(dir.path().join("header"), format!("Authorization: Bearer {token}")).unwrap();
        curl.arg("--header").arg(format!("@{}", at("header"))).arg(format!("https://localhost:{port}{path}"));
        process::output(&mut curl).map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
    };
    wait::until("nginx", Duration::from_secs(30), || {
        proxy.check_running()?;
        Ok((get("/health/ready", "")? == "200").then_some(()))
    })
    .unwrap();
    assert_eq!(get("/api/v1/machines", served.token()).unwrap(), "200");
    assert_eq!(get("/api/v1/machines", "wrong").unwrap(), "401");
    for hidden in ["/boot/52-54-00-00-00-01.ipxe", "/files/ipxe.efi", "/metrics"] {
        assert_eq!(get(hidden, served.token()).unwrap(), "404", "{hidden}");
    }
}

#[test]
fn every_message_that_the_troubleshooting_page_quotes_is_one_of_ours() {
    let mut source = String::new();
    let mut folders = ["ggnet-core", "ggnet-backends", "ggnet-server", "ggnet-cli"]
        .map(|c| repository().join(c).join("src"))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                source.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    // A literal that goes on in the next line.
    let source = source.split("\\\n").map(str::trim_start).collect::<String>();
    let book = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let quoted: Vec<&str> = book.split('“').skip(1).map(|rest| rest.split('”').next().unwrap()).collect();
    assert!(quoted.len() > 30);
    for message in quoted.into_iter().filter(|m| !["quotation marks", "no DHCP offers"].contains(m)) {
        for part in message.split('…').map(str::trim).filter(|p| p.len() > 2) {
            let literal = part.trim_end_matches(':');
            assert!(source.contains(literal), "nothing in the code says {literal:?} (of {message:?})");
        }
    }
}
