//! Whose folder it is: the file `.instance` in it holds the id of the GGnet that keeps its versions there.
//!
//! The names of versions bear no id of an instance, and at its start each GGnet removes the versions that its database does not know. So two
//! that share a folder would remove each other's. The first one to open a folder marks it; one without a mark is of a GGnet from before there
//! were marks.
//!
//! Invariant: a mark that is there is whole, for it is written under another name, synced and renamed.

use std::{
    io::{self, IoSlice},
    path::Path,
};

use ggnet_core::{
    error::{Error, Result},
    nouns::InstanceId,
};

use crate::files::{Files, Open, gone_is_none};

const MARK: &str = ".instance";
const MARK_NEW: &str = ".instance.new";
/// Most bytes of a mark that are read.
const MOST: usize = 64;

/// Makes the folder `dir` this instance's.
///
/// # Errors
/// `Invalid` (field `dir`) for another instance's; what the operating system says of the mark.
pub(super) fn claim(files: &dyn Files, dir: &Path, instance: &InstanceId) -> Result<()> {
    let mark = dir.join(MARK);
    let owner = read(files, &mark).map_err(|e| Error::io(format!("Reading {}", mark.display()), e))?;
    match owner {
        Some(owner) if owner == instance.as_str() => Ok(()),
        Some(owner) => Err(Error::invalid(
            "dir",
            format!(
                "The folder {} holds the image versions of GGnet instance {owner}, and this is {instance}: each removes the versions that \
                 its database does not know",
                dir.display()
            ),
        )
        .with_hint(format!(
            "Give each server a folder of its own (dir in [images]). If that server is gone for good and this one has its database, remove \
             {}",
            mark.display()
        ))),
        None => {
            // A full disk must not keep the server from its start: what frees space is the server's to do.
            if let Err(e) = write(files, dir, &mark, instance) {
                tracing::warn!(mark = %mark.display(), error = %e, "the folder of the images is not marked as ours");
            }
            Ok(())
        }
    }
}

fn read(files: &dyn Files, mark: &Path) -> io::Result<Option<String>> {
    let Some(file) = gone_is_none(files.open(mark, Open::Read))? else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(MOST).min(MOST)];
    file.read_at(&mut bytes, 0)?;
    let owner = String::from_utf8_lossy(&bytes).trim().to_owned();
    Ok(Some(owner).filter(|owner| !owner.is_empty()))
}

fn write(files: &dyn Files, dir: &Path, mark: &Path, instance: &InstanceId) -> io::Result<()> {
    let new = dir.join(MARK_NEW);
    let file = files.open(&new, Open::Create)?;
    file.write_at(&mut [IoSlice::new(format!("{instance}\n").as_bytes())], 0)?;
    file.sync_all()?;
    files.rename(&new, mark)?;
    files.open_dir(dir)?.sync_all()
}
