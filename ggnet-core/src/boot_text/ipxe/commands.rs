//! iPXE's commands: their options, how many arguments they take, how they can end, and which builds have them.
//!
//! Written from iPXE's documentation (ipxe.org/cmd) and checked against what the Debian package of 2019 understands.

/// Which iPXE has a command or an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Debian's package of 2019 and everything newer.
    Common,
    /// Only builds in which it was enabled; Debian's package of 2019 does not have it.
    Optional,
    /// Only versions newer than Debian's package of 2019.
    Newer,
}

/// How a command can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It always succeeds.
    Well,
    /// It succeeds or fails, and the line goes on.
    WellOrBadly,
    /// The script goes on elsewhere.
    Jump,
    /// The script ends.
    Script,
    /// The script ends, unless the command fails.
    ScriptOrBadly,
}

/// What an option's argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// No argument.
    Nothing,
    /// Any text.
    Text,
    /// A number, decimal or with `0x`.
    Number,
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its long name, without the dashes.
    pub long: &'static str,
    /// Its letter.
    pub short: char,
    /// Its argument.
    pub takes: Takes,
    /// Which builds have it.
    pub build: Build,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct CommandSpec {
    /// Its name.
    pub name: &'static str,
    /// Its options; every command has `--help` as well.
    pub options: &'static [OptionSpec],
    /// The fewest arguments.
    pub min: usize,
    /// The most arguments.
    pub max: usize,
    /// How it can end.
    pub ends: Ends,
    /// Which builds have it.
    pub build: Build,
}

const MANY: usize = usize::MAX;

const fn opt(long: &'static str, short: char, takes: Takes) -> OptionSpec {
    OptionSpec { long, short, takes, build: Build::Common }
}

const fn newer(long: &'static str, short: char, takes: Takes) -> OptionSpec {
    OptionSpec { long, short, takes, build: Build::Newer }
}

const fn cmd(
    name: &'static str,
    options: &'static [OptionSpec],
    (min, max): (usize, usize),
    ends: Ends,
) -> CommandSpec {
    CommandSpec { name, options, min, max, ends, build: Build::Common }
}

const fn optional(mut c: CommandSpec) -> CommandSpec {
    c.build = Build::Optional;
    c
}

const fn recent(mut c: CommandSpec) -> CommandSpec {
    c.build = Build::Newer;
    c
}

use Ends::{Jump, Script, ScriptOrBadly, Well, WellOrBadly};
use Takes::{Nothing, Number, Text};

const NAME: OptionSpec = opt("name", 'n', Text);
const TIMEOUT: OptionSpec = opt("timeout", 't', Number);
const AUTOFREE: OptionSpec = opt("autofree", 'a', Nothing);
const IMAGE: &[OptionSpec] = &[NAME, TIMEOUT, AUTOFREE];
const EXEC: &[OptionSpec] = &[NAME, TIMEOUT, AUTOFREE, opt("replace", 'r', Nothing)];
const IFCONF: &[OptionSpec] = &[opt("configurator", 'c', Text), newer("timeout", 't', Number)];
const DRIVE: OptionSpec = opt("drive", 'd', Number);
const NO_DESCRIBE: OptionSpec = opt("no-describe", 'n', Nothing);
const CERT: &[OptionSpec] = &[opt("subject", 's', Text), opt("keep", 'k', Nothing)];
const MENU: OptionSpec = opt("menu", 'm', Text);
const DIGEST: &[OptionSpec] = &[newer("set", 's', Text)];

/// Every command, in groups.
pub const COMMANDS: &[CommandSpec] = &[
    // Scripts.
    cmd("echo", &[opt("n", 'n', Nothing)], (0, MANY), Well),
    cmd("exit", &[], (0, 1), Script),
    cmd("goto", &[], (1, 1), Jump),
    cmd("help", &[], (0, MANY), Well),
    cmd("iseq", &[], (2, 2), WellOrBadly),
    cmd("isset", &[], (1, 1), WellOrBadly),
    cmd("prompt", &[opt("key", 'k', Text), TIMEOUT], (0, MANY), WellOrBadly),
    cmd("shell", &[], (0, 0), Well),
    cmd("sleep", &[], (1, 1), WellOrBadly),
    cmd("sync", &[TIMEOUT], (0, 0), WellOrBadly),
    // Settings.
    cmd("clear", &[], (1, 1), Well),
    cmd("config", &[], (0, 1), Well),
    cmd("inc", &[], (1, 2), Well),
    cmd("login", &[], (0, 0), WellOrBadly),
    cmd("read", &[], (1, 1), WellOrBadly),
    cmd("set", &[], (1, MANY), Well),
    cmd("show", &[], (1, 1), WellOrBadly),
    // Network.
    cmd("autoboot", &[], (0, MANY), WellOrBadly),
    cmd("dhcp", IFCONF, (0, MANY), WellOrBadly),
    cmd("ibstat", &[], (0, 0), Well),
    cmd("ifclose", &[], (0, MANY), WellOrBadly),
    cmd("ifconf", IFCONF, (0, MANY), WellOrBadly),
    cmd("ifopen", &[], (0, MANY), WellOrBadly),
    cmd("ifstat", &[], (0, MANY), WellOrBadly),
    cmd("iwlist", &[], (0, MANY), WellOrBadly),
    cmd("iwstat", &[], (0, MANY), WellOrBadly),
    cmd("pxebs", &[], (2, 2), WellOrBadly),
    cmd("route", &[], (0, 0), Well),
    // Images.
    cmd("boot", EXEC, (0, MANY), WellOrBadly),
    cmd("chain", EXEC, (0, MANY), WellOrBadly),
    cmd("imgargs", IMAGE, (1, MANY), WellOrBadly),
    cmd("imgexec", EXEC, (0, MANY), WellOrBadly),
    cmd("imgfetch", IMAGE, (1, MANY), WellOrBadly),
    cmd("imgfree", &[], (0, MANY), WellOrBadly),
    cmd("imgload", IMAGE, (1, MANY), WellOrBadly),
    cmd("imgselect", IMAGE, (1, MANY), WellOrBadly),
    cmd("imgstat", &[], (0, MANY), WellOrBadly),
    cmd("initrd", IMAGE, (1, MANY), WellOrBadly),
    cmd("kernel", IMAGE, (1, MANY), WellOrBadly),
    cmd("module", IMAGE, (1, MANY), WellOrBadly),
    // SAN.
    cmd(
        "sanboot",
        &[
            DRIVE,
            NO_DESCRIBE,
            opt("keep", 'k', Nothing),
            opt("filename", 'f', Text),
            newer("extra", 'e', Text),
            newer("label", 'l', Text),
            newer("uuid", 'u', Text),
        ],
        (0, MANY),
        WellOrBadly,
    ),
    cmd("sanhook", &[DRIVE, NO_DESCRIBE], (1, MANY), WellOrBadly),
    cmd("sanunhook", &[DRIVE], (0, 0), WellOrBadly),
    // Menus.
    cmd(
        "choose",
        &[
            MENU,
            opt("default", 'd', Text),
            TIMEOUT,
            opt("keep", 'k', Nothing),
            newer("retimeout", 'r', Number),
        ],
        (1, 1),
        WellOrBadly,
    ),
    cmd(
        "item",
        &[MENU, opt("key", 'k', Text), opt("default", 'd', Nothing), opt("gap", 'g', Nothing)],
        (0, MANY),
        WellOrBadly,
    ),
    cmd("menu", &[NAME, opt("delete", 'd', Nothing)], (0, MANY), Well),
    // Machine.
    cmd(
        "cpuid",
        &[opt("ext", 'e', Nothing), opt("amd", 'a', Nothing), opt("ecx", 'c', Nothing)],
        (1, 1),
        WellOrBadly,
    ),
    cmd("reboot", &[opt("warm", 'w', Nothing), newer("setup", 's', Nothing)], (0, 0), Script),
    // Not in every build.
    optional(cmd("certfree", CERT, (0, 0), WellOrBadly)),
    optional(cmd("certstat", CERT, (0, 0), WellOrBadly)),
    optional(cmd("certstore", CERT, (0, 1), WellOrBadly)),
    optional(cmd("colour", &[opt("basic", 'b', Number), opt("rgb", 'r', Number)], (1, 1), WellOrBadly)),
    optional(cmd(
        "console",
        &[
            opt("x", 'x', Number),
            opt("y", 'y', Number),
            opt("left", 'l', Number),
            opt("right", 'r', Number),
            opt("top", 't', Number),
            opt("bottom", 'b', Number),
            opt("depth", 'd', Number),
            opt("picture", 'p', Text),
            opt("keep", 'k', Nothing),
        ],
        (0, 0),
        WellOrBadly,
    )),
    optional(cmd(
        "cpair",
        &[opt("foreground", 'f', Number), opt("background", 'b', Number)],
        (1, 1),
        WellOrBadly,
    )),
    optional(cmd("fcels", &[opt("port", 'p', Text), opt("id", 'i', Text)], (1, 1), WellOrBadly)),
    optional(cmd("fcstat", &[], (0, 0), Well)),
    optional(cmd("gdbstub", &[], (1, MANY), WellOrBadly)),
    optional(cmd(
        "imgtrust",
        &[opt("allow", 'a', Nothing), opt("permanent", 'p', Nothing)],
        (0, 0),
        WellOrBadly,
    )),
    optional(cmd(
        "imgverify",
        &[opt("signer", 's', Text), opt("keep", 'k', Nothing), TIMEOUT],
        (2, 2),
        WellOrBadly,
    )),
    optional(cmd("ipstat", &[], (0, 0), Well)),
    optional(cmd("lotest", &[opt("mtu", 'm', Number), opt("broadcast", 'b', Nothing)], (2, 2), WellOrBadly)),
    optional(cmd("md5sum", DIGEST, (1, MANY), WellOrBadly)),
    optional(cmd("nslookup", &[], (2, 2), WellOrBadly)),
    optional(cmd("nstat", &[], (0, 0), Well)),
    optional(cmd("ntp", &[], (1, 1), WellOrBadly)),
    optional(cmd(
        "param",
        &[opt("params", 'p', Text), newer("header", 'H', Nothing)],
        (1, MANY),
        WellOrBadly,
    )),
    optional(cmd(
        "params",
        &[NAME, opt("delete", 'd', Nothing), newer("method", 'm', Text)],
        (0, 0),
        WellOrBadly,
    )),
    optional(cmd("pciscan", &[], (1, 1), WellOrBadly)),
    optional(cmd(
        "ping",
        &[opt("size", 's', Number), TIMEOUT, opt("count", 'c', Number), opt("quiet", 'q', Nothing)],
        (1, 1),
        WellOrBadly,
    )),
    optional(cmd("poweroff", &[], (0, 0), ScriptOrBadly)),
    optional(cmd("profstat", &[], (0, 0), Well)),
    optional(cmd("sha1sum", DIGEST, (1, MANY), WellOrBadly)),
    optional(cmd("startpxe", &[], (0, MANY), WellOrBadly)),
    optional(cmd("stoppxe", &[], (0, 0), WellOrBadly)),
    optional(cmd("time", &[], (1, MANY), WellOrBadly)),
    optional(cmd("vcreate", &[opt("tag", 't', Number), opt("priority", 'p', Number)], (1, 1), WellOrBadly)),
    optional(cmd("vdestroy", &[], (1, 1), WellOrBadly)),
    // Not in every version.
    recent(cmd("fdt", IMAGE, (0, MANY), WellOrBadly)),
    recent(cmd("form", &[NAME, opt("delete", 'd', Nothing)], (0, MANY), WellOrBadly)),
    recent(cmd("iflinkwait", &[TIMEOUT], (0, MANY), WellOrBadly)),
    recent(cmd("imgdecrypt", &[opt("envelope", 'e', Text), TIMEOUT, NAME], (1, 2), WellOrBadly)),
    recent(cmd(
        "imgextract",
        &[NAME, TIMEOUT, opt("keep", 'k', Nothing), opt("autofree", 'a', Nothing)],
        (1, MANY),
        WellOrBadly,
    )),
    recent(cmd("imgmem", &[NAME], (2, 2), WellOrBadly)),
    recent(cmd("imgset", &[], (1, MANY), WellOrBadly)),
    recent(cmd("md4sum", DIGEST, (1, MANY), WellOrBadly)),
    recent(cmd("present", &[opt("form", 'f', Text), opt("keep", 'k', Nothing)], (0, 0), WellOrBadly)),
    recent(cmd("sha224sum", DIGEST, (1, MANY), WellOrBadly)),
    recent(cmd("sha256sum", DIGEST, (1, MANY), WellOrBadly)),
    recent(cmd("sha384sum", DIGEST, (1, MANY), WellOrBadly)),
    recent(cmd("sha512sum", DIGEST, (1, MANY), WellOrBadly)),
    recent(cmd("shim", &[TIMEOUT], (0, MANY), WellOrBadly)),
    recent(cmd("usbscan", &[], (1, 1), WellOrBadly)),
];

/// The command of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|c| c.name == name)
}

/// An option as it was found on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its long name.
    pub name: &'static str,
    /// Its argument.
    pub value: Option<String>,
    /// Which builds have it.
    pub build: Build,
}

/// A command's words sorted into options and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The options, in order.
    pub options: Vec<Given>,
    /// The arguments.
    pub arguments: Vec<String>,
}

impl Parsed {
    /// Whether the option is there.
    #[must_use]
    pub fn has(&self, long: &str) -> bool {
        self.options.iter().any(|o| o.name == long)
    }

    /// The option's argument.
    #[must_use]
    pub fn value(&self, long: &str) -> Option<&str> {
        self.options.iter().rev().find(|o| o.name == long)?.value.as_deref()
    }
}

/// Sorts the words after the command's name as iPXE does: options first, up to the first word without a dash or after `--`.
///
/// Errors: what iPXE would reject, as text.
pub fn parse(spec: &'static CommandSpec, words: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next_if(|w| w.starts_with('-')) {
        if word == "--" {
            break;
        }
        let (found, inline) = if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            (vec![spec.options.iter().find(|o| o.long == name)], value)
        } else {
            short_options(spec, &word[1..])
        };
        for (i, option) in found.iter().enumerate() {
            let Some(option) = option else {
                if word == "--help" || word == "-h" {
                    return Err(format!("{word} makes `{}` print its usage and fail", spec.name));
                }
                return Err(format!("`{}` has no option {word}", spec.name));
            };
            let last = i + 1 == found.len();
            let value = match option.takes {
                Takes::Nothing if last && inline.is_some() => {
                    return Err(format!("option --{} of `{}` takes no argument", option.long, spec.name));
                }
                Takes::Nothing => None,
                Takes::Text | Takes::Number => {
                    let value = inline.clone().or_else(|| words.next_if(|w| !w.starts_with('-')).cloned());
                    Some(value.ok_or_else(|| {
                        format!("option --{} of `{}` needs an argument", option.long, spec.name)
                    })?)
                }
            };
            if let (Takes::Number, Some(value)) = (option.takes, &value)
                && !is_number(value)
            {
                return Err(format!(
                    "option --{} of `{}`: {value:?} is not a number",
                    option.long, spec.name
                ));
            }
            parsed.options.push(Given { name: option.long, value, build: option.build });
        }
    }
    parsed.arguments.extend(words.cloned());
    let n = parsed.arguments.len();
    if n < spec.min || n > spec.max {
        let want = match (spec.min, spec.max) {
            (min, MANY) => format!("at least {min}"),
            (min, max) if min == max => format!("{min}"),
            (min, max) => format!("{min} to {max}"),
        };
        return Err(format!("`{}` takes {want} argument(s), not {n}", spec.name));
    }
    Ok(parsed)
}

/// `-xVALUE` or a group such as `-ar`; an unknown letter ends it.
fn short_options(
    spec: &'static CommandSpec,
    letters: &str,
) -> (Vec<Option<&'static OptionSpec>>, Option<String>) {
    let mut found = Vec::new();
    for (i, c) in letters.char_indices() {
        let option = spec.options.iter().find(|o| o.short == c);
        found.push(option);
        match option {
            None => break,
            Some(o) if o.takes != Takes::Nothing => {
                let rest = &letters[i + c.len_utf8()..];
                return (found, (!rest.is_empty()).then(|| rest.to_owned()));
            }
            Some(_) => {}
        }
    }
    if found.is_empty() {
        found.push(None);
    }
    (found, None)
}

/// Whether iPXE reads it as a number; a setting may hold one.
#[must_use]
pub fn is_number(text: &str) -> bool {
    if text.contains("${") {
        return true;
    }
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (1..=8).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => text.parse::<u32>().is_ok() && !text.starts_with('+'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(find(&words[0]).unwrap(), &words[1..])
    }

    #[test]
    fn options_are_read_as_ipxe_reads_them() {
        let p = parsed("chain --autofree --timeout 5000 -r http://h/x a=b -z").unwrap();
        assert!(p.has("autofree") && p.has("replace"));
        assert_eq!(p.value("timeout"), Some("5000"));
        assert_eq!(p.arguments, ["http://h/x", "a=b", "-z"]);
        assert_eq!(parsed("imgfetch -nreport -at0x10 http://h/x").unwrap().value("name"), Some("report"));
        assert_eq!(parsed("item --gap -- -- text").unwrap().arguments, ["--", "text"]);
        assert_eq!(parsed("chain --timeout=${t} x").unwrap().value("timeout"), Some("${t}"));
        for (bad, why) in [
            ("chain --autofre x", "no option"),
            ("chain --auto x", "no option"),
            ("chain --autofree=1 x", "takes no argument"),
            ("chain --timeout --replace x", "needs an argument"),
            ("chain --timeout soon x", "not a number"),
            ("imgfetch", "at least 1"),
            ("goto a b", "takes 1 argument"),
            ("dhcp - net0", "no option"),
            ("sanhook -q x", "no option"),
            ("exit 1 2", "0 to 1"),
            ("echo --help", "usage"),
        ] {
            let e = parsed(bad).unwrap_err();
            assert!(e.contains(why), "{bad}: {e}");
        }
    }

    #[test]
    fn names_and_letters_are_unique() {
        for (i, c) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[i + 1..].iter().all(|d| d.name != c.name), "{}", c.name);
            for (j, o) in c.options.iter().enumerate() {
                let clash = |p: &OptionSpec| p.long == o.long || p.short == o.short;
                assert!(!c.options[j + 1..].iter().any(clash), "{} --{}", c.name, o.long);
            }
        }
    }
}
