//! Polled logins: a backend that cannot call the gate at a login lists connections instead.
//!
//! A connection to an unused generation commits it: in each round of the reconciler, and before a boot is answered, so that a machine that
//! boots twice within one round does not get the disk that it has just used. Connections are polled only in these two places, so no backend
//! needs its own task and state for it (decision 0015).

use std::collections::HashSet;

use super::LockedMachine;
use crate::{
    error::Result,
    nouns::{ResourceId, Session},
    ports::LoginVisibility,
};

impl LockedMachine<'_> {
    /// Commits, before a boot is answered, what the last round could not see yet. Only for backends with polled logins.
    pub(super) async fn commit_before_boot(&self, session: &mut Session) -> Result<()> {
        if self.shared.ports.target().capabilities().logins != LoginVisibility::Polled {
            return Ok(());
        }
        let online = self.shared.ports.target().connections().await?;
        self.commit_polled(session, &online.into_iter().map(|c| c.target).collect()).await.map(|_| ())
    }

    /// With polled logins, a connection to an unused generation commits it.
    pub(in crate::orchestrator) async fn commit_polled(
        &self,
        session: &mut Session,
        online: &HashSet<ResourceId>,
    ) -> Result<bool> {
        if self.shared.ports.target().capabilities().logins != LoginVisibility::Polled {
            return Ok(false);
        }
        if session.next.as_ref().is_some_and(|next| online.contains(&session.target(next))) {
            self.commit_next(session).await?;
            return Ok(true);
        }
        if session.current.committed_at.is_none() && online.contains(&session.target(&session.current)) {
            self.commit_current(session).await?;
            return Ok(true);
        }
        Ok(false)
    }
}
