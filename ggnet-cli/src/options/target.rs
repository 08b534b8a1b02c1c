//! `ggnet target …`.

use clap::{Args, Subcommand};
use ggnet_core::nouns::{Iqn, Name};

use super::{
    Yes,
    values::{VersionRef, noun, version},
};

/// What to do with targets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every target that is served, with its connections
    #[command(visible_alias = "ls", after_help = "Example:\n  ggnet target list")]
    List,
    /// Export an image version read-only, until it is removed
    #[command(after_help = "\
Examples:
  ggnet target add tools tools:2                          any initiator may log in
  ggnet target add tools tools --initiator iqn.2026-11.org.example:pc-17")]
    Add(Add),
    /// Remove a target that was made by hand
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet target remove tools --yes")]
    Remove(Remove),
}

/// A new target.
#[derive(Debug, Args)]
pub struct Add {
    /// Its name.
    #[arg(value_parser = noun::<Name>)]
    pub name: Name,
    /// The version: IMAGE:NUMBER, its id, or the image whose current version it is.
    #[arg(value_parser = version)]
    pub version: VersionRef,
    /// The only initiator that may log in; left out: any.
    #[arg(long, value_name = "IQN", value_parser = noun::<Iqn>)]
    pub initiator: Option<Iqn>,
}

/// A target to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name, id or IQN.
    pub target: String,
    /// Also with initiators logged in.
    #[arg(long)]
    pub force: bool,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}
