//! Machines, and the unknown machines that were seen.

use super::Reads;
use crate::{
    error::{Error, Result, code},
    nouns::{MacAddr, Machine, MachineId, Name, SeenMachine},
    ports::{MachineFilter, Page, PageRequest},
};

impl Reads<'_> {
    /// Machines by name.
    ///
    /// # Errors
    /// `Invalid` for a page that cannot be; else as the store says.
    pub async fn machines(self, filter: &MachineFilter, page: PageRequest) -> Result<Page<Machine>> {
        self.store().machines(filter, page).await
    }

    /// A machine by its id, its name or one of its MAC addresses; a name may look like a MAC address, and takes precedence.
    ///
    /// # Errors
    /// `NotFound`: there is none; else as the store says.
    pub async fn machine(self, reference: &str) -> Result<Machine> {
        let store = self.store();
        let mut found = None;
        if let Ok(id) = reference.parse::<MachineId>() {
            found = store.machine(id).await?;
        } else if let Ok(name) = reference.parse::<Name>() {
            found = store.machine_by_name(&name).await?;
        }
        if found.is_none()
            && let Ok(mac) = reference.parse::<MacAddr>()
        {
            found = store.machine_by_mac(mac).await?;
        }
        found
            .ok_or_else(|| Error::not_found("machine", reference).with_hint("`ggnet machine list` shows all"))
    }

    /// Unknown machines that were seen, the last seen first.
    ///
    /// # Errors
    /// `Invalid` for a page that cannot be; else as the store says.
    pub async fn seen(self, page: PageRequest) -> Result<Page<SeenMachine>> {
        self.store().seen(page).await
    }

    /// The unknown machine with this MAC address.
    ///
    /// # Errors
    /// `NotFound`: none was seen; else as the store says.
    pub async fn seen_machine(self, mac: MacAddr) -> Result<SeenMachine> {
        self.store().seen_machine(mac).await?.ok_or_else(|| {
            Error::new(code::seen_machine_not_found(mac), format!("No unknown machine {mac} was seen"))
                .with_hint("`ggnet machine seen` shows all")
        })
    }
}
