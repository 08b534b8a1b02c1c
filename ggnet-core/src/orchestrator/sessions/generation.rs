//! Generations: a script request prepares the next one, its first authenticated login commits it, time removes an unused one.
//!
//! ```text
//!   current (never logged in) ── login ──▶ current (committed) ── script ──▶ current + next ── login to next ──▶ next is current
//!                                                                               └── unused for generation_ttl ──▶ current
//! ```
//! Invariants: a script request destroys nothing: the running machine keeps its target and its disk until somebody who knows the next
//! generation's CHAP pair has logged in. Before that login is answered the old connections are drained and closed, so that under
//! `keep` one writeback never has two writers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Sessions, disks_to_boot::DiskToBoot, locked_machine::LockedMachine};
use crate::{
    error::{ErrorKind, Result},
    nouns::{EventKind, Generation, Machine, Session, SessionId, SessionState, WritebackPolicy},
    ports::{Login, LoginGate, LoginVerdict, Removal, TargetEndpoint},
};

/// How long prepared generations have waited for their login: since this process first saw each. Not by the time of day, which a machine
/// in the middle of its boot must not pay for when it is set.
#[derive(Default)]
pub(super) struct Unused(Mutex<HashMap<SessionId, (u32, Instant)>>);

impl Unused {
    /// For how long this generation of the session has waited.
    pub(super) fn waited(&self, session: SessionId, number: u32) -> Duration {
        let mut unused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let entry = unused.entry(session).or_insert((number, now));
        if entry.0 != number {
            *entry = (number, now);
        }
        now - entry.1
    }

    pub(super) fn forget(&self, session: SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }
}

impl Sessions {
    /// Decides over a login and commits the generation it is for.
    async fn admit(self: &Arc<Self>, login: &Login) -> Result<LoginVerdict> {
        let Some((machine, number)) = login.target.owner() else {
            // A manual target: the backend's own access rules have decided.
            return Ok(LoginVerdict::Accept);
        };
        let locked = self.lock_machine(machine).await;
        let Some(mut session) = self.shared.store().live_session(machine).await? else {
            return Ok(LoginVerdict::Refuse);
        };
        // Of another server's session: never final, for its machine may find the right server by trying again.
        if session.state != SessionState::Active || !self.shared.owns(&session) {
            return Ok(LoginVerdict::Retry);
        }
        if Some(session.current.number) == number {
            if session.current.committed_at.is_none() {
                locked.commit_current(&mut session).await?;
            }
        } else if session.next.as_ref().map(|g| g.number) == number {
            locked.commit_next(&mut session).await?;
        } else {
            return Ok(LoginVerdict::Refuse);
        }
        self.presence.seen(session.id);
        Ok(LoginVerdict::Accept)
    }
}

impl LockedMachine<'_> {
    /// The generation that the machine's next boot uses; prepares it when there is none, and then says how its target is reached, too.
    pub(super) async fn generation_for_boot(
        &self,
        machine: &Machine,
        session: &mut Session,
    ) -> Result<(Generation, Option<TargetEndpoint>)> {
        let disks = self.disks_to_boot(machine, session).await?;
        // Nobody has used the current one: it is still the next boot's.
        if session.current.committed_at.is_none() && DiskToBoot::are_of(&session.current, &disks) {
            return Ok((session.current.clone(), None));
        }
        if let Some(next) = &session.next {
            if DiskToBoot::are_of(next, &disks) {
                return Ok((next.clone(), None));
            }
            // Prepared for versions that are no longer wanted, and never used: unless somebody logs in just now.
            self.drop_next(session, Removal::IfIdle).await?;
        }
        let number = session.highest_generation().saturating_add(1);
        let generation = self.new_generation(machine, session.policy, number, &disks)?;
        session.next = Some(generation.clone());
        session.last_generation = number;
        // Recorded before it is made: a crash in between leaves a record that the reconciler completes, never an unknown object.
        let versions = {
            let _image = self.versions.hold().await;
            let mut versions = Vec::with_capacity(disks.len());
            for disk in &disks {
                versions.push(self.versions.ready_version(disk.version).await?);
            }
            self.shared.record_session(session, EventKind::GenerationPrepared { number }, None).await?;
            self.unused.waited(session.id, number);
            versions
        };
        match self.ensure_generation_over(session, &generation, &versions).await {
            Ok(endpoint) => Ok((generation, Some(endpoint))),
            Err(e) => {
                // Why it could not be made is the answer; what is left of it expires.
                if let Err(left) = self.drop_next(session, Removal::Force).await {
                    tracing::warn!(session = %session.id, error = %left.report(), "a generation that could not be made is left to the reconciler");
                }
                Err(e)
            }
        }
    }

    /// Removes the prepared generation. `Busy` when somebody has logged in to it and `how` spares that.
    pub(in crate::orchestrator) async fn drop_next(&self, session: &mut Session, how: Removal) -> Result<()> {
        let Some(next) = session.next.take() else { return Ok(()) };
        let removed = self.remove_generation(session, &next, how).await;
        if let Err(e) = removed {
            session.next = Some(next);
            return Err(e);
        }
        self.shared.record_session(session, EventKind::GenerationExpired { number: next.number }, None).await
    }

    /// Makes the prepared generation current: its first authenticated login.
    pub(in crate::orchestrator) async fn commit_next(&self, session: &mut Session) -> Result<()> {
        let Some(mut next) = session.next.take() else { return Ok(()) };
        let old = session.current.clone();
        // First the old target: requests in flight are finished and its connections closed. Should the record fail afterwards, the
        // reconciler makes the old target again and nothing is lost.
        if let Err(e) = self.targets.remove_target(&session.target(&old), Removal::Force).await {
            session.next = Some(next);
            return Err(e);
        }
        let number = next.number;
        next.committed_at = Some(self.shared.now());
        session.current = next;
        self.shared.record_session(session, EventKind::GenerationCommitted { number }, None).await?;
        if session.policy == WritebackPolicy::Discard {
            for writeback in old.disks.writebacks() {
                // An orphan from now on; when this fails the reconciler removes it.
                if let Err(e) = self.shared.ports.writeback().remove(writeback, Removal::Force).await {
                    tracing::warn!(session = %session.id, error = %e.report(), "old writeback left to the reconciler");
                }
            }
        }
        Ok(())
    }

    /// Removes the prepared generation if it has waited too long for its login. `in_use`: somebody is logged in to it, or that is not known.
    /// Whether it did.
    pub(in crate::orchestrator) async fn expire_next(
        &self,
        session: &mut Session,
        in_use: bool,
    ) -> Result<bool> {
        let Some(next) = &session.next else { return Ok(false) };
        let waited = self.unused.waited(session.id, next.number);
        if waited < self.shared.config.generation_ttl || in_use {
            return Ok(false);
        }
        // Who is online was read before: where logins are only polled, somebody may have come since.
        match self.drop_next(session, Removal::IfIdle).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Busy => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Marks the current generation as used: its first authenticated login.
    pub(in crate::orchestrator) async fn commit_current(&self, session: &mut Session) -> Result<()> {
        let number = session.current.number;
        session.current.committed_at = Some(self.shared.now());
        self.shared.record_session(session, EventKind::GenerationCommitted { number }, None).await
    }
}

/// What the target backend holds of us, who hold it: weak, so that the two do not keep each other alive for ever.
struct Gate(Weak<Sessions>);

#[async_trait]
impl LoginGate for Gate {
    fn serving(&self) -> bool {
        self.0.upgrade().is_some_and(|sessions| sessions.shared.is_serving())
    }

    async fn login(&self, login: Login) -> LoginVerdict {
        let Some(sessions) = self.0.upgrade() else { return LoginVerdict::Retry };
        let (shared, target) = (Arc::clone(&sessions.shared), login.target.clone());
        let verdict = shared.run(async move { sessions.admit(&login).await }).await;
        verdict.unwrap_or_else(|e| {
            tracing::warn!(%target, error = %e.report(), "login put off");
            LoginVerdict::Retry
        })
    }
}

impl Sessions {
    /// Who decides over logins, for the target backend.
    pub(in crate::orchestrator) fn gate(self: &Arc<Self>) -> Arc<dyn LoginGate> {
        Arc::new(Gate(Arc::downgrade(self)))
    }
}
