//! Machines on the wire. A response is a [`crate::nouns::Machine`], a list a [`crate::ports::Page`] of them.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::nouns::{
    DeviceType, Firmware, ImageId, ImageVersionId, MacAddr, MachineState, Name, WritebackPolicy,
};

/// `POST /api/v1/machines`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateMachineRequest {
    /// Its name.
    pub name: Name,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Its network cards. May be left out when a seen machine is registered: its MAC address is then the card.
    #[serde(default)]
    pub macs: Vec<MacAddr>,
    /// What kind of computer it is.
    #[serde(default)]
    pub device_type: DeviceType,
    /// Its firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// The address to reserve.
    #[serde(default)]
    pub fixed_address: Option<IpAddr>,
    /// Groups.
    #[serde(default)]
    pub groups: Vec<Name>,
    /// Whether it may boot.
    #[serde(default)]
    pub state: MachineState,
    /// The image it boots.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// The version that it always boots.
    #[serde(default)]
    pub pinned_version: Option<ImageVersionId>,
    /// Whether asking for its boot script starts a session.
    #[serde(default = "yes")]
    pub auto_start: bool,
    /// What happens to its writes at a reboot.
    #[serde(default)]
    pub writeback: WritebackPolicy,
}

const fn yes() -> bool {
    true
}

/// A field that may be left out (no change), `null` (unset) or a value (set).
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(d).map(Some)
}

/// `PATCH /api/v1/machines/{id}`: only what is given changes; `null` unsets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateMachineRequest {
    /// The revision that was read; when given and no longer the stored one, the change is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its network cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macs: Option<Vec<MacAddr>>,
    /// What kind of computer it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_type: Option<DeviceType>,
    /// Its firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// The address to reserve.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub fixed_address: Option<Option<IpAddr>>,
    /// Groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Name>>,
    /// Whether it may boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<MachineState>,
    /// The image it boots.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub image: Option<Option<ImageId>>,
    /// The version that it always boots.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub pinned_version: Option<Option<ImageVersionId>>,
    /// Whether asking for its boot script starts a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_start: Option<bool>,
    /// What happens to its writes at a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writeback: Option<WritebackPolicy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_null_and_value_are_three_things() {
        let parse = |s| serde_json::from_str::<UpdateMachineRequest>(s).unwrap().image;
        assert_eq!(parse("{}"), None);
        assert_eq!(parse(r#"{"image":null}"#), Some(None));
        let id = ImageId::generate();
        assert_eq!(parse(&format!(r#"{{"image":"{id}"}}"#)), Some(Some(id)));
    }
}
