//! Options of `ggnet target`.

use clap::{Args, Subcommand};
use ggnet_core::nouns::{Iqn, Name};

use super::{
    Yes,
    values::{VersionRef, noun, version},
};

/// Commands on targets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all served targets with their connections
    #[command(visible_alias = "ls", after_help = "Example:\n  ggnet target list")]
    List,
    /// Export an image version read-only, until you remove the target
    #[command(after_help = "\
Examples:
  ggnet target add tools tools:2                          any initiator may log in
  ggnet target add tools tools --initiator iqn.2026-11.org.example:pc-17")]
    Add(Add),
    /// Remove a manual target
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet target remove tools --yes")]
    Remove(Remove),
}

/// The properties of a new target.
#[derive(Debug, Args)]
pub struct Add {
    /// The target's name.
    #[arg(value_parser = noun::<Name>)]
    pub name: Name,
    /// The version: IMAGE:NUMBER, its id, or an image (its current version).
    #[arg(value_parser = version)]
    pub version: VersionRef,
    /// The only initiator that may log in. Default: any.
    #[arg(long, value_name = "IQN", value_parser = noun::<Iqn>)]
    pub initiator: Option<Iqn>,
}

/// Which target to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// The target's name, id or IQN.
    pub target: String,
    /// Remove also if initiators are logged in.
    #[arg(long)]
    pub force: bool,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}
