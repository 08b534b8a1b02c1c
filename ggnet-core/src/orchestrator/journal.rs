//! Recording: one transaction for a change, its audit row and its event; then the subscribers hear of it.

use super::shared::Shared;
use crate::{
    error::{Error, Result, code},
    nouns::{
        AuditAction, AuditRow, AuditSubject, Event, EventKind, NewEvent, Principal, Session, SessionState,
    },
    ports::{Batch, Write},
};

impl Shared {
    /// Applies the batch and tells the subscribers.
    pub(super) async fn record(&self, batch: Batch) -> Result<Vec<Event>> {
        let events = self.store().commit(batch).await?;
        for event in &events {
            // No subscriber is no error.
            let _ = self.events.send(event.clone());
        }
        Ok(events)
    }

    /// Whether a session is this server's to change.
    pub(super) fn owns(&self, session: &Session) -> bool {
        session.is_of(&self.config.server)
    }

    /// # Errors
    /// `Conflict`: another server's.
    pub(super) fn check_owner(&self, session: &Session) -> Result<()> {
        if self.owns(session) {
            return Ok(());
        }
        let owner = session.owner.as_ref().map_or("", |owner| owner.as_str());
        let message =
            format!("Session {} belongs to server {owner}, and this is {}", session.id, self.config.server);
        Err(Error::new(code::session_of_other_server(session.id, owner), message)
            .with_hint("Ask that server"))
    }

    pub(super) fn event(&self, kind: EventKind) -> NewEvent {
        NewEvent::new(self.now(), kind)
    }

    pub(super) fn session_event(&self, session: &Session, kind: EventKind) -> NewEvent {
        self.event(kind).machine(session.machine).session(session.id).image(session.current.system().image)
    }

    pub(super) fn audit(&self, by: &Principal, action: AuditAction, subject: AuditSubject) -> AuditRow {
        AuditRow::new(self.now(), by, action, subject)
    }

    /// Records a session's change with its event; on success the session carries its new revision.
    pub(super) async fn record_session(
        &self,
        session: &mut Session,
        kind: EventKind,
        audit: Option<AuditRow>,
    ) -> Result<()> {
        self.record_session_and(session, kind, audit, None).await
    }

    /// The same with one more event of the session: what happened at that moment costs no synced write of its own.
    pub(super) async fn record_session_and(
        &self,
        session: &mut Session,
        kind: EventKind,
        audit: Option<AuditRow>,
        besides: Option<EventKind>,
    ) -> Result<()> {
        let ends =
            matches!(session.state, SessionState::Stopping | SessionState::Stopped | SessionState::Failed)
                || matches!(kind, EventKind::GenerationExpired { .. });
        let mut batch = Batch::new().write(Write::Session(Box::new(session.clone())));
        if session.revision > 0 {
            batch = batch.fenced(session);
        }
        batch = batch.event(self.session_event(session, kind));
        if let Some(besides) = besides {
            batch = batch.event(self.session_event(session, besides));
        }
        if let Some(row) = audit {
            batch = batch.audit(row);
        }
        self.record(if ends { batch.from_reserve() } else { batch }).await?;
        session.revision += 1;
        Ok(())
    }
}
