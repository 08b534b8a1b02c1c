//! The table at the end.

use ggnet_core::nouns::BootStage;

use crate::pc::Pc;
use crate::show::{Show, size};
use crate::stages::{name, seconds};

const COLUMNS: [BootStage; 4] =
    [BootStage::ScriptRead, BootStage::IscsiLogin, BootStage::FirstRead, BootStage::FirstWrite];

/// Seconds since the machine was switched on, per stage; what each disk took; the image's checksum before and after.
pub fn print(show: &mut Show, pcs: &[Pc], used: &[u64], before: &str, after: &str) {
    show.step("Summary");
    show.line("seconds after the start of each boot:");
    let mut head = format!("{:<10}{:<10}", "machine", "boot");
    for stage in COLUMNS {
        head.push_str(&format!("{:>18}", name(stage)));
    }
    head.push_str(&format!("{:>10}", "up"));
    show.line(&head);
    let mut complete = true;
    for pc in pcs {
        for boot in &pc.boots {
            let mut row = format!("{:<10}{:<10}", pc.name, boot.cause);
            for stage in COLUMNS {
                let at =
                    boot.stages.iter().find(|(s, _)| *s == stage).map(|(_, at)| seconds(boot.began, *at));
                complete &= at.is_some();
                row.push_str(&at.map_or_else(|| format!("{:>18}", "-"), |s| format!("{s:>18.1}")));
            }
            row.push_str(
                &boot.up.map_or_else(String::new, |at| format!("{:>10.1}", seconds(boot.began, at))),
            );
            show.line(&row);
        }
    }
    show.claim("every stage of every boot was observed", complete);
    show.line("");
    for (pc, bytes) in pcs.iter().zip(used) {
        show.line(&format!(
            "writeback of {:<10} {:>10} on the server's disk, before the reboot",
            pc.name,
            size(*bytes)
        ));
    }
    show.line(&format!("image before         {before}"));
    show.line(&format!("image after          {after}"));
    show.claim("checksums equal", before == after);
}
