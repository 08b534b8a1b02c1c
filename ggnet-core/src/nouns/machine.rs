//! [`Machine`]: a computer without a disk, as its operator registered it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ImageId, ImageVersionId, MacAddr, MachineId, Name, Timestamp};
use crate::error::{Error, Result, code};

/// What kind of computer it is; decides which boot files it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    /// A Raspberry Pi.
    Raspi,
    /// A 32-bit PC.
    X86,
    /// A 64-bit PC.
    #[default]
    X64,
}

/// The firmware that a machine was configured with, or was seen with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A PC BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// Not known yet; the machine's own request shows it.
    #[default]
    Unknown,
}

/// Whether the machine may boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// In service.
    #[default]
    Active,
    /// Switched off by the operator; it falls through to its next boot device.
    Inactive,
    /// Under repair; like inactive, with a reason to show.
    Maintenance,
    /// Permanently out of service; kept for the record.
    Retired,
}

impl MachineState {
    /// The state's name in the API, the store and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Maintenance => "maintenance",
            Self::Retired => "retired",
        }
    }
}

/// What happens to a machine's writes when it reboots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WritebackPolicy {
    /// The machine gets a clean disk at each boot.
    #[default]
    Discard,
    /// The writes are kept, across reboots and stops, until the operator discards them.
    Keep,
}

/// A machine. At least one MAC address; no two machines share a name or a MAC (a constraint of the store).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// Its name, also its host name.
    pub name: Name,
    /// Free text for people.
    #[serde(default)]
    pub description: String,
    /// Its network cards; the first one names its initiator.
    pub macs: Vec<MacAddr>,
    /// What kind of computer it is.
    #[serde(default)]
    pub device_type: DeviceType,
    /// Its firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// The address that a full DHCP backend reserves for it; proxyDHCP leaves addresses to the other server.
    #[serde(default)]
    pub fixed_address: Option<IpAddr>,
    /// Groups, for filters and bulk work.
    #[serde(default)]
    pub groups: Vec<Name>,
    /// Whether it may boot.
    #[serde(default)]
    pub state: MachineState,
    /// The image it boots; `None`: it falls through to its next boot device.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// The version that this machine always boots; `None`: the image's current version.
    #[serde(default)]
    pub pinned_version: Option<ImageVersionId>,
    /// Whether asking for its boot script starts a session.
    #[serde(default = "yes")]
    pub auto_start: bool,
    /// What a reboot does to its writes.
    #[serde(default)]
    pub writeback: WritebackPolicy,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Grows with every change; an update with an old revision is a conflict, so that two operators do not overwrite each other.
    pub revision: u64,
}

const fn yes() -> bool {
    true
}

impl Machine {
    /// The card that names the initiator.
    pub fn primary_mac(&self) -> Result<MacAddr> {
        self.macs
            .first()
            .copied()
            .ok_or_else(|| Error::internal(format!("Machine {} has no MAC address", self.id)))
    }

    /// Checks the rules that the field types cannot express.
    pub fn validate(&self) -> Result<()> {
        if self.macs.is_empty() {
            return Err(Error::invalid("macs", "A machine needs at least one MAC address")
                .with_code(code::mac_missing()));
        }
        if self.macs.len() > 16 {
            return Err(Error::invalid("macs", "A machine has at most 16 MAC addresses")
                .with_code(code::too_many(16)));
        }
        let mut sorted = self.macs.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let mac = twice[0];
            return Err(Error::invalid("macs", format!("The MAC address {mac} is given twice"))
                .with_code(code::mac_repeated(mac)));
        }
        if self.groups.len() > 64 {
            return Err(
                Error::invalid("groups", "A machine is in at most 64 groups").with_code(code::too_many(64))
            );
        }
        if self.description.len() > 2000 {
            return Err(Error::invalid("description", "The description is longer than 2000 bytes")
                .with_code(code::too_long(2000)));
        }
        if let Some(address) = self.fixed_address
            && (address.is_unspecified() || address.is_multicast() || address.is_loopback())
        {
            return Err(Error::invalid("fixed_address", format!("{address} cannot be a machine's address"))
                .with_code(code::fixed_address_invalid(address)));
        }
        if self.pinned_version.is_some() && self.image.is_none() {
            return Err(Error::invalid("pinned_version", "A version is pinned but no image is assigned")
                .with_code(code::pinned_version_without_image()));
        }
        Ok(())
    }
}
