//! [`BootTemplates`]: the scripts for machines, from templates that an operator may override file by file.
//!
//! Every interpolated value is escaped: [`escape::text`] is the autoescape function, `| word` rejects values that it would have to change,
//! and `| safe` is rejected. Templates are tested when they are loaded: each is rendered with samples, hostile ones included, and the
//! result must pass the [validator](crate::boot_text::ipxe::syntax), so that a bad override is rejected at start-up with its file and line,
//! before a machine gets it. Invariant: a `BootTemplates` contains only templates that passed.

use std::{fmt, io::Read, path::Path};

use serde::Serialize;
use tera::{Context, Kwargs, State, Tera, TeraResult};

use super::{
    escape,
    ipxe::syntax::{self, Diagnostic},
    san::SanUri,
    url::BootUrl,
};
use crate::{
    error::{Error, Result},
    nouns::{ChapPair, Iqn, MacAddr, Name},
};

/// The built-in templates are less than a hundredth of this size.
const LARGEST_TEMPLATE: u64 = 256 * 1024;

/// Longer text would fill the machine's screen, and iPXE cuts lines into words on its stack.
const LONGEST_REASON: usize = 300;

/// The scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// A machine that has a disk.
    Machine,
    /// The first stage, for machines whose MAC address is not in the URL yet.
    First,
    /// A machine that is not registered.
    Unknown,
    /// A registered machine that may not boot now.
    Declined,
    /// A machine's file in the TFTP folder, leading to the script over HTTP.
    Chain,
}

impl Template {
    /// Every template.
    pub const ALL: [Self; 5] = [Self::Machine, Self::First, Self::Unknown, Self::Declined, Self::Chain];

    /// The name of the file that overrides it.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Machine => "machine.ipxe.tera",
            Self::First => "first.ipxe.tera",
            Self::Unknown => "unknown.ipxe.tera",
            Self::Declined => "declined.ipxe.tera",
            Self::Chain => "chain.ipxe.tera",
        }
    }

    /// The built-in text, from which an override can start.
    #[must_use]
    pub const fn built_in(self) -> &'static str {
        match self {
            Self::Machine => include_str!("templates/machine.ipxe.tera"),
            Self::First => include_str!("templates/first.ipxe.tera"),
            Self::Unknown => include_str!("templates/unknown.ipxe.tera"),
            Self::Declined => include_str!("templates/declined.ipxe.tera"),
            Self::Chain => include_str!("templates/chain.ipxe.tera"),
        }
    }
}

/// A machine that has a disk.
#[derive(Clone, Debug, Serialize)]
pub struct MachineScript {
    /// Its name.
    pub machine: Name,
    /// The card that it asked with.
    pub mac: MacAddr,
    /// Its image's name.
    pub image: Name,
    /// The number of its image's version.
    pub version: u32,
    /// Where its disk is.
    pub san: SanUri,
    /// The initiator name that the target accepts.
    pub initiator: Iqn,
    /// The credentials that the target requires; exposed only in the script.
    #[serde(skip)]
    pub chap: Option<ChapPair>,
    /// Where a failure is reported, by GET with `?stage=attach|boot&errno=0x…` appended. Answer 200 with a short body.
    pub report_url: BootUrl,
}

/// The first stage.
#[derive(Clone, Debug, Serialize)]
pub struct FirstScript {
    /// The server's base URL as the machine reaches it; `/boot/<mac-with-dashes>.ipxe` is appended.
    pub server_url: BootUrl,
}

/// A machine that is not registered.
#[derive(Clone, Debug, Serialize)]
pub struct UnknownScript {
    /// The card that it asked with.
    pub mac: MacAddr,
    /// The server's base URL, to show.
    pub server_url: BootUrl,
}

/// A registered machine that may not boot now.
#[derive(Clone, Debug, Serialize)]
pub struct DeclinedScript {
    /// Its name.
    pub machine: Name,
    /// The card that it asked with.
    pub mac: MacAddr,
    /// Why, as text for people; cut after 300 characters.
    pub reason: String,
}

/// A machine's file in the TFTP folder.
#[derive(Clone, Debug, Serialize)]
pub struct ChainScript {
    /// Its name.
    pub machine: Name,
    /// Its script's URL.
    pub script_url: BootUrl,
}

/// How long a machine retries and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// How often an attach or a download is tried; at least 1.
    pub attempts: u32,
    /// Seconds between two attempts.
    pub retry_seconds: u32,
    /// Seconds that a message stays on the screen before the next boot device is tried.
    pub wait_seconds: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { attempts: 3, retry_seconds: 2, wait_seconds: 10 }
    }
}

/// The templates, loaded and tested.
pub struct BootTemplates {
    tera: Tera,
    timing: Timing,
    product: String,
}

impl fmt::Debug for BootTemplates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootTemplates").field("timing", &self.timing).finish_non_exhaustive()
    }
}

impl BootTemplates {
    /// The built-in templates, each replaced by the file of its name in `override_dir` if there is one.
    ///
    /// Reads a few small files and renders a few pages: for start-up, not for a request. Errors: `Invalid` (field `template`) with the file
    /// and line for a template that does not parse, uses a variable that does not exist, interpolates a value that it must not, or renders
    /// to a script that the validator rejects; also for a `.tera` file that does not override any template. `NotFound`, `Permission` for
    /// the folder.
    pub fn load(override_dir: Option<&Path>) -> Result<Self> {
        let mut sources: Vec<(Template, String, String)> = Template::ALL
            .into_iter()
            .map(|t| (t, format!("built-in {}", t.file_name()), t.built_in().to_owned()))
            .collect();
        if let Some(dir) = override_dir {
            refuse_strangers(dir)?;
            for (template, origin, source) in &mut sources {
                let path = dir.join(template.file_name());
                if let Some(text) = read_override(&path)? {
                    (*origin, *source) = (path.display().to_string(), text);
                }
            }
        }
        Self::build(&sources)
    }

    /// The same, with other times than the default.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = Timing { attempts: timing.attempts.max(1), ..timing };
        self
    }

    /// The script of a machine that has a disk. It contains the CHAP secret: send it only to the machine.
    pub fn machine(&self, script: &MachineScript) -> Result<String> {
        self.render(Template::Machine, &self.machine_context(script)?)
    }

    /// The first-stage script.
    pub fn first(&self, script: &FirstScript) -> Result<String> {
        self.render(Template::First, &self.context(script)?)
    }

    /// The script of a machine that is not registered.
    pub fn unknown(&self, script: &UnknownScript) -> Result<String> {
        self.render(Template::Unknown, &self.context(script)?)
    }

    /// The script of a machine that may not boot now.
    pub fn declined(&self, script: &DeclinedScript) -> Result<String> {
        let reason = script.reason.chars().take(LONGEST_REASON).collect();
        self.render(Template::Declined, &self.context(&DeclinedScript { reason, ..script.clone() })?)
    }

    /// The machine's file in the TFTP folder.
    pub fn chain(&self, script: &ChainScript) -> Result<String> {
        self.render(Template::Chain, &self.context(script)?)
    }

    fn build(sources: &[(Template, String, String)]) -> Result<Self> {
        let product = format!("GGnet {}", env!("CARGO_PKG_VERSION"));
        let mut tera = engine();
        for (template, origin, source) in sources {
            tera.add_raw_template(name(*template), source).map_err(|e| tera_error(origin, &e))?;
        }
        let templates = Self { tera, timing: Timing::default(), product };
        for (template, origin, source) in sources {
            templates.prove(*template, origin, source)?;
        }
        Ok(templates)
    }

    fn context<T: Serialize>(&self, script: &T) -> Result<Context> {
        let broken = |e: tera::Error| {
            Error::internal("Could not serialise the values of a boot script").with_source(e)
        };
        let mut context = Context::from_serialize(script).map_err(broken)?;
        context.insert("product", &self.product);
        context.insert("attempts", &self.timing.attempts);
        context.insert("retry_seconds", &self.timing.retry_seconds);
        context.insert("wait_seconds", &self.timing.wait_seconds);
        Ok(context)
    }

    fn machine_context(&self, script: &MachineScript) -> Result<Context> {
        let mut context = self.context(script)?;
        if let Some(chap) = &script.chap {
            context.insert("chap_user", &chap.user);
            context.insert("chap_password", chap.secret.expose());
        }
        Ok(context)
    }

    fn render(&self, template: Template, context: &Context) -> Result<String> {
        self.tera.render(name(template), context).map_err(|e| tera_error(template.file_name(), &e))
    }

    /// Renders the template with samples and checks the results.
    fn prove(&self, template: Template, origin: &str, source: &str) -> Result<()> {
        let samples = self.samples(template)?;
        let used = self.tera.get_template_variables(name(template)).map_err(|e| tera_error(origin, &e))?;
        let known = |v: &str| v == "__tera_context" || samples.iter().any(|c| c.contains_key(v));
        if let Some(unknown) = used.into_iter().filter(|v| !known(v)).min() {
            let line = source.lines().position(|l| mentions(l, unknown)).map_or(1, |i| i + 1);
            return Err(refused(origin, line, format!("there is no variable `{unknown}` here")));
        }
        for context in &samples {
            let rendered = self.tera.render(name(template), context).map_err(|e| tera_error(origin, &e))?;
            if let Some(error) = syntax::check(&rendered).errors().next() {
                return Err(self.script_error(template, origin, source, context, &rendered, error));
            }
        }
        Ok(())
    }

    /// Finds the template's line for a line of its output.
    fn script_error(
        &self,
        template: Template,
        origin: &str,
        source: &str,
        context: &Context,
        rendered: &str,
        error: &Diagnostic,
    ) -> Error {
        let bad = rendered.lines().nth(error.line.saturating_sub(1)).unwrap_or_default();
        let mut probe = engine();
        let line = probe
            .add_raw_template(name(template), &mark_lines(source))
            .and_then(|()| probe.render(name(template), context))
            .ok()
            .and_then(|marked| {
                let before = rendered.lines().take(error.line).filter(|l| *l == bad).count().max(1);
                marked.lines().filter_map(unmark).filter(|(_, text)| text == bad).nth(before - 1).map(|m| m.0)
            });
        match line {
            Some(line) => refused(origin, line, format!("{} (in the script: {bad:?})", error.message)),
            // A tag over several lines hides the place; the script's own line is the next best.
            None => refused(
                origin,
                error.line,
                format!("{} (in the script, line {}: {bad:?})", error.message, error.line),
            ),
        }
    }

    /// Representative values: each optional value present and absent, and text that tries to break out.
    fn samples(&self, template: Template) -> Result<Vec<Context>> {
        let machine: Name = "pc-17".parse()?;
        let mac: MacAddr = "52:54:00:12:34:56".parse()?;
        let server_url: BootUrl = "http://192.0.2.1:8080".parse()?;
        match template {
            Template::Machine => {
                let script = MachineScript {
                    machine,
                    mac,
                    image: "debian".parse()?,
                    version: 7,
                    san: "iscsi:192.0.2.1::3260:0:iqn.2026-11.local.ggnet:0123abcd.pc-17.1".parse()?,
                    initiator: "iqn.2026-11.local.ggnet:525400123456".parse()?,
                    chap: Some(ChapPair::random("pc-17.1")?),
                    report_url: server_url.join("boot/report/52-54-00-12-34-56")?,
                };
                let open = MachineScript { chap: None, ..script.clone() };
                Ok(vec![self.machine_context(&script)?, self.machine_context(&open)?])
            }
            Template::First => Ok(vec![self.context(&FirstScript { server_url })?]),
            Template::Unknown => Ok(vec![self.context(&UnknownScript { mac, server_url })?]),
            Template::Declined => {
                ["Under repair", "x\nshell || y ${password} \\", "", "&& reboot ; # \u{e4}"]
                    .into_iter()
                    .map(|reason| {
                        let script =
                            DeclinedScript { machine: machine.clone(), mac, reason: reason.to_owned() };
                        self.context(&script)
                    })
                    .collect()
            }
            Template::Chain => {
                let script_url = server_url.join("boot/52-54-00-12-34-56.ipxe")?;
                Ok(vec![self.context(&ChainScript { machine, script_url })?])
            }
        }
    }
}

/// Tera's name for it; the extension enables escaping.
fn name(template: Template) -> &'static str {
    template.file_name().trim_end_matches(".tera")
}

fn engine() -> Tera {
    let mut tera = Tera::default();
    tera.autoescape_on([".ipxe"]);
    tera.set_escape_fn(|value, out| out.write_all(escape::text(value).as_bytes()));
    tera.register_filter("word", |value: &str, _: Kwargs, _: &State<'_>| -> TeraResult<String> {
        escape::word("value", value).map(str::to_owned).map_err(|e| tera::Error::message(e.message()))
    });
    tera.register_filter("safe", |_: &str, _: Kwargs, _: &State<'_>| -> TeraResult<String> {
        Err(tera::Error::message("`safe` would switch escaping off; a boot script may not use it"))
    });
    tera
}

fn refused(origin: &str, line: usize, why: impl fmt::Display) -> Error {
    Error::invalid("template", format!("{origin}, line {line}: {why}"))
}

fn tera_error(origin: &str, error: &tera::Error) -> Error {
    match error.kind() {
        tera::ErrorKind::SyntaxError(report) | tera::ErrorKind::RenderingError(report) => {
            refused(origin, report.span().start_line, report.message())
        }
        other => {
            // Some of Tera's errors contain their position only in the text: "error: why\n --> name:line:column\n…".
            let text = other.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let place = text.lines().find_map(|l| l.trim_start().strip_prefix("--> "));
            match place.and_then(|p| p.rsplit(':').nth(1)).and_then(|line| line.parse().ok()) {
                Some(line) => refused(origin, line, why),
                None => Error::invalid("template", format!("{origin}: {why}")),
            }
        }
    }
}

/// Rejects a file that does not override any template: it is a mistake that would otherwise stay unnoticed.
fn refuse_strangers(dir: &Path) -> Result<()> {
    let doing = || format!("Reading the templates folder {}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(doing(), e))? {
        let file = entry.map_err(|e| Error::io(doing(), e))?.file_name();
        let file = file.to_string_lossy();
        if file.ends_with(".tera") && !Template::ALL.iter().any(|t| t.file_name() == file) {
            let names = Template::ALL.map(Template::file_name).join(", ");
            return Err(Error::invalid(
                "template",
                format!(
                    "{} does not override any template; the templates are {names}",
                    dir.join(&*file).display()
                ),
            ));
        }
    }
    Ok(())
}

fn read_override(path: &Path) -> Result<Option<String>> {
    let doing = || format!("Reading the template {}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(doing(), e)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_TEMPLATE + 1).read_to_end(&mut bytes).map_err(|e| Error::io(doing(), e))?;
    if bytes.len() as u64 > LARGEST_TEMPLATE {
        return Err(Error::invalid(
            "template",
            format!("{} is larger than {LARGEST_TEMPLATE} bytes", path.display()),
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let line =
                e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            Err(refused(&path.display().to_string(), line, "it is not UTF-8").with_source(e))
        }
    }
}

/// Whether the line has the variable as a word of its own.
fn mentions(line: &str, variable: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == variable)
}

/// A character of a private use area: no template contains it, and Tera does not change it.
const MARK: char = '\u{f8f0}';

/// Writes each line's number in front of it, except inside a tag, so that the output shows from which line it came.
fn mark_lines(source: &str) -> String {
    let mut out = String::with_capacity(source.len() * 2);
    let mut close: Option<&str> = None;
    for (i, line) in source.lines().enumerate() {
        if close.is_none() {
            out.push_str(&format!("{MARK}{}{MARK}", i + 1));
        }
        let mut rest = line;
        loop {
            let found = match close {
                Some(end) => rest.find(end).map(|at| (at, None)),
                None => [("{{", "}}"), ("{%", "%}"), ("{#", "#}")]
                    .into_iter()
                    .filter_map(|(open, end)| rest.find(open).map(|at| (at, Some(end))))
                    .min_by_key(|(at, _)| *at),
            };
            let Some((at, next)) = found else { break };
            rest = &rest[at + 2..];
            close = next;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The line's number in the template and its text without marks.
fn unmark(line: &str) -> Option<(usize, String)> {
    let mut parts = line.split(MARK);
    let mut text = parts.next()?.to_owned();
    let mut number = None;
    while let (Some(n), Some(t)) = (parts.next(), parts.next()) {
        number = n.parse().ok();
        text.push_str(t);
    }
    Some((number?, text))
}

#[cfg(test)]
#[path = "templates_tests.rs"]
mod tests;
