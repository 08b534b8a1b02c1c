//! Options of `ggnet login`, `events`, `audit`, `server` and `completion`.

use std::time::Duration;

use clap::Args;
use clap_complete::Shell;

use super::values::machine;

/// How to log in.
#[derive(Debug, Args)]
#[command(after_help = "\
ggnet-server prints the token at its first start; `ggnet-server token reset` makes a new one.
`ggnet login` reads it from GGNET_TOKEN, from the terminal or from stdin. There is no option for it,
because other users can read command-line arguments.

Examples:
  ggnet login --server http://10.0.0.1:8080
  ggnet login --server http://10.0.0.1:8080 --token-stdin < token.txt")]
pub struct Login {
    /// Read the token from stdin.
    #[arg(long)]
    pub token_stdin: bool,
}

/// Which events to show.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggnet events                                            the newest events
  ggnet events --after e1-4d2                             all events after that one
  ggnet events --machine pc-1 --output json")]
pub struct Events {
    /// Show the events after this cursor; 0: from the oldest stored one. Default: the newest events.
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
    /// Show only events of this machine (name or id).
    #[arg(long, value_parser = machine)]
    pub machine: Option<String>,
    /// Show at most this many.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// Which rows to show.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ggnet audit --limit 20")]
pub struct Audit {
    /// Show at most this many.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
}

/// What to ask the server.
#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is 1 if machines cannot boot now.

Examples:
  ggnet server
  ggnet server --wait 30                                  wait until machines can boot, at most 30 s")]
pub struct Server {
    /// Wait at most this long until machines can boot; then exit with code 6.
    #[arg(long, value_name = "SECONDS", value_parser = super::session::seconds)]
    pub wait: Option<Duration>,
}

/// For which shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggnet completion bash > ~/.local/share/bash-completion/completions/ggnet
  ggnet completion zsh > ~/.zfunc/_ggnet
  ggnet completion fish > ~/.config/fish/completions/ggnet.fish")]
pub struct Completion {
    /// The shell.
    pub shell: Shell,
}
