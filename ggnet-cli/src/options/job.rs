//! Options of `ggnet job`.

use clap::{Args, Subcommand};
use ggnet_core::nouns::{JobId, JobState};

use super::values::{noun, one_of};

const STATES: &[&str] = &["queued", "running", "succeeded", "failed", "cancelled"];

/// Commands on jobs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the running and the queued jobs
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  ggnet job list
  ggnet job list --all --limit 20                         also the ended ones
  ggnet job list --state failed --output json"
    )]
    List(List),
    /// Show one job
    #[command(after_help = "Example:\n  ggnet job show 019ac2f4-6d1e-7c3a-9b58-3f2a6c0d9e71")]
    Show {
        /// The job's id.
        #[arg(value_parser = noun::<JobId>)]
        job: JobId,
    },
    /// Cancel a job
    #[command(after_help = "Example:\n  ggnet job cancel 019ac2f4-6d1e-7c3a-9b58-3f2a6c0d9e71")]
    Cancel {
        /// The job's id.
        #[arg(value_parser = noun::<JobId>)]
        job: JobId,
    },
    /// Retry a failed or cancelled job with its original parameters
    #[command(after_help = "\
Retrying an import creates the same version as before.

Example:
  ggnet job retry 019ac2f4-6d1e-7c3a-9b58-3f2a6c0d9e71")]
    Retry {
        /// The job's id.
        #[arg(value_parser = noun::<JobId>)]
        job: JobId,
    },
}

/// Which jobs to show.
#[derive(Debug, Args)]
pub struct List {
    /// Also show ended jobs.
    #[arg(long, conflicts_with = "state")]
    pub all: bool,
    /// Show only jobs in this state.
    #[arg(long, value_parser = one_of::<JobState>(STATES))]
    pub state: Option<JobState>,
    /// Show at most this many, newest first.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_be_listed() {
        assert_eq!(STATES.to_vec(), JobState::ALL.map(JobState::as_str).to_vec());
    }
}
