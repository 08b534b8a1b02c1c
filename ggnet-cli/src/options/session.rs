//! Options of `ggnet session`.

use std::time::Duration;

use clap::{Args, Subcommand};
use ggnet_core::nouns::{BootStage, SessionState};

use super::values::{image, machine, one_of};

const STATES: &[&str] = &["starting", "active", "stopping", "stopped", "failed"];
const STAGES: &[&str] = &[
    "address-offered",
    "loader-sent",
    "script-read",
    "iscsi-login",
    "first-read",
    "first-write",
    "disconnected",
];

/// Commands on sessions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the live sessions
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  ggnet session list
  ggnet session list --all --machine pc-1                 also the ended ones
  ggnet session list --state failed"
    )]
    List(List),
    /// Show one session
    #[command(
        after_help = "Example:\n  ggnet session show pc-1                                 its newest session"
    )]
    Show {
        /// The session's id, or its machine's name or id.
        #[arg(value_parser = machine, value_name = "MACHINE-OR-SESSION")]
        session: String,
    },
    /// Start a machine's session before the machine asks to boot
    #[command(after_help = "\
Examples:
  ggnet session start pc-1
  ggnet session start pc-1 --image debian                 another image than the assigned one")]
    Start {
        /// The machine's name or id.
        #[arg(value_parser = machine)]
        machine: String,
        /// The image (name or id). Default: the machine's assigned image.
        #[arg(long, value_parser = image)]
        image: Option<String>,
    },
    /// Stop a session
    #[command(after_help = "\
Examples:
  ggnet session stop pc-1
  ggnet session stop pc-1 --force                         also if it is running: it loses its disk")]
    Stop {
        /// The machine's name or id, or the session's id.
        #[arg(value_parser = machine, value_name = "MACHINE-OR-SESSION")]
        session: String,
        /// Stop also if the machine is running: its writes are flushed, then it loses its disk.
        #[arg(long)]
        force: bool,
    },
    /// Show the number of sessions by state
    #[command(after_help = "Example:\n  ggnet session stats --output json")]
    Stats,
    /// Show boot stages live
    #[command(after_help = "\
One line per event: time, machine, event, and the time since the machine's previous stage.

Examples:
  ggnet session watch                                     all machines, from now on
  ggnet session watch pc-1 --since-start                  all stored events of pc-1, then new ones
  ggnet session watch pc-1 --until iscsi-login --timeout 120
  ggnet session watch --output json | jq -r .kind         one JSON object per line")]
    Watch(Watch),
}

/// Which sessions to show.
#[derive(Debug, Args)]
pub struct List {
    /// Also show ended sessions.
    #[arg(long, conflicts_with = "state")]
    pub all: bool,
    /// Show only sessions in this state.
    #[arg(long, value_parser = one_of::<SessionState>(STATES))]
    pub state: Option<SessionState>,
    /// Show only sessions of this machine (name or id).
    #[arg(long, value_parser = machine)]
    pub machine: Option<String>,
    /// Show only sessions of this image (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Show at most this many, newest first.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// What to watch, and until when.
#[derive(Debug, Args)]
pub struct Watch {
    /// The machine's name or id. Default: all machines.
    #[arg(value_parser = machine)]
    pub machine: Option<String>,
    /// Start with the stored events, not with new ones.
    #[arg(long)]
    pub since_start: bool,
    /// Exit with code 0 when this stage is reached.
    #[arg(long, value_name = "STAGE", value_parser = one_of::<BootStage>(STAGES))]
    pub until: Option<BootStage>,
    /// Exit after this time: with code 6 if the stage of --until was not reached, without --until with 0.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

/// Parses a time in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a number of seconds");
    let seconds: f64 = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::{Command as Top, Options};

    #[test]
    fn every_stage_can_be_waited_for() {
        assert_eq!(STAGES.len(), BootStage::ALL.len());
        for (text, stage) in STAGES.iter().zip(BootStage::ALL) {
            let options = Options::try_parse_from(["ggnet", "session", "watch", "--until", text]).unwrap();
            let Top::Session(Command::Watch(watch)) = options.command else { unreachable!() };
            assert_eq!(watch.until, Some(stage));
        }
    }

    #[test]
    fn every_state_can_be_listed() {
        assert_eq!(STATES.to_vec(), SessionState::ALL.map(SessionState::as_str).to_vec());
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("30s"), Ok(Duration::from_secs(30)));
        for bad in ["", "-1", "x", "inf", "NaN", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
