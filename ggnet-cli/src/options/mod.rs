//! The command line: global options, one file per noun, and the help texts.
//!
//! Values that can be checked without the server are checked here, with the parsers of the nouns: a malformed MAC address is never sent.

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
  ggnet login --server http://10.0.0.1:8080       asks for the administrator token
  ggnet image import debian /var/lib/ggnet/import/debian.qcow2
  ggnet machine add pc-1 --mac 52:54:00:12:34:56 --image debian
  ggnet session watch pc-1                        its boot stages, live
  ggnet machine list --output json | jq -r '.[].name'

Exit codes:
  0    success
  1    the server refused the request or failed (conflict, resource in use, internal error)
  2    wrong arguments or input
  3    not logged in, or forbidden
  4    not found
  5    the server cannot be reached
  6    timed out while waiting
  130  interrupted by Ctrl-C

Environment:
  GGNET_SERVER, GGNET_OUTPUT   the same as the options --server and --output
  GGNET_TOKEN                  the token, instead of the stored one. There is no option for it,
                               because other users can read command-line arguments
  NO_COLOR                     disables colours

Errors go to stderr. With `--output json` an error is one RFC 9457 problem document, which includes
the exit code.";

/// GGnet: boot a room of diskless machines from one disk image.
///
/// `ggnet` is a client of ggnet-server. Log in once; then use it to register machines, import images and watch sessions.
#[derive(Debug, Parser)]
#[command(name = "ggnet", version, after_help = AFTER, max_term_width = 110, arg_required_else_help = true)]
pub struct Options {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The server's URL, for example http://10.0.0.1:8080. Default: the server of the last `ggnet login`.
    #[arg(long, env = "GGNET_SERVER", global = true, value_name = "URL", value_parser = values::server_url)]
    pub server: Option<ServerUrl>,
    /// The format of results and errors.
    #[arg(long, short, env = "GGNET_OUTPUT", global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Print results and errors only, no notes and no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Disable colours (same as NO_COLOR).
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in to a server: check the token and store it for later commands
    Login(system::Login),
    /// Delete the stored token
    Logout,
    /// Manage machines: the diskless computers that boot from GGnet
    #[command(subcommand, visible_alias = "machines")]
    Machine(machine::Command),
    /// Manage images: the disks that machines boot, in versions
    #[command(subcommand, visible_alias = "images")]
    Image(image::Command),
    /// Manage sessions: a session is one machine using one image version
    #[command(subcommand, visible_alias = "sessions")]
    Session(session::Command),
    /// Show iSCSI targets; add and remove manual ones
    #[command(subcommand, visible_alias = "targets")]
    Target(target::Command),
    /// Manage jobs, such as imports: queued, running and ended ones
    #[command(subcommand, visible_alias = "jobs")]
    Job(job::Command),
    /// Write the files that a Linux image needs to run from a GGnet disk
    #[command(subcommand)]
    GuestKit(guest_kit::Command),
    /// Show events: what happened, in order
    Events(system::Events),
    /// Show the audit log: who changed what
    Audit(system::Audit),
    /// Show the server's version and health, and whether machines can boot now
    Server(system::Server),
    /// Print a completion script for a shell
    Completion(system::Completion),
}

/// The confirmation of a command that cannot be undone.
#[derive(Clone, Copy, Debug, Args)]
pub struct Yes {
    /// Do not ask for confirmation. Required if there is no terminal.
    #[arg(long, short)]
    pub yes: bool,
}

/// Parses the command line. Prints help, version and usage errors itself; then `Err` is the process's exit code.
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
        // Ignored: the reader of a closed pipe needs no help text.
        let _ = e.print();
        ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
    })
}

/// A usage error as a [`Failure`]: the option is the field.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let detail = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ").to_owned();
    let field = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(s)) => s.clone(),
        Some(ContextValue::Strings(s)) => s.join(", "),
        _ => "arguments".to_owned(),
    };
    Failure::input(&field, detail)
        .hint("`ggnet help` lists the commands, `ggnet COMMAND --help` the options of one")
}

/// Whether errors must be JSON. Works on a command line that does not parse.
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
    fn every_command_has_help_and_every_leaf_an_example() {
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
