//! `ggnet guest-kit`: what a Linux image needs to live on GGnet's disks.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// Kits.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// For Debian 12 and what is built from it (systemd, initramfs-tools, open-iscsi)
    Debian(Debian),
}

/// Where to put the kit.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("where").required(true).args(["to", "tar", "root"])),
    after_help = "\
Without it an image boots, and about a minute later loses its root: its iscsid, which takes over the
root's session, first reads OpenSSL's configuration from that very root. The kit also lets a machine
wait a day for a server that is off, in place of two minutes, and has the initramfs log in by what
the firmware left. Each file says why it is there; the last one, etc/ggnet/guest-kit.json, names the
kit and its version. A second run changes nothing.

With --root the image's own update-initramfs is run, as root, where the initramfs must be built
anew. Chroot is no wall: for an image that you do not trust say --no-initramfs. In all other cases
the lines to run are printed.

Needs no server and no login. For other distributions: docs/guests.md.

Examples:
  ggnet guest-kit debian --root /mnt                             an image that is mounted there
  ggnet guest-kit debian --tar - | ssh root@pc tar -C / -xf -    a system that runs; there run then
                                                                 what is printed
  ggnet guest-kit debian --to kit                                to read it"
)]
pub struct Debian {
    /// Into this folder, which is made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// As a tar archive into this file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub tar: Option<PathBuf>,
    /// Into the root of an image that is mounted here. Its links lead nowhere outside.
    #[arg(long, value_name = "MOUNTPOINT")]
    pub root: Option<PathBuf>,
    /// Replace files that are there and say something else.
    #[arg(long)]
    pub force: bool,
    /// With --root: run no program of the image; print the line that builds the initramfs.
    #[arg(long, requires = "root")]
    pub no_initramfs: bool,
}
