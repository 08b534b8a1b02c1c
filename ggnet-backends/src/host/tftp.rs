//! Checks the folder that Debian's `tftpd-hpa` serves, and the program that serves it.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::fs::Access;

use super::{Finding, Level, Transport, holders};

/// The file with the settings of Debian's unit.
const DEFAULTS: &str = "/etc/default/tftpd-hpa";

/// Whether `root` exists, is writable for us and readable for in.tftpd's user.
#[must_use]
pub fn tftp_folder(root: &Path) -> Finding {
    let shown = root.display();
    let what = format!("TFTP folder {shown}");
    let meta = match fs::metadata(root) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mend = format!("sudo apt-get install tftpd-hpa; sudo install -d -m 0755 -o USER {shown}");
            return Finding::bad(Level::Fail, what, "It does not exist", mend);
        }
        Err(e) => return Finding::unknown(what, &e),
    };
    let mode = meta.permissions().mode() & 0o7777;
    let owned = format!("user id {} owns it, mode {mode:04o}", meta.uid());
    if !meta.is_dir() {
        return Finding::bad(
            Level::Fail,
            what,
            "It is not a folder",
            "Set another one: root in [boot_files]",
        );
    }
    if rustix::fs::access(root, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let why = format!("This process cannot write to it: {owned}");
        return Finding::bad(
            Level::Fail,
            what,
            why,
            format!("sudo chown USER {shown}   (the server's user)"),
        );
    }
    if mode & 0o001 == 0 {
        let why = format!("in.tftpd, which runs as another user, has no access to it: {owned}");
        return Finding::bad(Level::Fail, what, why, format!("sudo chmod o+rx {shown}"));
    }
    Finding::ok(what, format!("It is writable; {owned}"))
}

/// Whether in.tftpd listens on `server` and, according to its settings, serves this folder.
#[must_use]
pub fn tftp_server(server: SocketAddr, root: &Path) -> Finding {
    let what = format!("TFTP server on UDP port {}", server.port());
    let start = "sudo systemctl enable --now tftpd-hpa   (sudo apt-get install tftpd-hpa)";
    let holders = match holders(Transport::Udp, server.ip(), server.port()) {
        Ok(holders) => holders,
        Err(e) => return Finding::unknown(what, &e),
    };
    let Some(holder) = holders.first() else {
        return Finding::bad(Level::Fail, what, format!("Nothing listens on {}", server.ip()), start);
    };
    match &holder.command {
        Some(command) if command == "in.tftpd" => judge(what, fs::read_to_string(DEFAULTS), root),
        Some(_) => {
            Finding::bad(Level::Fail, what, format!("It is used by {holder}, which is not in.tftpd"), start)
        }
        None => {
            let mend = format!("Find the process: sudo ss -ulnp 'sport = :{}'", server.port());
            Finding::bad(Level::Warn, what, format!("It is used by {holder}"), mend)
        }
    }
}

/// in.tftpd runs; the settings of its unit should have this folder, with chroot.
fn judge(what: String, settings: io::Result<String>, root: &Path) -> Finding {
    let text = match settings {
        Ok(text) => text,
        // It was not started by Debian's unit.
        Err(e) => return Finding::unknown(what, &format!("in.tftpd runs, but {DEFAULTS}: {e}")),
    };
    let value = |key: &str| {
        let line = text.lines().filter_map(|l| l.trim().strip_prefix(key)?.strip_prefix('=')).next_back()?;
        Some(line.trim_matches(['"', '\'']).to_owned())
    };
    let serves = value("TFTP_DIRECTORY").unwrap_or_default();
    let same = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if same(Path::new(&serves)) != same(root) {
        let why = format!("in.tftpd serves {serves:?}, but GGnet writes to {}", root.display());
        let mend =
            format!("Set TFTP_DIRECTORY in {DEFAULTS} and restart tftpd-hpa, or set root in [boot_files]");
        return Finding::bad(Level::Fail, what, why, mend);
    }
    let options = value("TFTP_OPTIONS").unwrap_or_default();
    if !options.split_ascii_whitespace().any(|o| matches!(o, "--secure" | "-s")) {
        let mend = format!("Set TFTP_OPTIONS=\"--secure\" in {DEFAULTS} and restart tftpd-hpa");
        return Finding::bad(Level::Fail, what, "Without --secure, in.tftpd requires absolute paths", mend);
    }
    Finding::ok(what, format!("in.tftpd serves {}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_right_closed_or_missing() {
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        set(0o755);
        assert_eq!(tftp_folder(dir.path()).level, Level::Ok);
        set(0o750);
        let f = tftp_folder(dir.path());
        assert!(f.level == Level::Fail && f.mend.as_deref().unwrap().contains("chmod o+rx"), "{f}");
        let f = tftp_folder(&dir.path().join("none"));
        assert!(
            f.level == Level::Fail && f.mend.as_deref().unwrap().contains("apt-get install tftpd-hpa"),
            "{f}"
        );
    }

    #[test]
    fn nobody_and_somebody_else() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let f = tftp_server(at, Path::new("/srv/tftp"));
        assert!(f.level == Level::Fail && f.why.contains("not in.tftpd"), "{f}");
        drop(socket);
        let f = tftp_server(at, Path::new("/srv/tftp"));
        assert!(f.level == Level::Fail && f.mend.as_deref().unwrap().contains("systemctl"), "{f}");
    }

    #[test]
    fn the_units_settings() {
        let judge = |text: &str, root| judge("x".into(), Ok(text.into()), Path::new(root)).level;
        let debian = "# /etc/default/tftpd-hpa\n\nTFTP_USERNAME=\"tftp\"\nTFTP_DIRECTORY=\"/no/such\"\nTFTP_OPTIONS=\"--secure\"\n";
        assert_eq!(judge(debian, "/no/such"), Level::Ok);
        assert_eq!(judge(debian, "/no/other"), Level::Fail);
        assert_eq!(judge(&debian.replace("--secure", "-v"), "/no/such"), Level::Fail);
        assert_eq!(judge("", "/no/such"), Level::Fail);
    }
}
