//! [`Machines`]: registered, changed, deleted; and the kept writeback of one.

use std::sync::Arc;

use serde_json::json;

use super::{
    sessions::{LockedMachine, Sessions},
    shared::Shared,
    versions::{Versions, being_published},
};
use crate::{
    authorization::{Command, authorize},
    error::{Error, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, MacAddr, Machine, MachineId, Name, Principal, ResourceId,
        WritebackPolicy,
    },
    ports::{Batch, Removal, Write},
};

/// A machine to register. Its id, times and revision are ours to set.
pub type NewMachine = Machine;

/// A change: takes what is stored and returns what should be.
pub type MachineChange = Box<dyn FnOnce(Machine) -> Result<Machine> + Send>;

/// The machines of the room, registered or only seen.
pub struct Machines {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    sessions: Arc<Sessions>,
    /// Held from looking whether a machine's fixed address is free until it is recorded.
    address_lock: tokio::sync::Mutex<()>,
}

impl Machines {
    pub(super) fn new(shared: Arc<Shared>, versions: Arc<Versions>, sessions: Arc<Sessions>) -> Self {
        Self { shared, versions, sessions, address_lock: tokio::sync::Mutex::default() }
    }

    /// Registers a machine. `Conflict` for a name, MAC address or fixed address that another one has.
    pub async fn create(self: &Arc<Self>, mut machine: NewMachine, by: &Principal) -> Result<Machine> {
        authorize(by, Command::MachineCreate)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                machine.id = MachineId::generate();
                machine.revision = 0;
                machine.created_at = this.shared.now();
                machine.updated_at = machine.created_at;
                machine.validate()?;
                this.check_assignment(&machine).await?;
                let locked = this.sessions.lock_machine(machine.id).await;
                let addresses = this.address_lock.lock().await;
                this.check_fixed_address(&machine).await?;
                let subject = AuditSubject::Machine(machine.id);
                let row = this.shared.audit(&by, AuditAction::MachineCreate, subject).after(json!(machine));
                let event = this.shared.event(EventKind::MachineCreated).machine(machine.id);
                let mut batch = Batch::new().write(Write::Machine(machine.clone())).event(event).audit(row);
                // It is no longer unknown.
                batch.writes.extend(machine.macs.iter().map(|mac| Write::DeleteSeen(*mac)));
                this.shared.record(batch).await?;
                drop(addresses);
                machine.revision = 1;
                this.settle_or_leave(&locked, &machine).await;
                Ok(machine)
            })
            .await
    }

    /// Changes a machine. `revision`, when given, must be the stored one, so that two operators do not overwrite each other.
    pub async fn update(
        self: &Arc<Self>,
        id: MachineId,
        revision: Option<u64>,
        change: MachineChange,
        by: &Principal,
    ) -> Result<Machine> {
        authorize(by, Command::MachineUpdate)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let locked = this.sessions.lock_machine(id).await;
                let store = this.shared.store();
                let before = store.machine(id).await?.ok_or_else(|| Error::not_found("machine", id))?;
                if revision.is_some_and(|r| r != before.revision) {
                    return Err(Error::new(
                        code::machine_changed(&before.name, before.revision),
                        format!(
                            "Machine {} was changed by somebody else (revision {})",
                            before.name, before.revision
                        ),
                    )
                    .with_hint("Read it again and repeat the change"));
                }
                let mut after = change(before.clone())?;
                (after.id, after.created_at, after.revision) =
                    (before.id, before.created_at, before.revision);
                after.updated_at = this.shared.now();
                after.validate()?;
                this.check_assignment(&after).await?;
                // Said at once, and not when the machine is next switched on.
                if after.writeback == WritebackPolicy::Keep
                    && (after.image, after.writeback) != (before.image, before.writeback)
                    && let Some(image) = after.image
                {
                    this.sessions.check_kept(&after, image).await?;
                }
                let addresses = this.address_lock.lock().await;
                if after.fixed_address != before.fixed_address {
                    this.check_fixed_address(&after).await?;
                }
                let row = this.shared.audit(&by, AuditAction::MachineUpdate, AuditSubject::Machine(id));
                let row = row.before(json!(before)).after(json!(after));
                let event = this.shared.event(EventKind::MachineUpdated).machine(id);
                this.shared
                    .record(Batch::new().write(Write::Machine(after.clone())).event(event).audit(row))
                    .await?;
                drop(addresses);
                after.revision += 1;
                this.settle_or_leave(&locked, &after).await;
                Ok(after)
            })
            .await
    }

    /// That no other machine has its fixed address: a DHCP server would drop one of the two entries, and with it that machine's boot files.
    async fn check_fixed_address(&self, machine: &Machine) -> Result<()> {
        let Some(address) = machine.fixed_address else { return Ok(()) };
        let machines = self.shared.all_machines().await?;
        match machines.iter().find(|m| m.fixed_address == Some(address) && m.id != machine.id) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                code::address_taken(address, &other.name),
                format!("Machine {} has the address {address}", other.name),
            )
            .with_hint("Give each machine an address of its own, or none: then DHCP chooses one")),
        }
    }

    /// Deletes a machine with its kept writeback. `Conflict` while it has a live session.
    pub async fn delete(self: &Arc<Self>, id: MachineId, by: &Principal) -> Result<()> {
        authorize(by, Command::MachineDelete)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let locked = this.sessions.lock_machine(id).await;
                let store = this.shared.store();
                let machine = store.machine(id).await?.ok_or_else(|| Error::not_found("machine", id))?;
                if let Some(live) = store.live_session(id).await? {
                    return Err(Error::new(
                        code::machine_has_session(&machine.name),
                        format!("Machine {} has session {} ({})", machine.name, live.id, live.state.as_str()),
                    )
                    .with_hint("Stop that session first"));
                }
                let row = this.shared.audit(&by, AuditAction::MachineDelete, AuditSubject::Machine(id));
                let row = row.before(json!(machine));
                let event = this.shared.event(EventKind::MachineDeleted).machine(id);
                let batch = Batch::new().write(Write::DeleteMachine(id)).event(event).audit(row);
                this.shared.record(batch.from_reserve()).await?;
                let mut gone = machine;
                gone.auto_start = false;
                if let Err(e) = locked.settle_boot(&gone, false).await {
                    tracing::warn!(machine = %gone.name, error = %e.report(), "left to the reconciler");
                }
                if let (_, Err(e)) = this.remove_kept(&locked, &gone.name, Removal::Force).await {
                    tracing::warn!(machine = %gone.name, error = %e.report(), "left to the reconciler");
                }
                Ok(())
            })
            .await
    }

    /// Throws away what a `keep` machine has written. `Conflict` while it has a live session; `Busy` while it is being published.
    pub async fn discard_kept(self: &Arc<Self>, id: MachineId, by: &Principal) -> Result<()> {
        authorize(by, Command::MachineDiscardWriteback)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let locked = this.sessions.lock_machine(id).await;
                let store = this.shared.store();
                let machine = store.machine(id).await?.ok_or_else(|| Error::not_found("machine", id))?;
                if store.live_session(id).await?.is_some() {
                    return Err(Error::new(
                        code::machine_has_session(&machine.name),
                        format!("Machine {} has a live session that uses its kept writeback", machine.name),
                    )
                    .with_hint("Stop that session first"));
                }
                let (gone, removed) = this.remove_kept(&locked, &machine.name, Removal::IfIdle).await;
                // Also when one of several could not be removed: the others are gone.
                if !gone.is_empty() {
                    let row = this.shared.audit(
                        &by,
                        AuditAction::MachineDiscardWriteback,
                        AuditSubject::Machine(id),
                    );
                    let row = row.before(json!({ "writebacks": gone }));
                    let event = this.shared.event(EventKind::MachineUpdated).machine(id);
                    this.shared.record(Batch::new().event(event).audit(row).from_reserve()).await?;
                }
                removed
            })
            .await
    }

    /// Forgets an unknown machine that was seen. `NotFound` when it was not.
    pub async fn forget_seen(self: &Arc<Self>, mac: MacAddr, by: &Principal) -> Result<()> {
        authorize(by, Command::SeenForget)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                let seen = this.shared.store().seen_machine(mac).await?;
                let seen = seen.ok_or_else(|| {
                    Error::new(
                        code::seen_machine_not_found(mac),
                        format!("No unknown machine {mac} was seen"),
                    )
                })?;
                let row = this
                    .shared
                    .audit(&by, AuditAction::SeenForget, AuditSubject::Seen(mac))
                    .before(json!(seen));
                let event = this.shared.event(EventKind::MachineForgotten { mac });
                let batch = Batch::new().write(Write::DeleteSeen(mac)).event(event).audit(row);
                this.shared.record(batch.from_reserve()).await.map(|_| ())
            })
            .await
    }

    /// An image and a pinned version must exist and belong together.
    async fn check_assignment(&self, machine: &Machine) -> Result<()> {
        let store = self.shared.store();
        let Some(image) = machine.image else { return Ok(()) };
        if store.image(image).await?.is_none() {
            return Err(Error::new(code::unknown_image(image), format!("There is no image {image}"))
                .with_field("image"));
        }
        if let Some(pinned) = machine.pinned_version
            && store.version(pinned).await?.is_none_or(|v| v.image != image)
        {
            return Err(Error::new(
                code::pinned_version_of_other_image(pinned, image),
                format!("{pinned} is no version of image {image}"),
            )
            .with_field("pinned_version"));
        }
        Ok(())
    }

    /// Removes what the machine has kept, the writebacks of its system disk and of its data disks, and says which are gone, whatever then
    /// stood in the way. `Busy`, and nothing has changed, while an unfinished version may be made of it.
    async fn remove_kept(
        &self,
        locked: &LockedMachine<'_>,
        name: &Name,
        how: Removal,
    ) -> (Vec<ResourceId>, Result<()>) {
        let mut gone = Vec::new();
        let removed = self.try_remove_kept(locked, name, how, &mut gone).await;
        (gone, removed)
    }

    async fn try_remove_kept(
        &self,
        locked: &LockedMachine<'_>,
        name: &Name,
        how: Removal,
        gone: &mut Vec<ResourceId>,
    ) -> Result<()> {
        let (id, writebacks) = (locked.id(), self.shared.ports.writeback());
        let system = ResourceId::machine(id);
        if self.versions.is_being_published(&system).await? {
            return Err(being_published(name));
        }
        // No record says which data disks it ever had.
        let listed = writebacks.list().await?.into_iter().map(|listed| listed.id);
        let mut kept: Vec<_> =
            listed.filter(|name| *name != system && name.owner() == Some((id, None))).collect();
        kept.push(system);
        for writeback in kept {
            writebacks.remove(&writeback, how).await?;
            gone.push(writeback);
        }
        Ok(())
    }

    /// The record counts; DHCP and boot files follow now, or when the reconciler comes round.
    async fn settle_or_leave(&self, locked: &LockedMachine<'_>, machine: &Machine) {
        let live = self.shared.store().live_session(machine.id).await;
        let settled = match live {
            Ok(live) => locked.settle_boot(machine, live.is_some()).await,
            Err(e) => Err(e),
        };
        if let Err(e) = settled {
            tracing::warn!(machine = %machine.name, error = %e.report(), "boot entries left to the reconciler");
        }
    }
}
