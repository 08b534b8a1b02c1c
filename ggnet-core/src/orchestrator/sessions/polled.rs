//! Logins that are only polled: a backend that cannot ask us at a login lists connections instead.
//!
//! A connection to a generation that nobody has used commits it: when the reconciler comes round, and before a boot is answered, so that a
//! machine that boots twice within one round is not given the disk it has just used. Each backend that polls is asked in these two places
//! alone, so no backend needs a task and a memory of its own for it (decision 0015).

use std::collections::HashSet;

use super::LockedMachine;
use crate::{
    error::Result,
    nouns::{ResourceId, Session},
    ports::LoginVisibility,
};

impl LockedMachine<'_> {
    /// Before a boot is answered by a backend whose logins are only polled: what the last round could not see yet.
    pub(super) async fn commit_before_boot(&self, session: &mut Session) -> Result<()> {
        if self.shared.ports.target().capabilities().logins != LoginVisibility::Polled {
            return Ok(());
        }
        let online = self.shared.ports.target().connections().await?;
        self.commit_polled(session, &online.into_iter().map(|c| c.target).collect()).await.map(|_| ())
    }

    /// Where logins are only polled, a connection to a generation that nobody has used commits it.
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
