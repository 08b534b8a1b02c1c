//! `ggnet machine …`.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ggnet_core::nouns::{DeviceType, Firmware, MacAddr, MachineState, Name};

use super::{
    Yes,
    values::{OrNone, VersionRef, image, image_or_none, machine, noun, one_of, or_none, version_or_none},
};

const FIRMWARES: &[&str] = &["bios", "uefi", "unknown"];
const DEVICES: &[&str] = &["x64", "x86", "raspi"];
const STATES: &[&str] = &["active", "inactive", "maintenance", "retired"];

/// What to do with machines.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the registered machines
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  ggnet machine list
  ggnet machine list --group room-2 --state active
  ggnet machine list --output json | jq -r '.[] | select(.image == null) | .name'"
    )]
    List(List),
    /// Show one machine
    #[command(after_help = "Example:\n  ggnet machine show pc-1")]
    Show(One),
    /// Register a machine
    #[command(after_help = "\
Examples:
  ggnet machine add pc-1 --mac 52:54:00:12:34:56 --image debian
  ggnet machine add kiosk --mac 52:54:00:12:34:57 --mac 52:54:00:12:34:58 --keep --firmware uefi
  ggnet machine add --seen 52:54:00:12:34:59       one that asked to boot, as pc-123459
  ggnet machine add pc-9 --seen 52:54:00:12:34:59 --image debian")]
    Add(Add),
    /// Change a machine; only what is given changes
    #[command(after_help = "\
Examples:
  ggnet machine set pc-1 --image debian                   it boots that from its next boot on
  ggnet machine set pc-1 --image none --no-auto-start
  ggnet machine set pc-1 --pin debian:3                   it stays on version 3; `--pin none` lets it follow again
  ggnet machine set pc-1 --state maintenance --description \"fan broken\"")]
    Set(Set),
    /// Remove a machine; its session must have ended
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet machine remove pc-1 --yes")]
    Remove(Doomed),
    /// Show the unknown machines that asked to boot
    #[command(after_help = "\
Example:
  ggnet machine seen                                      `ggnet machine add --seen MAC` registers one")]
    Seen,
    /// Forget an unknown machine until it asks again
    #[command(after_help = "Example:\n  ggnet machine forget 52:54:00:12:34:59")]
    Forget {
        /// Its MAC address.
        #[arg(value_parser = noun::<MacAddr>)]
        mac: MacAddr,
    },
    /// Throw away what a `keep` machine has written
    #[command(after_help = "Example:\n  ggnet machine discard-writeback kiosk --yes")]
    DiscardWriteback(Doomed),
    /// Print the boot script of a machine with a live session, as it would read it now; changes nothing
    #[command(after_help = "\
Example:
  ggnet machine boot-script pc-1                          it has the CHAP secret of this boot in it: do not post it")]
    BootScript(One),
}

/// Which machines.
#[derive(Debug, Args)]
pub struct List {
    /// Only those in this state.
    #[arg(long, value_parser = one_of::<MachineState>(STATES))]
    pub state: Option<MachineState>,
    /// Only those in this group.
    #[arg(long, value_parser = noun::<Name>)]
    pub group: Option<Name>,
    /// Only those that boot this image (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Only those whose name, MAC address or description has this in it.
    #[arg(long)]
    pub search: Option<String>,
}

/// One machine.
#[derive(Debug, Args)]
pub struct One {
    /// The machine's name or id.
    #[arg(value_parser = machine)]
    pub machine: String,
}

/// One machine, and something that cannot be taken back.
#[derive(Debug, Args)]
pub struct Doomed {
    /// The machine's name or id.
    #[arg(value_parser = machine)]
    pub machine: String,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}

/// A new machine.
#[derive(Debug, Args)]
pub struct Add {
    /// Its name, also its host name; may be left out with --seen.
    #[arg(value_parser = noun::<Name>, required_unless_present = "seen")]
    pub name: Option<Name>,
    /// A network card's MAC address; may be given again. The first one names its initiator.
    #[arg(long, value_parser = noun::<MacAddr>, required_unless_present = "seen")]
    pub mac: Vec<MacAddr>,
    /// Take over an unknown machine that asked to boot, with its MAC address and firmware.
    #[arg(long, value_name = "MAC", value_parser = noun::<MacAddr>)]
    pub seen: Option<MacAddr>,
    /// The image it boots (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Its firmware; left out: its own request tells.
    #[arg(long, value_parser = one_of::<Firmware>(FIRMWARES))]
    pub firmware: Option<Firmware>,
    /// What kind of computer it is.
    #[arg(long, value_parser = one_of::<DeviceType>(DEVICES), default_value = "x64")]
    pub device_type: DeviceType,
    /// A group it is in; may be given again.
    #[arg(long = "group", value_name = "GROUP", value_parser = noun::<Name>)]
    pub groups: Vec<Name>,
    /// The address that a full DHCP backend reserves for it.
    #[arg(long, value_name = "IP")]
    pub fixed_address: Option<IpAddr>,
    /// Whether it may boot.
    #[arg(long, value_parser = one_of::<MachineState>(STATES), default_value = "active")]
    pub state: MachineState,
    /// Keep what it writes over reboots; left out: a reboot gives a clean disk.
    #[arg(long)]
    pub keep: bool,
    /// Asking for its boot script does not start a session.
    #[arg(long)]
    pub no_auto_start: bool,
    /// Free text.
    #[arg(long, default_value = "")]
    pub description: String,
}

/// A changed machine.
#[derive(Debug, Args)]
pub struct Set {
    /// The machine's name or id.
    #[arg(value_parser = machine)]
    pub machine: String,
    /// Only if it still is at this revision (`machine show` has it): another's change is not overwritten.
    #[arg(long)]
    pub revision: Option<u64>,
    /// What changes.
    #[command(flatten)]
    pub changes: Changes,
}

/// What changes.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Its new name.
    #[arg(long, value_parser = noun::<Name>)]
    pub name: Option<Name>,
    /// Its MAC addresses, all of them; may be given again.
    #[arg(long, value_parser = noun::<MacAddr>)]
    pub mac: Vec<MacAddr>,
    /// The image it boots (name or id); `none`: it boots from its next boot device.
    #[arg(long, value_parser = image_or_none)]
    pub image: Option<OrNone<String>>,
    /// A version to stay on, such as debian:3; `none`: the image's current one.
    #[arg(long, value_name = "VERSION", value_parser = version_or_none)]
    pub pin: Option<OrNone<VersionRef>>,
    /// Its firmware.
    #[arg(long, value_parser = one_of::<Firmware>(FIRMWARES))]
    pub firmware: Option<Firmware>,
    /// What kind of computer it is.
    #[arg(long, value_parser = one_of::<DeviceType>(DEVICES))]
    pub device_type: Option<DeviceType>,
    /// Its groups, all of them; may be given again.
    #[arg(long = "group", value_name = "GROUP", value_parser = noun::<Name>, conflicts_with = "no_groups")]
    pub groups: Vec<Name>,
    /// It is in no group.
    #[arg(long)]
    pub no_groups: bool,
    /// The address that a full DHCP backend reserves for it; `none`: none.
    #[arg(long, value_name = "IP", value_parser = address)]
    pub fixed_address: Option<OrNone<IpAddr>>,
    /// Whether it may boot.
    #[arg(long, value_parser = one_of::<MachineState>(STATES))]
    pub state: Option<MachineState>,
    /// Keep what it writes over reboots, from its next session on.
    #[arg(long, conflicts_with = "discard")]
    pub keep: bool,
    /// A reboot gives a clean disk, from its next session on.
    #[arg(long)]
    pub discard: bool,
    /// Asking for its boot script starts a session.
    #[arg(long, conflicts_with = "no_auto_start")]
    pub auto_start: bool,
    /// Asking for its boot script does not start a session.
    #[arg(long)]
    pub no_auto_start: bool,
    /// Free text.
    #[arg(long)]
    pub description: Option<String>,
}

fn address(text: &str) -> Result<OrNone<IpAddr>, String> {
    or_none(text, |t| t.parse().map_err(|_| format!("{t:?} is not an IP address")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::{Command as Top, Options};

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let options = Options::try_parse_from(["ggnet", "machine"].into_iter().chain(line.split(' ')))?;
        match options.command {
            Top::Machine(command) => Ok(command),
            _ => unreachable!(),
        }
    }

    #[test]
    fn add_takes_what_a_machine_has() {
        let line = "add PC-1 --mac 52-54-00-AA-BB-CC --mac 525400aabbcd --image debian --firmware uefi --device-type x86 \
                    --group a --group b --fixed-address 10.0.0.9 --keep --no-auto-start";
        let Command::Add(add) = parse(line).unwrap() else { unreachable!() };
        assert_eq!(add.name.unwrap().as_str(), "pc-1");
        assert_eq!(add.mac[0].to_string(), "52:54:00:aa:bb:cc");
        assert_eq!((add.mac.len(), add.groups.len()), (2, 2));
        assert_eq!((add.firmware, add.device_type), (Some(Firmware::Uefi), DeviceType::X86));
        assert!(add.keep && add.no_auto_start);
    }

    #[test]
    fn what_the_screen_of_an_unknown_machine_says_is_enough() {
        let Command::Add(add) = parse("add --seen 52:54:00:aa:00:01").unwrap() else { unreachable!() };
        assert!(add.name.is_none() && add.mac.is_empty());
        assert!(parse("add pc-1").is_err(), "a machine needs a MAC address");
        assert!(parse("add --mac 52:54:00:aa:00:01").is_err(), "a machine needs a name");
    }

    #[test]
    fn set_needs_a_change_and_only_one_of_two() {
        assert!(parse("set pc-1").is_err());
        assert!(parse("set pc-1 --revision 3").is_err());
        assert!(parse("set pc-1 --keep --discard").is_err());
        assert!(parse("set pc-1 --auto-start --no-auto-start").is_err());
        let Command::Set(set) = parse("set pc-1 --image none --revision 3").unwrap() else { unreachable!() };
        assert_eq!((set.changes.image, set.revision), (Some(OrNone::None), Some(3)));
    }

    #[test]
    fn malformed_input_is_refused() {
        for bad in [
            "add pc_1 --mac 52:54:00:aa:00:01",
            "add pc-1 --mac 01:00:5e:00:00:01",
            "add pc-1 --mac 52:54:00:aa:00:01 --fixed-address 10.0.0",
            "add pc-1 --mac 52:54:00:aa:00:01 --firmware coreboot",
            "set pc-1 --pin debian:x",
            "show a/b",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
