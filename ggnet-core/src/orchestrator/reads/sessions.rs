//! Sessions with what is observed of them, and the names of what they are of.

use std::collections::BTreeSet;

use super::Reads;
use crate::{
    error::{Error, Result, code},
    nouns::{ImageId, Iqn, Machine, Name, Session, SessionId},
    ports::{Page, PageRequest, SessionCounts, SessionFilter},
};

/// A session, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The session. In a list it has no credentials.
    pub session: Session,
    /// Its machine's name; none: the machine is gone.
    pub machine_name: Option<Name>,
    /// Its image's name; none: the image is gone.
    pub image_name: Option<Name>,
    /// The target of the current generation.
    pub target_iqn: Iqn,
    /// Whether an initiator is logged in.
    pub online: bool,
}

impl Reads<'_> {
    /// Sessions, the newest first, without credentials: two reads, however many sessions there are.
    ///
    /// # Errors
    /// `Invalid` for a page that cannot be; else as the store says.
    pub async fn sessions(self, filter: &SessionFilter, page: PageRequest) -> Result<Page<SessionView>> {
        let Page { items, total, page, per_page } = self.store().sessions(filter, page).await?;
        Ok(Page { items: self.session_views(items).await?, total, page, per_page })
    }

    /// A session.
    ///
    /// # Errors
    /// `NotFound`: there is none; else as the store says.
    pub async fn session(self, id: SessionId) -> Result<SessionView> {
        let found = self.store().session(id).await?;
        self.session_view(found.ok_or_else(|| Error::not_found("session", id))?).await
    }

    /// The machine's live session, with its credentials.
    ///
    /// # Errors
    /// `NotFound`: it has none; else as the store says.
    pub async fn live_session(self, machine: &Machine) -> Result<Session> {
        self.store().live_session(machine.id).await?.ok_or_else(|| {
            Error::new(
                code::no_live_session(&machine.name),
                format!("Machine {} has no live session", machine.name),
            )
            .with_hint("Start one with `ggnet session start`, or let the machine boot with auto start on")
        })
    }

    /// This session, as it is shown.
    ///
    /// # Errors
    /// As the store says.
    pub async fn session_view(self, session: Session) -> Result<SessionView> {
        let mut views = self.session_views(vec![session]).await?;
        views.pop().ok_or_else(|| Error::internal("A session was lost on its way to its answer"))
    }

    /// How many sessions there are in each state: from counters, no scan.
    ///
    /// # Errors
    /// As the store says.
    pub async fn session_counts(self) -> Result<SessionCounts> {
        self.store().session_counts().await
    }

    async fn session_views(self, sessions: Vec<Session>) -> Result<Vec<SessionView>> {
        let machines: BTreeSet<_> = sessions.iter().map(|session| session.machine).collect();
        let images: BTreeSet<_> = sessions.iter().map(image_of).collect();
        let names = self.names(&Vec::from_iter(machines), &Vec::from_iter(images)).await?;
        let view = |session: Session| {
            Ok(SessionView {
                machine_name: names.machines.get(&session.machine).cloned(),
                image_name: names.images.get(&image_of(&session)).cloned(),
                target_iqn: self.orchestrator.sessions().target_iqn(&session, &session.current)?,
                online: self.orchestrator.presence().is_online(session.id),
                session,
            })
        };
        sessions.into_iter().map(view).collect()
    }
}

/// The image that the machine has booted.
fn image_of(session: &Session) -> ImageId {
    session.current.system().image
}
