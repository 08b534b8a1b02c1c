//! The validator: finds what iPXE would fail on, with the line, before a machine runs the script.
//!
//! An *error* is a line that cannot work: an unknown command or option, a missing label, a SAN URI with the wrong fields. A *warning* is a
//! line that does not always work: a command that only some builds have, a command whose failure would end the script (iPXE stops at the
//! first line that fails, so a fallback after a bare `sanboot` is never reached), a line that can never be reached.

use std::{collections::HashMap, fmt};

use super::{
    commands::{self, Build, CommandSpec, Ends, Parsed},
    lines::{self, Command, Line, Next},
};
use crate::boot_text::san;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, but not always or not everywhere.
    Warning,
    /// It cannot work.
    Error,
}

/// A finding about one line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Diagnostic {
    /// The line, from 1.
    pub line: usize,
    /// How serious it is.
    pub severity: Severity,
    /// The finding, as text for people.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "line {}: {kind}: {}", self.line, self.message)
    }
}

/// The result of the validator.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Everything, by line.
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// Whether there is no error.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.errors().next().is_none()
    }

    /// The errors.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error)
    }

    /// The warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Warning)
    }

    fn error(&mut self, line: usize, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic { line, severity: Severity::Error, message: message.into() });
    }

    fn warn(&mut self, line: usize, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic { line, severity: Severity::Warning, message: message.into() });
    }
}

/// Checks a script.
#[must_use]
pub fn check(script: &str) -> Report {
    let mut report = Report::default();
    check_magic(script, &mut report);
    let lines = lines::read(script);
    let labels = check_labels(&lines, &mut report);
    let mut reachable = true;
    let mut reported_unreachable = false;
    for line in &lines {
        if line.label.is_some() {
            (reachable, reported_unreachable) = (true, false);
        }
        if !reachable && !reported_unreachable && !line.commands.is_empty() {
            report.warn(
                line.number,
                "this line is never reached: the line before it always jumps or ends, and no label is here",
            );
            reported_unreachable = true;
        }
        for command in &line.commands {
            check_command(line.number, command, &labels, &mut report);
        }
        let flow = Flow::of(&line.commands);
        if let Some(name) = &flow.fails {
            report.warn(
                line.number,
                format!(
                    "if `{name}` fails here, the script ends; write `{name} … ||` and what to do in that case"
                ),
            );
        }
        reachable = reachable && flow.goes_on;
    }
    report.diagnostics.sort_by_key(|d| d.line);
    report
}

/// iPXE recognises a script by its first bytes and treats everything else as another kind of file.
fn check_magic(script: &str, report: &mut Report) {
    let magic = script.strip_prefix("#!ipxe").or_else(|| script.strip_prefix("#!gpxe"));
    if !magic.is_some_and(|rest| rest.starts_with(lines::is_space)) {
        report.error(1, "the first line must be `#!ipxe`, or iPXE does not recognise the script");
    }
    if let Some(at) = script.bytes().position(|b| b == 0) {
        let line = script[..at].matches('\n').count() + 1;
        report.error(line, "the line contains a NUL byte; iPXE stops reading there");
    }
}

fn check_labels(lines: &[Line], report: &mut Report) -> HashMap<String, usize> {
    let mut labels = HashMap::new();
    for line in lines {
        let Some(label) = &line.label else { continue };
        if label.is_empty() {
            report.error(line.number, "a label has no name");
        } else if let Some(first) = labels.get(label) {
            report.error(
                line.number,
                format!("label {label:?} is defined twice; iPXE always uses the one in line {first}"),
            );
        } else {
            labels.insert(label.clone(), line.number);
        }
    }
    labels
}

fn check_command(line: usize, command: &Command, labels: &HashMap<String, usize>, report: &mut Report) {
    for word in &command.words {
        if unclosed_setting(word) {
            report.error(
                line,
                format!("{word:?} opens a setting with ${{ but does not close it in the same word"),
            );
        }
        if word.len() > 2 && (word.ends_with("||") || word.starts_with("||") || word.ends_with("&&")) {
            report.warn(line, format!("{word:?}: an operator must have a space on each side"));
        }
    }
    let Some(name) = command.words.first() else { return };
    if name.contains("${") {
        report.warn(line, format!("the command {name:?} is only known when the script runs"));
        return;
    }
    let Some(spec) = commands::find(name) else {
        report.error(line, format!("unknown command {name:?}"));
        return;
    };
    match spec.build {
        Build::Common => {}
        Build::Optional => {
            report.warn(line, format!("`{name}` is not in every build of iPXE (not in Debian's)"));
        }
        Build::Newer => {
            report.warn(line, format!("`{name}` needs a newer version of iPXE than Debian's"));
        }
    }
    match commands::parse(spec, &command.words[1..]) {
        Err(why) => report.error(line, why),
        Ok(parsed) => {
            for option in parsed.options.iter().filter(|o| o.build == Build::Newer) {
                let option = option.name;
                report.warn(
                    line,
                    format!("option --{option} of `{name}` needs a newer version of iPXE than Debian's"),
                );
            }
            check_arguments(line, spec, &parsed, labels, report);
        }
    }
}

fn check_arguments(
    line: usize,
    spec: &CommandSpec,
    parsed: &Parsed,
    labels: &HashMap<String, usize>,
    report: &mut Report,
) {
    let first = parsed.arguments.first().map(String::as_str);
    match (spec.name, first) {
        ("goto", Some(label)) if !label.contains("${") && !labels.contains_key(label) => {
            let hint = if label.starts_with(':') { " (write it without the colon)" } else { "" };
            report.error(line, format!("there is no label {label:?} to go to{hint}"));
        }
        ("exit" | "sleep", Some(n)) if !commands::is_number(n) => {
            report.error(line, format!("`{}` takes a number, not {n:?}", spec.name));
        }
        ("inc", _) if parsed.arguments.get(1).is_some_and(|n| !commands::is_number(n)) => {
            report.error(line, "`inc` takes a number as its second argument");
        }
        ("sanboot" | "sanhook", _) => {
            for uri in parsed.arguments.iter().filter(|u| u.starts_with("iscsi:")) {
                if let Err(e) = san::check_in_script(uri) {
                    report.error(line, e.message());
                }
            }
        }
        _ => {}
    }
}

fn unclosed_setting(word: &str) -> bool {
    let mut depth = 0_usize;
    let mut before = ' ';
    for c in word.chars() {
        match c {
            '{' if before == '$' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        before = c;
    }
    depth > 0
}

/// Where a line can lead.
struct Flow {
    /// It can continue with the next line.
    goes_on: bool,
    /// It can end the script, if this command fails.
    fails: Option<String>,
}

impl Flow {
    /// Follows the commands with both outcomes of each.
    fn of(commands: &[Command]) -> Self {
        let (mut well, mut badly): (bool, Option<String>) = (true, None);
        let mut when = Next::Always;
        for command in commands {
            let runs = match when {
                Next::OnSuccess => well,
                Next::OnFailure => badly.is_some(),
                Next::Always | Next::End => well || badly.is_some(),
            };
            if runs {
                let (can_succeed, can_fail) = outcomes(command);
                // A path that does not run this command keeps its outcome.
                let (kept_well, kept_badly) = match when {
                    Next::OnSuccess => (false, badly.take()),
                    Next::OnFailure => (well, None),
                    Next::Always | Next::End => (false, None),
                };
                well = kept_well || can_succeed;
                badly = kept_badly.or_else(|| can_fail.then(|| command.words.first().cloned()).flatten());
            }
            when = command.next;
        }
        Self { goes_on: well, fails: badly }
    }
}

/// Whether the line can continue after it, after success and after failure.
fn outcomes(command: &Command) -> (bool, bool) {
    let Some(spec) = command.words.first().and_then(|name| commands::find(name)) else {
        // The empty command succeeds; an unknown one is an error already.
        return (true, false);
    };
    let parsed = commands::parse(spec, &command.words[1..]).unwrap_or_default();
    match spec.ends {
        Ends::Well => (true, false),
        // A menu's items fail only without a menu, images only when a name is given.
        Ends::WellOrBadly if matches!(spec.name, "imgfree" | "imgstat" | "ifstat") => {
            (true, !parsed.arguments.is_empty())
        }
        Ends::WellOrBadly if spec.name == "item" => (true, false),
        Ends::WellOrBadly if parsed.has("replace") => (false, true),
        Ends::WellOrBadly => (true, true),
        Ends::Jump => (false, parsed.arguments.first().is_some_and(|l| l.contains("${"))),
        Ends::Script => (false, false),
        Ends::ScriptOrBadly => (false, true),
    }
}

#[cfg(test)]
#[path = "syntax_tests.rs"]
mod tests;
