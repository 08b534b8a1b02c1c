//! The command line: global options, one file per noun, and the words that teach it.
//!
//! What can be checked without the server is checked here, with the nouns' own parsers: a malformed MAC address never leaves this machine.

pub mod guest_kit;
pub mod image;
pub mod job;
pub mod machine;
pub mod session;
pub mod system;
pub mod target;
pub mod values;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    Args, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    failure::Failure,
    output::{self, Format},
};
use values::ServerUrl;

const AFTER: &str = "\
Examples:
  ggnet login --server http://10.0.0.1:8080       asks for the token that the server showed at its first start
  ggnet image import debian /srv/ggnet/import/debian.qcow2
  ggnet machine add pc-1 --mac 52:54:00:12:34:56 --image debian
  ggnet session watch pc-1                        its boot stages, as they happen
  ggnet machine list --output json | jq -r '.[].name'

Exit codes:
  0    done
  1    the server refused or failed (a conflict, something in use, an error of its own)
  2    wrong arguments or input
  3    not logged in, or forbidden
  4    there is no such thing
  5    the server cannot be reached
  6    timed out while waiting
  130  interrupted by Ctrl-C

Environment:
  GGNET_SERVER, GGNET_OUTPUT   as the options of that name
  GGNET_TOKEN                  the token, in place of the stored one; it is never an argument, for others can read those
  NO_COLOR                     no colours

Errors go to stderr; with `--output json` as one RFC 9457 problem document with the exit code in it.";

/// GGnet: one disk image boots a whole room of machines that have no disk.
///
/// `ggnet` talks to a ggnet-server. Log in once; then machines are registered, images imported, and sessions watched from here.
#[derive(Debug, Parser)]
#[command(name = "ggnet", version, after_help = AFTER, max_term_width = 110, arg_required_else_help = true)]
pub struct Options {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The server, for example http://10.0.0.1:8080; left out: the one logged in to.
    #[arg(long, env = "GGNET_SERVER", global = true, value_name = "URL", value_parser = values::server_url)]
    pub server: Option<ServerUrl>,
    /// The form of results and errors.
    #[arg(long, short, env = "GGNET_OUTPUT", global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Results and errors only: no notes, no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// No colours (as does NO_COLOR).
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store the server and its token for the commands that follow
    Login(system::Login),
    /// Forget the stored token
    Logout,
    /// The computers without a disk
    #[command(subcommand, visible_alias = "machines")]
    Machine(machine::Command),
    /// The disks that machines boot, and their versions
    #[command(subcommand, visible_alias = "images")]
    Image(image::Command),
    /// Machines at work: one machine using one image version
    #[command(subcommand, visible_alias = "sessions")]
    Session(session::Command),
    /// iSCSI targets: those of sessions, and ones made by hand
    #[command(subcommand, visible_alias = "targets")]
    Target(target::Command),
    /// Long works: imports that run, wait or have ended
    #[command(subcommand, visible_alias = "jobs")]
    Job(job::Command),
    /// What a Linux image needs to live on GGnet's disks
    #[command(subcommand)]
    GuestKit(guest_kit::Command),
    /// What happened, in order
    Events(system::Events),
    /// Who changed what
    Audit(system::Audit),
    /// What the server is, and whether machines can boot now
    Server(system::Server),
    /// Print a completion script for a shell
    Completion(system::Completion),
}

/// For what cannot be taken back.
#[derive(Clone, Copy, Debug, Args)]
pub struct Yes {
    /// Do not ask; needed where there is no terminal to ask on.
    #[arg(long, short)]
    pub yes: bool,
}

/// Reads the command line. Help, the version and wrong usage are printed here; the error is then the process's exit code.
pub fn parse(arguments: Vec<OsString>) -> Result<Options, ExitCode> {
    let no_color = arguments.iter().any(|a| a == "--no-color");
    let command = Options::command().color(if no_color { ColorChoice::Never } else { ColorChoice::Auto });
    let json = wants_json(&arguments, std::env::var_os("GGNET_OUTPUT"));
    let parsed = command.try_get_matches_from(arguments).and_then(|m| Options::from_arg_matches(&m));
    parsed.map_err(|e| {
        let printed = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if json && !printed {
            let failure = usage(&e);
            output::report(&failure, Format::Json);
            return failure.exit_code();
        }
        // A reader who has gone reads no help.
        let _ = e.print();
        ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
    })
}

/// Wrong usage as a failure: the option is the field.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let detail = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ").to_owned();
    let field = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(s)) => s.clone(),
        Some(ContextValue::Strings(s)) => s.join(", "),
        _ => "arguments".to_owned(),
    };
    Failure::input(&field, detail)
        .hint("`ggnet help` shows the commands, and `--help` after a command its options")
}

/// Whether errors shall be JSON, while the command line may still be wrong elsewhere.
fn wants_json(arguments: &[OsString], environment: Option<OsString>) -> bool {
    let mut said = None;
    let mut previous: &str = "";
    for argument in arguments.iter().filter_map(|a| a.to_str()) {
        if let Some(value) = argument
            .strip_prefix("--output=")
            .or_else(|| argument.strip_prefix("-o").filter(|v| !v.is_empty()))
        {
            said = Some(value == "json");
        } else if matches!(previous, "--output" | "-o") {
            said = Some(argument == "json");
        }
        previous = argument;
    }
    said.unwrap_or_else(|| environment.is_some_and(|v| v == "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_every_leaf_has_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let leaves: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            if leaves.is_empty() && path != "ggnet logout" {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains(path), "{path} has no example of itself: {after}");
            }
            for leaf in leaves {
                walk(leaf, &format!("{path} {}", leaf.get_name()));
            }
        }
        walk(&Options::command(), "ggnet");
    }

    #[test]
    fn json_is_known_before_the_rest_is_parsed() {
        let args = |s: &str| s.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&args("ggnet --output json x"), None));
        assert!(wants_json(&args("ggnet x --output=json"), None));
        assert!(wants_json(&args("ggnet -ojson"), None));
        assert!(!wants_json(&args("ggnet -o table"), Some("json".into())));
        assert!(wants_json(&args("ggnet x"), Some("json".into())));
    }

    #[test]
    fn a_bad_value_names_its_option() {
        let e = Options::try_parse_from(["ggnet", "machine", "add", "pc", "--mac", "nonsense"]).unwrap_err();
        assert!(e.to_string().contains("--mac"), "{e}");
        assert!(e.to_string().contains("is not a MAC address"), "{e}");
        assert_eq!(e.exit_code(), 2);
    }
}
