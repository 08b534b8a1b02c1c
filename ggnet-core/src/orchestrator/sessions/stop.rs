//! Stop: record `stopping` → DHCP and boot files → target → writebacks (under `discard`) → record `stopped`.
//!
//! A stop that cannot finish stays `stopping`, and the reconciler keeps trying: were it `failed`, its machine could start again
//! while an old target still writes to a kept writeback.

use std::sync::Arc;

use serde_json::json;

use super::{Sessions, locked_machine::LockedMachine};
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, Machine, Principal, Session, SessionId, SessionState,
        StopReason,
    },
    ports::{Batch, Removal, Write},
};

/// What to stop.
#[derive(Clone, Debug)]
pub struct StopRequest {
    /// The session.
    pub session: SessionId,
    /// Also with a live initiator: its disk is flushed and its connections are closed.
    pub force: bool,
    /// Why.
    pub reason: StopReason,
    /// Who wants it.
    pub by: Principal,
}

impl Sessions {
    /// Stops a session.
    ///
    /// Errors: `NotFound`; `Conflict` for one that has ended; `Busy` with a live initiator and no `force`, and nothing has changed;
    /// any error of a backend, and the session stays `stopping`. Cancellation: the stop goes on without its caller.
    pub async fn stop(self: &Arc<Self>, request: StopRequest) -> Result<Session> {
        authorize(&request.by, Command::SessionStop)?;
        let this = Arc::clone(self);
        self.shared
            .run(async move {
                let store = this.shared.store();
                let missing = || Error::not_found("session", request.session);
                let machine = store.session(request.session).await?.ok_or_else(missing)?.machine;
                // Held to the end: nobody else may touch this machine's session half-way.
                let locked = this.lock_machine(machine).await;
                let session = store.session(request.session).await?.ok_or_else(missing)?;
                this.shared.check_owner(&session)?;
                match session.state {
                    SessionState::Active | SessionState::Stopping => {
                        locked.perform_stop(session, &request).await
                    }
                    // The lock is ours, so nobody works on it: a start that was cut short.
                    SessionState::Starting => locked.perform_stop(session, &request).await,
                    SessionState::Stopped | SessionState::Failed => Err(Error::new(
                        code::session_ended(session.id, session.state.as_str()),
                        format!("Session {} is already {}", session.id, session.state.as_str()),
                    )
                    .with_hint("Nothing is left to stop; start a new session when the machine should boot")),
                }
            })
            .await
    }

    fn still_running(session: &Session) -> Error {
        Error::new(
            code::session_in_use(session.id),
            format!("Session {} has a live initiator: its machine is running", session.id),
        )
        .retryable(false)
        .with_hint("Shut the machine down first, or stop with force")
    }
}

impl LockedMachine<'_> {
    /// Records that the session is being stopped, and does the steps.
    pub(in crate::orchestrator) async fn perform_stop(
        &self,
        mut session: Session,
        request: &StopRequest,
    ) -> Result<Session> {
        // A stop that was begun by force stays one.
        let force = request.force || (session.state == SessionState::Stopping && session.stop_forced);
        if !force && self.presence.has_initiator(&session).await? {
            return Err(Sessions::still_running(&session));
        }
        if session.state != SessionState::Stopping || session.stop_forced != force {
            let subject = AuditSubject::Session(session.id);
            let row = self.shared.audit(&request.by, AuditAction::SessionStop, subject);
            let row = row.before(json!({ "state": session.state, "force": session.stop_forced }));
            session.state = SessionState::Stopping;
            session.stop_reason = Some(request.reason);
            session.stop_forced = force;
            let now = json!({ "state": session.state, "force": force, "reason": request.reason });
            let row = row.after(now);
            self.shared.record_session(&mut session, EventKind::SessionStopping, Some(row)).await?;
        }
        let machine = self.shared.store().machine(session.machine).await?;
        let session = self.carry_out_stop(session, machine.as_ref()).await?;
        match session.state {
            SessionState::Stopped => Ok(session),
            _ => Err(Sessions::still_running(&session)),
        }
    }

    /// Does the steps of a stop that is recorded, as it was asked for. Returns the session stopped; or active again, when the stop
    /// spares initiators and one came between the look and the removal: as if it had not been asked for. The caller holds the
    /// machine's lock.
    pub(in crate::orchestrator) async fn carry_out_stop(
        &self,
        session: Session,
        machine: Option<&Machine>,
    ) -> Result<Session> {
        let how = if session.stop_forced { Removal::Force } else { Removal::IfIdle };
        match self.stop_steps(machine, &session, how).await {
            Ok(()) => self.finish_stop(session).await,
            Err(e) if e.kind() == ErrorKind::Busy && !session.stop_forced => {
                self.take_back_stop(session, machine).await
            }
            Err(e) => {
                tracing::warn!(session = %session.id, error = %e.report(), "stop incomplete; the reconciler goes on");
                Err(e)
            }
        }
    }

    /// Makes a stopping session active again. Recorded first: were something to fail before it, the reconciler would go on with the
    /// stop; after it, the reconciler makes what is lacking.
    async fn take_back_stop(&self, mut session: Session, machine: Option<&Machine>) -> Result<Session> {
        session.state = SessionState::Active;
        session.stop_reason = None;
        let event = self.shared.session_event(&session, EventKind::SessionActive);
        let batch = Batch::new().write(Write::Session(Box::new(session.clone()))).event(event);
        // On a full disk, too: a session that stays `stopping` boots nothing.
        self.shared.record(batch.from_reserve()).await?;
        session.revision += 1;
        for generation in session.generations() {
            self.ensure_generation(&session, generation).await?;
        }
        if let Some(machine) = machine {
            self.settle_boot(machine, true).await?;
        }
        Ok(session)
    }

    async fn stop_steps(&self, machine: Option<&Machine>, session: &Session, how: Removal) -> Result<()> {
        if let Some(machine) = machine {
            self.settle_boot(machine, false).await?;
        }
        // The current one first: under IfIdle it is the one that can be busy.
        for generation in session.generations() {
            self.remove_generation(session, generation, how).await?;
        }
        Ok(())
    }

    pub(super) async fn finish_stop(&self, mut session: Session) -> Result<Session> {
        session.state = SessionState::Stopped;
        session.next = None;
        session.ended_at = Some(self.shared.now());
        (session.error, session.failure) = (None, None);
        self.shared.record_session(&mut session, EventKind::SessionStopped, None).await?;
        self.presence.forget(session.id);
        self.unused.forget(session.id);
        Ok(session)
    }
}
