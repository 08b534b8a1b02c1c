//! `ggnet guest-kit`: writes a kit, then rebuilds the initramfs or prints how to do it.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use atomic_write_file::AtomicWriteFile;
use serde::Serialize;

use super::{Context, wire_name};
use crate::{
    failure::{Failure, Result},
    guest_kit::{
        Kit, KitFile,
        initramfs::{self, Need},
        root::{Done, Refused, Root},
        tar,
    },
    options::guest_kit::{Command, Debian},
    output::{Field, Mood},
};

/// The command to run in the guest itself.
const IN_THE_GUEST: &str = "update-initramfs -u -k all";

/// What was done.
#[derive(Serialize)]
struct Report {
    kit: &'static str,
    version: u32,
    files: Vec<Row>,
    /// Whether the initramfs was rebuilt.
    initramfs_built: bool,
    /// Commands that the operator must still run.
    run: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    path: String,
    result: Done,
}

/// Writes a kit.
pub fn run(context: &Context, command: Command) -> Result<()> {
    let Command::Debian(o) = command;
    let kit = Kit::debian();
    match (&o.tar, &o.to, &o.root) {
        (Some(file), ..) if file.as_os_str() == "-" => to_stdout(context, &kit),
        (Some(file), ..) => to_archive(context, &kit, file, o.force),
        (_, Some(folder), _) => to_folder(context, &kit, folder, o.force),
        (.., Some(mountpoint)) => to_root(context, &kit, mountpoint, &o),
        (None, None, None) => Err(Failure::input("arguments", "One of --root, --to and --tar is required")),
    }
}

fn to_stdout(context: &Context, kit: &Kit) -> Result<()> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        return Err(Failure::input("--tar", "An archive cannot be written to a terminal")
            .hint("Pipe it: `ggnet guest-kit debian --tar - | tar -tvf -`"));
    }
    let written = stdout.write_all(&tar::archive(kit)).and_then(|()| stdout.flush());
    written.map_err(|e| Failure::io("Writing to stdout", &e))?;
    context.out.note(&format!("Next, run in the guest as root: {IN_THE_GUEST}"));
    Ok(())
}

fn to_archive(context: &Context, kit: &Kit, file: &Path, force: bool) -> Result<()> {
    let archive = tar::archive(kit);
    let shown = file.display();
    let result = match fs::read(file) {
        Ok(there) if there == archive => Done::Unchanged,
        Ok(_) if !force => {
            return Err(Failure::input("--tar", format!("{shown} already exists with other content"))
                .hint("Choose another file, or add --force to replace it"));
        }
        Ok(_) => Done::Replaced,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Done::Written,
        Err(e) => return Err(Failure::io(format!("Reading {shown}"), &e)),
    };
    if result != Done::Unchanged {
        let written = AtomicWriteFile::open(file).and_then(|mut f| {
            f.write_all(&archive)?;
            f.commit()
        });
        written.map_err(|e| Failure::io(format!("Writing {shown}"), &e))?;
    }
    let row = Row { path: shown.to_string(), result };
    show(context, kit, vec![row], false, "", vec![IN_THE_GUEST.to_owned()])
}

fn to_folder(context: &Context, kit: &Kit, folder: &Path, force: bool) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Failure::io(format!("Creating {}", folder.display()), &e))?;
    let (_, done) = write(kit, folder, "--to", force)?;
    show(context, kit, rows(&done), false, "", vec![IN_THE_GUEST.to_owned()])
}

fn to_root(context: &Context, kit: &Kit, mountpoint: &Path, o: &Debian) -> Result<()> {
    let (root, done) = write(kit, mountpoint, "--root", o.force)?;
    let sources: Vec<&KitFile> = done.iter().map(|(f, _)| f).filter(|f| f.in_initramfs).collect();
    let changed = done.iter().any(|(f, d)| f.in_initramfs && matches!(d, Done::Written | Done::Replaced));
    let paths: Vec<&str> = sources.iter().map(|f| f.path).collect();
    let need = initramfs::need(&root, mountpoint, changed, &paths)
        .map_err(|e| Failure::io(format!("Reading {}", mountpoint.display()), &e))?;
    let (built, why, run) = match need {
        Need::Nothing => (false, String::new(), Vec::new()),
        Need::ByHand(why, lines) => (false, format!(" here: {why}"), lines),
        Need::Build if o.no_initramfs => {
            (false, " here: --no-initramfs".to_owned(), vec![initramfs::line(mountpoint)])
        }
        Need::Build => {
            context.out.note("Rebuilding the initramfs with the image's own update-initramfs");
            build(mountpoint)?;
            (true, String::new(), Vec::new())
        }
    };
    show(context, kit, rows(&done), built, &why, run)
}

fn build(mountpoint: &Path) -> Result<()> {
    let hint = format!(
        "The kit's files are written. Rebuild the initramfs yourself: {}",
        initramfs::line(mountpoint)
    );
    match initramfs::build(mountpoint) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(Failure::refused(format!("The image's update-initramfs ended with {status}")).hint(hint))
        }
        Err(e) => Err(Failure::io("Starting unshare (Debian's util-linux)", &e).hint(hint)),
    }
}

fn write(kit: &Kit, folder: &Path, option: &str, force: bool) -> Result<(Root, Vec<(KitFile, Done)>)> {
    let shown = folder.display();
    let root = Root::open(folder).map_err(|e| Failure::input(option, format!("{shown}: {e}")))?;
    match root.write(kit, force) {
        Ok(done) => Ok((root, done)),
        Err(Refused::InTheWay(paths)) => {
            let all = paths.join(", ");
            Err(Failure::refused(format!("These files in {shown} already exist with other content: {all}. Nothing was written"))
                .hint("Compare them with the files of the kit (`--to` another folder), or add --force to replace them"))
        }
        Err(Refused::Io(path, e)) => Err(Failure::io(format!("{path} in {shown}"), &e)),
    }
}

fn rows(done: &[(KitFile, Done)]) -> Vec<Row> {
    done.iter().map(|(file, result)| Row { path: file.path.to_owned(), result: *result }).collect()
}

fn show(
    context: &Context,
    kit: &Kit,
    files: Vec<Row>,
    initramfs_built: bool,
    why: &str,
    run: Vec<String>,
) -> Result<()> {
    let report = Report { kit: kit.name, version: kit.version, files, initramfs_built, run };
    if context.out.is_json() {
        return context.out.json(&report);
    }
    context.out.list(&["file", "result"], &report.files, |row| {
        let mood = if row.result == Done::Kept { Mood::Middling } else { Mood::Good };
        vec![row.path.as_str().into(), Field::with(wire_name(&row.result), mood)]
    })?;
    if report.files.iter().any(|r| r.result == Done::Kept) {
        context.out.note("kept: the file has the same meaning as the kit's file and was not changed");
    }
    if initramfs_built {
        context.out.note("The initramfs was rebuilt");
    } else if !report.run.is_empty() {
        let place = if why.is_empty() { "in the guest, as root" } else { "as root" };
        context.out.note(&format!("The initramfs was not rebuilt{why}. Next, run {place}:"));
        report.run.iter().for_each(|line| context.out.note(&format!("  {line}")));
    }
    Ok(())
}
