//! Actions of SCSI commands: run at once if they do not wait, otherwise on the blocking pool.

use std::sync::Arc;

use super::flow::Flow;
use super::scsi::lu::LogicalUnit;
use super::scsi::nexus::Nexus;
use super::scsi::{Action, Units};
use super::task::{Command, Done};
use super::workers::{Cancel, Queue};

/// The data that was collected for an action.
pub(super) struct Collected {
    pub(super) data: Vec<u8>,
    /// Bytes that the CDB requests.
    pub(super) asked: u64,
    /// Bytes that count as staged until the action ends.
    pub(super) staged: usize,
}

/// Runs an action and answers its command.
pub(super) fn run(
    flow: &mut Flow,
    units: &Units,
    (unit, nexus): (Arc<LogicalUnit>, Arc<Nexus>),
    command: Command,
    action: Action,
    collected: Option<Collected>,
) {
    let moved = collected.as_ref().map(|c| c.asked);
    let Collected { data, asked, staged } =
        collected.unwrap_or(Collected { data: Vec::new(), asked: 0, staged: 0 });
    if action.quick() {
        flow.staged -= staged;
        let reply = action.run(&unit, &nexus, units, &data, &Cancel::default());
        return flow.out.answer(&command, reply, moved);
    }
    let ((ticket, cancel), units) = (flow.jobs.ticket(&command), units.clone());
    let queue = match action {
        Action::Flush => Queue::Flush,
        Action::Verify { .. } | Action::WriteSame { .. } | Action::ExtendedCopy => Queue::Long,
        _ => Queue::Data,
    };
    flow.jobs.spawn(
        queue,
        Some(cancel.clone()),
        move || action.run(&unit, &nexus, &units, &data, &cancel),
        move |reply| Done::Replied { ticket, command, asked, staged, reply },
    );
}
