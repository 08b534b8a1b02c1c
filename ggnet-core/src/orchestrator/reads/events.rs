//! Events and the audit log.

use super::Reads;
use crate::{
    error::Result,
    nouns::{AuditRow, Cursor, Event, MachineId},
    ports::{Page, PageRequest},
};

impl Reads<'_> {
    /// Events after `after` (`None`: from the first that is still kept), oldest first, at most `limit`; of one machine when given.
    ///
    /// # Errors
    /// `NotFound` and `Invalid` for a cursor that cannot be used, with a hint; otherwise the store's error.
    pub async fn events(
        self,
        after: Option<Cursor>,
        limit: u32,
        machine: Option<MachineId>,
    ) -> Result<Vec<Event>> {
        self.store().events(after, limit, machine).await
    }

    /// The newest `limit` events, oldest first; of one machine when given.
    ///
    /// # Errors
    /// As the store says.
    pub async fn newest_events(self, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>> {
        self.store().newest_events(limit, machine).await
    }

    /// Audit rows, the newest first.
    ///
    /// # Errors
    /// As the store says.
    pub async fn audit(self, page: PageRequest) -> Result<Page<AuditRow>> {
        self.store().audit(page).await
    }
}
