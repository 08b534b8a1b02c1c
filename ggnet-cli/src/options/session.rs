//! `ggnet session …`.

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

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the live sessions
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  ggnet session list
  ggnet session list --all --machine pc-1                 also those that have ended
  ggnet session list --state failed"
    )]
    List(List),
    /// Show one session
    #[command(
        after_help = "Example:\n  ggnet session show pc-1                                 its newest one"
    )]
    Show {
        /// The session's id, or its machine's name or id.
        #[arg(value_parser = machine, value_name = "MACHINE-OR-SESSION")]
        session: String,
    },
    /// Start a machine's session, before it asks for it
    #[command(after_help = "\
Examples:
  ggnet session start pc-1
  ggnet session start pc-1 --image debian                 another image than the one it is assigned to")]
    Start {
        /// The machine's name or id.
        #[arg(value_parser = machine)]
        machine: String,
        /// The image (name or id); left out: the one it is assigned to.
        #[arg(long, value_parser = image)]
        image: Option<String>,
    },
    /// Stop a session
    #[command(after_help = "\
Examples:
  ggnet session stop pc-1
  ggnet session stop pc-1 --force                         also while it runs: it loses its disk")]
    Stop {
        /// The machine's name or id, or the session's id.
        #[arg(value_parser = machine, value_name = "MACHINE-OR-SESSION")]
        session: String,
        /// Also with the machine running on it: its writes are flushed, then it loses its disk.
        #[arg(long)]
        force: bool,
    },
    /// Show how many sessions there are
    #[command(after_help = "Example:\n  ggnet session stats --output json")]
    Stats,
    /// Show boot stages as they happen
    #[command(after_help = "\
One line each: when, which machine, what, and the time since the machine's stage before.

Examples:
  ggnet session watch                                     every machine, from now on
  ggnet session watch pc-1 --since-start                  everything that is remembered of it, then what comes
  ggnet session watch pc-1 --until iscsi-login --timeout 120
  ggnet session watch --output json | jq -r .kind         one JSON object a line")]
    Watch(Watch),
}

/// Which sessions.
#[derive(Debug, Args)]
pub struct List {
    /// Also those that have ended.
    #[arg(long, conflicts_with = "state")]
    pub all: bool,
    /// Only those in this state.
    #[arg(long, value_parser = one_of::<SessionState>(STATES))]
    pub state: Option<SessionState>,
    /// Only those of this machine (name or id).
    #[arg(long, value_parser = machine)]
    pub machine: Option<String>,
    /// Only those of this image (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// At most so many, the newest first.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// What to watch.
#[derive(Debug, Args)]
pub struct Watch {
    /// The machine's name or id; left out: every machine.
    #[arg(value_parser = machine)]
    pub machine: Option<String>,
    /// Begin with what is remembered, not with now.
    #[arg(long)]
    pub since_start: bool,
    /// End with 0 when this stage is reached.
    #[arg(long, value_name = "STAGE", value_parser = one_of::<BootStage>(STAGES))]
    pub until: Option<BootStage>,
    /// End after so long; with 6 when --until was not reached, else with 0.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

/// A time in seconds.
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
