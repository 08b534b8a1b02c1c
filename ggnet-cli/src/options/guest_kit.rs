//! Options of `ggnet guest-kit`: files that a Linux image needs to run from a GGnet disk.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// The kits.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the kit for Debian 12 and its derivatives (systemd, initramfs-tools, open-iscsi)
    Debian(Debian),
}

/// Where to write the kit, and how.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("where").required(true).args(["to", "tar", "root"])),
    after_help = "\
Without the kit an image boots but loses its root disk about a minute later: iscsid takes over the
root's iSCSI session and first reads OpenSSL's configuration, which is on that same disk. The kit
also makes a machine wait one day, not two minutes, for a server that is down, and makes the
initramfs log in with the data that the firmware passes on (iBFT). A comment in each file says why
it is needed. The last file, etc/ggnet/guest-kit.json, contains the kit's name and version. Running
the command again changes nothing.

With --root, if the initramfs must be rebuilt, the command runs the image's own update-initramfs as
root. Chroot does not protect the host: use --no-initramfs for an image that you do not trust. In
all other cases the command prints the lines to run.

Needs no server and no login. For other distributions see docs/guests.md.

Examples:
  ggnet guest-kit debian --root /mnt                             an image mounted at /mnt
  ggnet guest-kit debian --tar - | ssh root@pc tar -C / -xf -    a running system; then run
                                                                 the printed line there
  ggnet guest-kit debian --to kit                                a folder, to read the files"
)]
pub struct Debian {
    /// Write to this folder; it is created if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Write a tar archive to this file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub tar: Option<PathBuf>,
    /// Write to the root of an image mounted here. Symbolic links in the image cannot lead outside it.
    #[arg(long, value_name = "MOUNTPOINT")]
    pub root: Option<PathBuf>,
    /// Replace existing files with other content.
    #[arg(long)]
    pub force: bool,
    /// With --root: run no program of the image; print the line that rebuilds the initramfs.
    #[arg(long, requires = "root")]
    pub no_initramfs: bool,
}
