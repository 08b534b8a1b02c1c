//! Boots, followed live: the machines are waited for in threads while the server's events are printed as they come.

use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use anyhow::{Context, Result};
use ggnet_core::nouns::{BootStage, Cursor, EventKind};
use ggnet_tests::Api;
use jiff::Timestamp;

use crate::pc::Pc;
use crate::show::Show;

/// Begins a boot of each machine and prints its stages until all are up.
///
/// # Errors
/// A machine does not come up, or the API does not answer.
pub fn follow(show: &Show, api: &Api, pcs: &mut [Pc], begin: impl Fn(&mut Pc) -> Result<()>) -> Result<()> {
    let mut cursor = api.cursor()?;
    for pc in pcs.iter_mut() {
        begin(pc)?;
    }
    std::thread::scope(|scope| {
        let (sender, ups) = mpsc::channel();
        for (n, pc) in pcs.iter_mut().enumerate() {
            let mut guest = pc.take_guest()?;
            let sender = sender.clone();
            scope.spawn(move || {
                let line = guest.wait_boot();
                // Nobody listens any more when another machine failed first.
                let _ = sender.send((n, guest, line, Timestamp::now()));
            });
        }
        drop(sender);
        loop {
            cursor = print_new(show, api, pcs, cursor)?;
            match ups.try_recv() {
                Ok((n, guest, line, at)) => {
                    let pc = pcs.get_mut(n).context("an unknown machine came up")?;
                    pc.booted(guest, line?, at)?;
                    // Stages that were recorded between the look and the machine's word are printed before it.
                    cursor = print_new(show, api, pcs, cursor)?;
                    let pc = &pcs[n];
                    let began = pc.boots.last().context("no boot")?.began;
                    show.stage(seconds(began, at), pc.name, "up: root shell on its own disk");
                }
                Err(TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(200)),
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    })
}

fn print_new(show: &Show, api: &Api, pcs: &mut [Pc], cursor: Option<Cursor>) -> Result<Option<Cursor>> {
    let mut cursor = cursor;
    for event in api.events(cursor.as_ref(), None)? {
        cursor = Some(event.cursor);
        let Some(pc) = pcs.iter_mut().find(|pc| Some(pc.machine) == event.event.machine) else { continue };
        let Some(boot) = pc.boots.last_mut() else { continue };
        let after = seconds(boot.began, event.event.at);
        match &event.event.kind {
            EventKind::BootStage { stage, generation } => {
                if boot.stages.iter().any(|(s, _)| s == stage) {
                    continue;
                }
                boot.stages.push((*stage, event.event.at));
                let of = generation.map_or_else(String::new, |n| format!(" (generation {n})"));
                show.stage(after, pc.name, &format!("{}{of}", name(*stage)));
            }
            EventKind::GenerationCommitted { number } => {
                show.stage(after, pc.name, &format!("generation {number} is its disk from now on"));
            }
            EventKind::BootFailed { stage, errno } => {
                show.stage(after, pc.name, &format!("reports a failure at {stage}: {errno}"));
            }
            EventKind::BootDiagnosis { message, .. } => show.stage(after, pc.name, message),
            EventKind::DiskTrouble { message } => show.stage(after, pc.name, message),
            _ => {}
        }
    }
    Ok(cursor)
}

/// From one time to another.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// A stage in words.
pub fn name(stage: BootStage) -> &'static str {
    match stage {
        BootStage::AddressOffered => "address offered",
        BootStage::LoaderSent => "loader sent",
        BootStage::ScriptRead => "boot script read",
        BootStage::IscsiLogin => "iSCSI login",
        BootStage::FirstRead => "first read",
        BootStage::FirstWrite => "first write",
        BootStage::Disconnected => "disconnected",
    }
}
