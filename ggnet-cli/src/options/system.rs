//! `ggnet login`, `events`, `audit`, `server` and `completion`.

use std::time::Duration;

use clap::Args;
use clap_complete::Shell;

use super::values::machine;

/// Logging in.
#[derive(Debug, Args)]
#[command(after_help = "\
The token is the one that ggnet-server showed at its first start; `ggnet-server token reset` makes a new one. It is read from
GGNET_TOKEN, from the terminal or from stdin, and never from an argument, for others can read those.

Examples:
  ggnet login --server http://10.0.0.1:8080
  ggnet login --server http://10.0.0.1:8080 --token-stdin < token.txt")]
pub struct Login {
    /// Read the token from stdin.
    #[arg(long)]
    pub token_stdin: bool,
}

/// Which events.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggnet events                                            the newest
  ggnet events --after e1-4d2                             everything since that event
  ggnet events --machine pc-1 --output json")]
pub struct Events {
    /// The first ones after the event with this cursor; 0: the oldest that are kept; left out: the newest.
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
    /// Only those of this machine (name or id).
    #[arg(long, value_parser = machine)]
    pub machine: Option<String>,
    /// At most so many.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// Which rows.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ggnet audit --limit 20")]
pub struct Audit {
    /// At most so many.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
}

/// The server.
#[derive(Debug, Args)]
#[command(after_help = "\
It ends with 1 when machines cannot boot now.

Examples:
  ggnet server
  ggnet server --wait 30                                  until machines can boot, 30 seconds at most")]
pub struct Server {
    /// Wait so long until it is ready; then with 6.
    #[arg(long, value_name = "SECONDS", value_parser = super::session::seconds)]
    pub wait: Option<Duration>,
}

/// A shell.
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
