//! Checks whether ISC dhcpd includes our file.

use std::{fs, io, path::Path};

use super::{Finding, Level};

/// Whether dhcpd's main file includes `file`, directly or through an included file; otherwise `missing`.
#[must_use]
pub fn dhcpd_includes(main: &Path, file: &Path, missing: Level) -> Finding {
    let what = format!("dhcpd's configuration {}", main.display());
    let line = format!("include \"{}\";", file.display());
    match includes(main, file, 8) {
        Ok(true) => Finding::ok(what, format!("It includes {}", file.display())),
        Ok(false) => {
            let why = format!(
                "It does not include {}, so dhcpd does not serve machines that GGnet registers",
                file.display()
            );
            Finding::bad(missing, what, why, format!("Add this line to it: {line}"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mend = "sudo apt-get install isc-dhcp-server; see the example infra/examples/dhcpd.conf";
            Finding::bad(missing, what, format!("It cannot be read: {e}"), mend)
        }
        Err(e) => Finding::unknown(what, &e),
    }
}

/// Searches in `main` and in included files up to this depth.
fn includes(main: &Path, file: &Path, depth: u8) -> io::Result<bool> {
    let text = fs::read_to_string(main)?;
    let included = |line: &str| {
        let (path, _) =
            line.trim_start().strip_prefix("include")?.trim_start().strip_prefix('"')?.split_once('"')?;
        Some(path.to_owned())
    };
    let same = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    for path in text.lines().filter_map(included) {
        let path = Path::new(&path);
        // dhcpd cannot include anything through a file that cannot be read.
        if same(path) == same(file) || depth > 0 && includes(path, file, depth - 1).unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn included_here_there_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        };
        let ours = dir.path().join("hosts.conf");
        let line = format!("include \"{}\";\n", ours.display());
        let level = |text: &str| dhcpd_includes(&write("main", text), &ours, Level::Fail).level;
        assert_eq!(level(&format!("authoritative;\n  {line}")), Level::Ok);
        assert_eq!(level(&format!("#{line}")), Level::Fail);
        assert_eq!(level("include \"/elsewhere/hosts.conf\";\n"), Level::Fail);
        let other = write("other", &line);
        assert_eq!(level(&format!("include \"{}\";\n", other.display())), Level::Ok);
        let round = dir.path().join("main");
        assert_eq!(level(&format!("include \"{}\";\n", round.display())), Level::Fail);
        let nowhere = dhcpd_includes(&dir.path().join("none"), &ours, Level::Fail);
        assert!(nowhere.level == Level::Fail && nowhere.mend.unwrap().contains("apt-get install"));
    }
}
