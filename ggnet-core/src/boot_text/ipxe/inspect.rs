//! [`inspect()`]: what a script does, determined by running it on the [model] in four situations.
//!
//! 1. everything works; 2. the disk cannot be attached; 3. the disk is attached but does not boot; 4. no network at all.
//!
//! The lists contain what appeared in any of them, in the order of first appearance. The summary never holds the password.

use serde::{Deserialize, Serialize};

use super::{
    model::{self, Ending, Step, Trace},
    syntax,
};
use crate::error::{Error, Result};

/// A SAN device that a script attaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SanAttach {
    /// Its URI.
    pub uri: String,
    /// How often it is tried before the script gives up.
    pub attempts: u32,
}

/// How a script ends in each situation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endings {
    /// Everything works.
    pub all_works: Ending,
    /// No SAN device can be attached.
    pub attach_fails: Ending,
    /// A SAN device is attached but does not boot.
    pub boot_fails: Ending,
    /// Nothing answers.
    pub no_network: Ending,
}

/// What a script does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptSummary {
    /// The initiator name that it sets.
    pub initiator: Option<String>,
    /// The CHAP user that it sets.
    pub username: Option<String>,
    /// Whether it sets a CHAP secret.
    pub has_password: bool,
    /// Whether it keeps the SAN device attached when a boot from it ends.
    pub keep_san: bool,
    /// The SAN devices that it attaches.
    pub san: Vec<SanAttach>,
    /// The scripts and programs that it loads and runs.
    pub chains: Vec<String>,
    /// The URLs that it fetches without running them: reports to the server, kernels, initial RAM disks.
    pub fetches: Vec<String>,
    /// What it shows; settings that only the machine knows stay as `${…}`.
    pub messages: Vec<String>,
    /// How it ends.
    pub endings: Endings,
}

/// Determines what a script does.
///
/// Errors: `Invalid`, with the line, for a script in which the validator finds an error.
pub fn inspect(script: &str) -> Result<ScriptSummary> {
    if let Some(error) = syntax::check(script).errors().next() {
        return Err(Error::invalid("script", format!("The script has an error: {error}")));
    }
    let run = |fails: &dyn Fn(&Step) -> bool, known: &[(&str, &str)]| {
        let settings = known.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        model::run(script, settings, &mut |step| !fails(step))
    };
    let attaches =
        |s: &Step| matches!(s.name.as_str(), "sanhook" | "sanboot") && !s.parsed.arguments.is_empty();
    let all = run(&|_| false, &[]);
    let attach = run(&attaches, &[]);
    let boot = run(&|s| s.name == "sanboot", &[]);
    let offline = run(
        &|s| {
            attaches(s)
                || matches!(
                    s.name.as_str(),
                    "dhcp" | "ifconf" | "chain" | "imgfetch" | "kernel" | "initrd" | "module" | "autoboot"
                )
        },
        &[("netX/ip", ""), ("ip", ""), ("net0/ip", "")],
    );
    let traces = [&all, &attach, &boot, &offline];
    // A script may clear its secrets when it fails: the values at the boot of the disk count.
    let get = |name: &str| all.settings.get(name).cloned();
    Ok(ScriptSummary {
        initiator: get("initiator-iqn"),
        username: get("username"),
        has_password: all.settings.contains_key("password"),
        keep_san: get("keep-san").is_some_and(|v| v != "0"),
        san: san(&attach),
        chains: collect(&traces, |s| {
            let runs = matches!(s.name.as_str(), "chain" | "imgexec" | "boot" | "kernel" | "imgselect");
            runs.then(|| s.parsed.arguments.first().cloned()).flatten()
        }),
        fetches: collect(&traces, |s| {
            let fetches = matches!(s.name.as_str(), "imgfetch" | "initrd" | "module");
            fetches.then(|| s.parsed.arguments.first().cloned()).flatten()
        }),
        messages: collect(&traces, |s| {
            let shows = matches!(s.name.as_str(), "echo" | "prompt") && !s.parsed.arguments.is_empty();
            shows.then(|| s.parsed.arguments.join(" "))
        }),
        endings: Endings {
            all_works: all.ending.clone(),
            attach_fails: attach.ending.clone(),
            boot_fails: boot.ending.clone(),
            no_network: offline.ending.clone(),
        },
    })
}

fn san(attach_fails: &Trace) -> Vec<SanAttach> {
    let mut found: Vec<SanAttach> = Vec::new();
    for step in attach_fails.steps.iter().filter(|s| matches!(s.name.as_str(), "sanhook" | "sanboot")) {
        for uri in &step.parsed.arguments {
            match found.iter_mut().find(|f| f.uri == *uri) {
                Some(f) => f.attempts = f.attempts.saturating_add(1),
                None => found.push(SanAttach { uri: uri.clone(), attempts: 1 }),
            }
        }
    }
    found
}

fn collect(traces: &[&Trace], pick: impl Fn(&Step) -> Option<String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for value in traces.iter().flat_map(|t| &t.steps).filter_map(pick) {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_written_script_is_told_back() {
        let script = "#!ipxe\ndhcp || goto no\nset initiator-iqn iqn.2024-01.lab.client:a\nset username u\nset password p123\n\
            set keep-san 1\nsanboot iscsi:10.77.0.1::3260:1:iqn.2024-01.lab.server:a || goto no\n\
            :no\necho failed: ${errno}\nimgfetch http://10.0.0.1/report?errno=${errno} ||\nsleep 5 ||\nexit 1\n";
        let s = inspect(script).unwrap();
        assert_eq!(s.initiator.as_deref(), Some("iqn.2024-01.lab.client:a"));
        assert_eq!((s.username.as_deref(), s.has_password, s.keep_san), (Some("u"), true, true));
        let uri = "iscsi:10.77.0.1::3260:1:iqn.2024-01.lab.server:a".to_owned();
        assert_eq!(s.san, [SanAttach { uri, attempts: 1 }]);
        assert_eq!(s.fetches, ["http://10.0.0.1/report?errno=${errno}"]);
        assert_eq!(s.messages, ["failed: ${errno}"]);
        assert_eq!(s.endings.all_works, Ending::Booted { command: "sanboot".to_owned() });
        assert_eq!(s.endings.attach_fails, Ending::Exit { status: 1 });
        assert_eq!(s.endings.no_network, Ending::Exit { status: 1 });
        assert!(!serde_json::to_string(&s).unwrap().contains("p123"));
    }

    #[test]
    fn a_script_with_an_error_is_refused_with_its_line() {
        let e = inspect("#!ipxe\necho a\nsanbot iscsi:x\n").unwrap_err();
        assert!(e.message().contains("line 3") && e.message().contains("sanbot"), "{e}");
    }

    #[test]
    fn a_dead_fallback_shows_in_the_ending() {
        let script = "#!ipxe\nsanboot iscsi:10.0.0.1::::iqn.2024-01.a:b\necho never\nreboot\n";
        let s = inspect(script).unwrap();
        assert_eq!(s.endings.attach_fails, Ending::CommandFailed { line: 2, command: "sanboot".to_owned() });
        assert!(s.messages.is_empty());
    }
}
