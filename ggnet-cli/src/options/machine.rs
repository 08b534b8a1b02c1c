//! Options of `ggnet machine`.

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

/// Commands on machines.
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
  ggnet machine add --seen 52:54:00:12:34:59       an unknown machine; named pc-123459
  ggnet machine add pc-9 --seen 52:54:00:12:34:59 --image debian")]
    Add(Add),
    /// Change a machine; only the given properties change
    #[command(after_help = "\
Examples:
  ggnet machine set pc-1 --image debian                   boots debian from its next boot on
  ggnet machine set pc-1 --image none --no-auto-start
  ggnet machine set pc-1 --pin debian:3                   stays on version 3 until `--pin none`
  ggnet machine set pc-1 --state maintenance --description \"fan broken\"")]
    Set(Set),
    /// Remove a machine; fails if it has a live session
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet machine remove pc-1 --yes")]
    Remove(OneConfirmed),
    /// Show the unknown machines that asked to boot
    #[command(after_help = "\
Example:
  ggnet machine seen              to register one: `ggnet machine add --seen MAC`")]
    Seen,
    /// Remove an unknown machine from the list until it asks again
    #[command(after_help = "Example:\n  ggnet machine forget 52:54:00:12:34:59")]
    Forget {
        /// The machine's MAC address.
        #[arg(value_parser = noun::<MacAddr>)]
        mac: MacAddr,
    },
    /// Delete everything that a `keep` machine has written
    #[command(after_help = "Example:\n  ggnet machine discard-writeback kiosk --yes")]
    DiscardWriteback(OneConfirmed),
    /// Print the boot script that a machine with a live session would get now; changes nothing
    #[command(after_help = "\
Example:
  ggnet machine boot-script pc-1      contains the CHAP secret of this boot: do not publish it")]
    BootScript(One),
}

/// Which machines to show.
#[derive(Debug, Args)]
pub struct List {
    /// Show only machines in this state.
    #[arg(long, value_parser = one_of::<MachineState>(STATES))]
    pub state: Option<MachineState>,
    /// Show only machines in this group.
    #[arg(long, value_parser = noun::<Name>)]
    pub group: Option<Name>,
    /// Show only machines that boot this image (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Show only machines whose name, MAC address or description contains this text.
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

/// One machine, for a command that cannot be undone.
#[derive(Debug, Args)]
pub struct OneConfirmed {
    /// The machine's name or id.
    #[arg(value_parser = machine)]
    pub machine: String,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}

/// The properties of a new machine.
#[derive(Debug, Args)]
pub struct Add {
    /// The machine's name, also its host name. Optional with --seen.
    #[arg(value_parser = noun::<Name>, required_unless_present = "seen")]
    pub name: Option<Name>,
    /// The MAC address of a network card; may be repeated. The first one is used for the initiator name.
    #[arg(long, value_parser = noun::<MacAddr>, required_unless_present = "seen")]
    pub mac: Vec<MacAddr>,
    /// Register an unknown machine that asked to boot, with its MAC address and firmware.
    #[arg(long, value_name = "MAC", value_parser = noun::<MacAddr>)]
    pub seen: Option<MacAddr>,
    /// The image it boots (name or id).
    #[arg(long, value_parser = image)]
    pub image: Option<String>,
    /// Its firmware. Default: taken from the machine's own boot request.
    #[arg(long, value_parser = one_of::<Firmware>(FIRMWARES))]
    pub firmware: Option<Firmware>,
    /// The type of computer.
    #[arg(long, value_parser = one_of::<DeviceType>(DEVICES), default_value = "x64")]
    pub device_type: DeviceType,
    /// A group of the machine; may be repeated.
    #[arg(long = "group", value_name = "GROUP", value_parser = noun::<Name>)]
    pub groups: Vec<Name>,
    /// The IP address to reserve for it, with a full DHCP server such as dnsmasq.
    #[arg(long, value_name = "IP")]
    pub fixed_address: Option<IpAddr>,
    /// The machine's state; only an active machine boots.
    #[arg(long, value_parser = one_of::<MachineState>(STATES), default_value = "active")]
    pub state: MachineState,
    /// Keep its changes over reboots. Default: each reboot gives a clean disk.
    #[arg(long)]
    pub keep: bool,
    /// Do not start a session when the machine asks for its boot script.
    #[arg(long)]
    pub no_auto_start: bool,
    /// A description, free text.
    #[arg(long, default_value = "")]
    pub description: String,
}

/// Which machine to change, and how.
#[derive(Debug, Args)]
pub struct Set {
    /// The machine's name or id.
    #[arg(value_parser = machine)]
    pub machine: String,
    /// Change only if the machine still has this revision (see `machine show`), so that no other change is overwritten.
    #[arg(long)]
    pub revision: Option<u64>,
    /// The changes.
    #[command(flatten)]
    pub changes: Changes,
}

/// The changes.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// The new name.
    #[arg(long, value_parser = noun::<Name>)]
    pub name: Option<Name>,
    /// A MAC address; may be repeated. Replaces all its MAC addresses.
    #[arg(long, value_parser = noun::<MacAddr>)]
    pub mac: Vec<MacAddr>,
    /// The image it boots (name or id). `none`: no image; the machine continues with its next boot device.
    #[arg(long, value_parser = image_or_none)]
    pub image: Option<OrNone<String>>,
    /// Boot always this version, for example debian:3. `none`: boot the image's current version.
    #[arg(long, value_name = "VERSION", value_parser = version_or_none)]
    pub pin: Option<OrNone<VersionRef>>,
    /// Its firmware.
    #[arg(long, value_parser = one_of::<Firmware>(FIRMWARES))]
    pub firmware: Option<Firmware>,
    /// The type of computer.
    #[arg(long, value_parser = one_of::<DeviceType>(DEVICES))]
    pub device_type: Option<DeviceType>,
    /// A group; may be repeated. Replaces all its groups.
    #[arg(long = "group", value_name = "GROUP", value_parser = noun::<Name>, conflicts_with = "no_groups")]
    pub groups: Vec<Name>,
    /// Remove the machine from all groups.
    #[arg(long)]
    pub no_groups: bool,
    /// The IP address to reserve for it, with a full DHCP server such as dnsmasq. `none`: no reservation.
    #[arg(long, value_name = "IP", value_parser = address)]
    pub fixed_address: Option<OrNone<IpAddr>>,
    /// The machine's state; only an active machine boots.
    #[arg(long, value_parser = one_of::<MachineState>(STATES))]
    pub state: Option<MachineState>,
    /// Keep its changes over reboots, from its next session on.
    #[arg(long, conflicts_with = "discard")]
    pub keep: bool,
    /// Each reboot gives a clean disk, from its next session on.
    #[arg(long)]
    pub discard: bool,
    /// Start a session when the machine asks for its boot script.
    #[arg(long, conflicts_with = "no_auto_start")]
    pub auto_start: bool,
    /// Do not start a session when the machine asks for its boot script.
    #[arg(long)]
    pub no_auto_start: bool,
    /// A description, free text.
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
