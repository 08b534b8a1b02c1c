//! Targets that are served, and their connections.

use std::collections::{BTreeSet, HashMap};

use super::Reads;
use crate::{
    error::Result,
    nouns::{Iqn, MachineId, ManualTarget, Name, ResourceId, SessionId},
    ports::Connection,
};

/// A target that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// Its iSCSI name.
    pub iqn: Iqn,
    /// The manual target's record, when it is one.
    pub manual: Option<ManualTarget>,
    /// The live session it belongs to, when it is a session's.
    pub session: Option<SessionId>,
    /// That session's machine.
    pub machine: Option<MachineId>,
    /// That session's generation.
    pub generation: Option<u32>,
    /// Its live connections.
    pub connections: Vec<Connection>,
}

/// Every live connection, with the names of the machines and manual targets.
#[derive(Clone, Debug, Default)]
pub struct ConnectionsView {
    /// The connections.
    pub connections: Vec<Connection>,
    /// The names of the machines that own the targets.
    pub machines: HashMap<MachineId, Name>,
    /// The names of manual targets.
    pub manual: HashMap<ResourceId, Name>,
}

impl Reads<'_> {
    /// The name of the target backend.
    #[must_use]
    pub fn target_backend(self) -> &'static str {
        self.ports().target().name()
    }

    /// Every one of our targets that the backend serves, by name, with its connections.
    ///
    /// # Errors
    /// The error of the target backend or of the store.
    pub async fn targets(self) -> Result<Vec<TargetView>> {
        let config = self.orchestrator.config();
        let target = self.ports().target();
        let mut connections: HashMap<ResourceId, Vec<Connection>> = HashMap::new();
        for connection in target.connections().await? {
            connections.entry(connection.target.clone()).or_default().push(connection);
        }
        let mut manual = self.manual_targets().await?;
        let live = self.store().live_sessions().await?;
        let sessions: HashMap<_, _> = live.into_iter().map(|session| (session.machine, session.id)).collect();
        let mut all = Vec::new();
        for listed in target.list().await? {
            let owner = listed.id.owner();
            let machine = owner.map(|(machine, _)| machine);
            all.push(TargetView {
                iqn: Iqn::target(&config.iqn_prefix, &config.instance, &listed.id)?,
                manual: manual.remove(&listed.id),
                session: machine.and_then(|machine| sessions.get(&machine).copied()),
                machine,
                generation: owner.and_then(|(_, generation)| generation),
                connections: connections.remove(&listed.id).unwrap_or_default(),
            });
        }
        all.sort_by(|a, b| a.iqn.cmp(&b.iqn));
        Ok(all)
    }

    /// Every live connection, with names: a fixed number of reads for each thousand machines.
    ///
    /// # Errors
    /// The error of the target backend or of the store.
    pub async fn connections(self) -> Result<ConnectionsView> {
        let manual = self.manual_targets().await?;
        let connections = self.ports().target().connections().await?;
        let owners = connections.iter().filter_map(|connection| connection.target.owner());
        let machines: BTreeSet<_> = owners.map(|(machine, _)| machine).collect();
        let names = self.names(&Vec::from_iter(machines), &[]).await?;
        Ok(ConnectionsView {
            connections,
            machines: names.machines,
            manual: manual.into_iter().map(|(id, target)| (id, target.name)).collect(),
        })
    }

    async fn manual_targets(self) -> Result<HashMap<ResourceId, ManualTarget>> {
        let all = self.store().targets().await?;
        Ok(all.into_iter().map(|target| (ResourceId::manual(target.id), target)).collect())
    }
}
