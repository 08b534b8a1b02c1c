//! Checks whether AppArmor allows a daemon of this host to read the folders that we write for it.
//!
//! The kernel reports which profiles are enforced; the profiles are in `/etc/apparmor.d`. Their language is not evaluated: a folder counts
//! as allowed if a rule with read permission names it, or a parent folder with everything below (`/**`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Finding, Level};

/// A daemon with an AppArmor profile.
#[derive(Clone, Copy, Debug)]
pub struct Confined {
    /// The names that its profile has had.
    pub profiles: &'static [&'static str],
    /// The file of its profile in `/etc/apparmor.d`; local additions are in `local/` under the same name.
    pub file: &'static str,
}

/// Debian's dnsmasq.
pub const DNSMASQ: Confined =
    Confined { profiles: &["dnsmasq", "/usr/sbin/dnsmasq"], file: "usr.sbin.dnsmasq" };
/// Debian's ISC dhcpd.
pub const DHCPD: Confined = Confined { profiles: &["dhcpd", "/usr/sbin/dhcpd"], file: "usr.sbin.dhcpd" };

/// Whether the daemon may read `folders`; otherwise `denied`, with the lines that allow it. `None` if AppArmor does not confine it.
#[must_use]
pub fn apparmor(daemon: &Confined, folders: &[PathBuf], denied: Level) -> Option<Finding> {
    look(
        Path::new("/sys/kernel/security/apparmor/profiles"),
        Path::new("/etc/apparmor.d"),
        daemon,
        folders,
        denied,
    )
}

fn look(
    kernel: &Path,
    policy: &Path,
    daemon: &Confined,
    folders: &[PathBuf],
    denied: Level,
) -> Option<Finding> {
    let what = format!("AppArmor profile {}", daemon.file);
    let profiles = match fs::read_to_string(kernel) {
        Ok(profiles) => profiles,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => return Some(Finding::unknown(what, &format!("{}: {e}", kernel.display()))),
    };
    let enforced = |name: &&str| profiles.lines().any(|line| line == format!("{name} (enforce)"));
    if !daemon.profiles.iter().any(enforced) {
        return None;
    }
    let rules = [policy.join(daemon.file), policy.join("local").join(daemon.file)]
        .map(|file| fs::read_to_string(file).unwrap_or_default())
        .concat();
    let missing: Vec<&PathBuf> = folders.iter().filter(|folder| !allows(&rules, folder)).collect();
    if missing.is_empty() {
        return Some(Finding::ok(what, "It allows the daemon to read our folders"));
    }
    let (names, lines): (Vec<_>, Vec<_>) = missing
        .iter()
        .map(|f| (f.display().to_string(), format!("{0}/ r,\\n{0}/** r,\\n", f.display())))
        .unzip();
    let local = policy.join("local").join(daemon.file);
    Some(Finding::bad(
        denied,
        what,
        format!("It is enforced, and no rule allows the daemon to read {}", names.join(" and ")),
        format!(
            "printf '{}' | sudo tee -a {} && sudo apparmor_parser -r {}",
            lines.concat(),
            local.display(),
            policy.join(daemon.file).display()
        ),
    ))
}

fn allows(rules: &str, folder: &Path) -> bool {
    rules.lines().map(str::trim).filter(|line| line.starts_with('/')).any(|line| {
        let Some((path, rights)) = line.split_once(char::is_whitespace) else { return false };
        let above = path.strip_suffix("/**").or_else(|| path.strip_suffix("/*"));
        let deep = path.ends_with("/**");
        let covered =
            above.is_some_and(|above| Path::new(above) == folder || (deep && folder.starts_with(above)));
        covered && rights.split(',').next().is_some_and(|rights| rights.contains('r'))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// From Debian's profile of dhcpd.
    const PROFILE: &str =
        "/usr/sbin/dhcpd {\n  /etc/dhcp/ r,\n  /etc/dhcp/** r,\n  /var/lib/dhcp/dhcpd{,6}.leases* lrw,\n}\n";

    #[test]
    fn what_is_enforced_and_not_allowed_is_named_with_the_line_that_allows_it() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, policy) = (dir.path().join("profiles"), dir.path().join("policy"));
        fs::create_dir_all(policy.join("local")).unwrap();
        let put =
            |path: &Path, text: &str| fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
        let folders = [PathBuf::from("/var/lib/ggnet-dhcp/dhcpd"), PathBuf::from("/etc/dhcp/ggnet")];
        let look = || look(&kernel, &policy, &DHCPD, &folders, Level::Warn);
        assert_eq!(look(), None, "no AppArmor");
        put(&policy.join(DHCPD.file), PROFILE);
        put(&kernel, "/usr/sbin/dhcpd (complain)\n/usr/sbin/dhcpd-other (enforce)\n");
        assert_eq!(look(), None, "it only complains");
        put(&kernel, "/usr/sbin/dhcpd (enforce)\n");
        let f = look().unwrap();
        assert_eq!(f.level, Level::Warn);
        assert!(f.why.ends_with("read /var/lib/ggnet-dhcp/dhcpd"), "{f}");
        assert!(f.mend.as_deref().unwrap().contains("/var/lib/ggnet-dhcp/dhcpd/** r,"), "{f}");
        put(&policy.join("local").join(DHCPD.file), "/var/lib/ggnet-dhcp/ r,\n/var/lib/ggnet-dhcp/** r,\n");
        assert_eq!(look().unwrap().level, Level::Ok);
        put(&policy.join("local").join(DHCPD.file), "/var/lib/ggnet-dhcp/** w,\n#/var/lib/** r,\n");
        assert_eq!(look().unwrap().level, Level::Warn, "written and not read");
    }
}
