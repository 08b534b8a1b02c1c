//! A model of iPXE's script interpreter: runs a script without a network, with the outcome of each command decided by the caller.
//!
//! The model does what iPXE decides alone (settings, labels, comparisons, `&&` and `||`), and asks the caller for outcomes that depend on
//! the outside (DHCP, downloads, SAN devices, keys). A setting that neither the script nor the caller has set stays as `${name}` in the
//! text, so that a trace shows what iPXE will insert there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    commands::{self, Parsed},
    lines::{self, Line, Next},
};

/// More steps than any boot needs; beyond it a script counts as an endless loop.
const STEP_LIMIT: usize = 20_000;

/// A value longer than this is cut: scripts can double a setting in every round.
const VALUE_LIMIT: usize = 4096;

/// A command that was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its line.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Its options and arguments, settings expanded.
    pub parsed: Parsed,
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ending {
    /// `exit`: returns to its caller, usually to continue with the next boot device.
    Exit {
        /// Its status.
        status: u32,
    },
    /// Something was started that does not return: a disk, a kernel, a loader.
    Booted {
        /// The command that did.
        command: String,
    },
    /// Another script took its place (`chain --replace`).
    Replaced {
        /// Where that came from.
        url: String,
    },
    /// `reboot`.
    Reboot,
    /// `poweroff`.
    PowerOff,
    /// The last line was reached.
    EndOfScript,
    /// A command failed, and its line did not handle the failure.
    CommandFailed {
        /// The line.
        line: usize,
        /// The command.
        command: String,
    },
    /// It never ended.
    Endless,
}

/// What a script did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The commands, in order.
    pub steps: Vec<Step>,
    /// How it ended.
    pub ending: Ending,
    /// The settings at the end.
    pub settings: BTreeMap<String, String>,
}

/// Runs a script. `world` says whether a command that depends on the world succeeds; it is asked once for each time it is run.
pub fn run(script: &str, settings: BTreeMap<String, String>, world: &mut dyn FnMut(&Step) -> bool) -> Trace {
    let lines = lines::read(script);
    let mut machine = Machine { settings, steps: Vec::new(), world };
    let ending = machine.run(&lines);
    Trace { steps: machine.steps, ending, settings: machine.settings }
}

/// What a command did to the flow.
enum Done {
    Well,
    Badly,
    Goto(String),
    Ended(Ending),
}

struct Machine<'a> {
    settings: BTreeMap<String, String>,
    steps: Vec<Step>,
    world: &'a mut dyn FnMut(&Step) -> bool,
}

impl Machine<'_> {
    fn run(&mut self, lines: &[Line]) -> Ending {
        let mut at = 0;
        // Labels without commands make rounds too, so the rounds are what is counted.
        for _ in 0..STEP_LIMIT {
            let Some(line) = lines.get(at) else { return Ending::EndOfScript };
            at += 1;
            match self.line(line) {
                Done::Well => {}
                Done::Badly => {
                    let command = self.steps.last().map(|s| s.name.clone()).unwrap_or_default();
                    return Ending::CommandFailed { line: line.number, command };
                }
                Done::Goto(label) => match lines.iter().position(|l| l.label.as_deref() == Some(&label)) {
                    Some(target) => at = target,
                    None => {
                        return Ending::CommandFailed { line: line.number, command: "goto".to_owned() };
                    }
                },
                Done::Ended(ending) => return ending,
            }
        }
        Ending::Endless
    }

    fn line(&mut self, line: &Line) -> Done {
        let mut ok = true;
        let mut when = Next::Always;
        for command in &line.commands {
            let runs = match when {
                Next::OnSuccess => ok,
                Next::OnFailure => !ok,
                Next::Always | Next::End => true,
            };
            if runs {
                match self.command(line.number, &command.words) {
                    Done::Well => ok = true,
                    Done::Badly => ok = false,
                    other => return other,
                }
            }
            when = command.next;
        }
        if ok { Done::Well } else { Done::Badly }
    }

    fn command(&mut self, line: usize, words: &[String]) -> Done {
        let words: Vec<String> = words.iter().map(|w| self.expand(w)).collect();
        let Some(name) = words.first() else { return Done::Well };
        let Some(spec) = commands::find(name) else {
            self.steps.push(Step { line, name: name.clone(), parsed: Parsed::default() });
            return Done::Badly;
        };
        let parsed = commands::parse(spec, &words[1..]);
        let good = parsed.is_ok();
        let step = Step { line, name: name.clone(), parsed: parsed.unwrap_or_default() };
        self.steps.push(step.clone());
        if good { self.execute(&step) } else { Done::Badly }
    }

    fn execute(&mut self, step: &Step) -> Done {
        let args = &step.parsed.arguments;
        let first = args.first().map(String::as_str).unwrap_or_default();
        let truth = |ok: bool| if ok { Done::Well } else { Done::Badly };
        match step.name.as_str() {
            "echo" | "config" | "help" | "shell" | "route" => Done::Well,
            "goto" => Done::Goto(first.to_owned()),
            "exit" => Done::Ended(Ending::Exit { status: number(first).unwrap_or(0) }),
            "isset" => truth(!first.is_empty()),
            "iseq" => truth(args.first() == args.get(1)),
            "set" => {
                let value = args[1..].join(" ");
                if value.is_empty() {
                    self.settings.remove(bare(first));
                } else {
                    self.settings.insert(bare(first).to_owned(), value);
                }
                Done::Well
            }
            "clear" => {
                self.settings.remove(bare(first));
                Done::Well
            }
            "inc" => {
                let by = args.get(1).and_then(|n| number(n)).unwrap_or(1);
                let now = self.settings.get(bare(first)).and_then(|n| number(n)).unwrap_or(0);
                self.settings.insert(bare(first).to_owned(), now.wrapping_add(by).to_string());
                Done::Well
            }
            "choose" => {
                let ok = (self.world)(step);
                if ok && let Some(choice) = step.parsed.value("default") {
                    self.settings.insert(bare(first).to_owned(), choice.to_owned());
                }
                truth(ok)
            }
            "reboot" => Done::Ended(Ending::Reboot),
            "poweroff" if (self.world)(step) => Done::Ended(Ending::PowerOff),
            "chain" | "imgexec" | "boot" if step.parsed.has("replace") && (self.world)(step) => {
                Done::Ended(Ending::Replaced { url: first.to_owned() })
            }
            "poweroff" => Done::Badly,
            "chain" | "imgexec" | "boot" if step.parsed.has("replace") => Done::Badly,
            "boot" | "sanboot" | "autoboot" if (self.world)(step) => {
                Done::Ended(Ending::Booted { command: step.name.clone() })
            }
            "boot" | "sanboot" | "autoboot" => Done::Badly,
            _ => truth((self.world)(step)),
        }
    }

    /// Expands innermost first, and expands the result again, as iPXE does; unknown settings stay.
    fn expand(&self, word: &str) -> String {
        let mut text = word.to_owned();
        let mut from = 0;
        while let Some(end) = text[from..].find('}').map(|i| i + from) {
            let Some(start) = text[..end].rfind("${") else {
                from = end + 1;
                continue;
            };
            match self.value(&text[start + 2..end]) {
                Some(value) if text.len() + value.len() < VALUE_LIMIT => {
                    text.replace_range(start..=end, &value);
                    // A setting that was unknown when the value was stored stays as it is; a setting that contains its own name would never
                    // end.
                    from = if value.contains("${") { start + value.len() } else { 0 };
                }
                _ => from = end + 1,
            }
        }
        text
    }

    /// The setting's value in the requested form; `None` if it is not set.
    fn value(&self, name: &str) -> Option<String> {
        let (setting, form) = name.split_once(':').unwrap_or((name, ""));
        let value = self.settings.get(setting)?;
        Some(match form {
            "hexhyp" => value.replace(':', "-"),
            "hexraw" => value.replace(':', ""),
            _ => value.clone(),
        })
    }
}

/// A setting's name without its type.
fn bare(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echoes(script: &str, fails: &[&str]) -> (Vec<String>, Ending) {
        let mut world = |s: &Step| !fails.contains(&s.name.as_str());
        let trace = run(script, BTreeMap::from([("ip".to_owned(), "10.0.0.9".to_owned())]), &mut world);
        let said =
            trace.steps.iter().filter(|s| s.name == "echo").map(|s| s.parsed.arguments.join(" ")).collect();
        (said, trace.ending)
    }

    #[test]
    fn operators_chain_from_left_to_right() {
        let script =
            "#!ipxe\ndhcp && echo a || echo b\ndhcp || echo c\necho d ; echo e\ndhcp && echo f\necho g\n";
        assert_eq!(echoes(script, &[]).0, ["a", "d", "e", "f", "g"]);
        let (said, ending) = echoes(script, &["dhcp"]);
        assert_eq!(said, ["b", "c", "d", "e"]);
        assert_eq!(ending, Ending::CommandFailed { line: 5, command: "dhcp".to_owned() });
    }

    #[test]
    fn loops_count_and_settings_expand_inside_settings() {
        let script = "#!ipxe\nset n:int32 0\nset a1 one\nset a2 two # ${a1}\n:again\ninc n\n\
                      echo ${a${n}} ${ip} ${netX/mac:hexhyp}\niseq ${n} 2 && exit 7 ||\ngoto again\n";
        let (said, ending) = echoes(script, &[]);
        assert_eq!(said, ["one 10.0.0.9 ${netX/mac:hexhyp}", "two 10.0.0.9 ${netX/mac:hexhyp}"]);
        assert_eq!(ending, Ending::Exit { status: 7 });
    }

    #[test]
    fn every_script_ends() {
        assert_eq!(echoes("#!ipxe\n:a\ngoto a\n", &[]).1, Ending::Endless);
        assert_eq!(echoes("#!ipxe\nset a x${a}${a}\n:b\nset a ${a}${a}y\ngoto b\n", &[]).1, Ending::Endless);
        assert_eq!(echoes("#!ipxe\nset a ${a}\necho ${a}\n", &[]).1, Ending::EndOfScript);
        let late = echoes("#!ipxe\nset e ${errno}\nset s attach\necho ${e}&${s}&${s}\n", &[]).0;
        assert_eq!(late, ["${errno}&attach&attach"]);
        assert_eq!(
            echoes("#!ipxe\nchain --replace http://h/x ||\n", &[]).1,
            Ending::Replaced { url: "http://h/x".into() }
        );
        assert_eq!(echoes("#!ipxe\nsanboot x ||\nreboot\n", &["sanboot"]).1, Ending::Reboot);
        assert_eq!(echoes("#!ipxe\nnonsense || exit 3\n", &[]).1, Ending::Exit { status: 3 });
        assert_eq!(echoes("#!ipxe\npoweroff || exit 3\n", &["poweroff"]).1, Ending::Exit { status: 3 });
    }
}
