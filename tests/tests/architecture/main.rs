//! Checks the architecture: no circle between modules, folders or crates, and no file over 600 lines without a reason.
//!
//! # The rule
//!
//! Siblings (the crates of the workspace, and the direct children of one module) must not use each other in a circle. A sibling counts
//! with everything below it, so two folders can form a circle although no two of their files do.
//!
//! Uses between a module and its own parents are not counted. A folder's `mod.rs` both defines what its files share (`host::Finding`,
//! `commands::Context`) and calls them: about a hundred files use their `mod.rs` in this way, and moving those definitions out would only
//! give each folder a second `mod.rs`. A name that a parent re-exports counts as a use of the file that defines it.
//!
//! # What is seen
//!
//! Paths: imports, and every path in types, expressions, patterns and macro calls, in the `src` of each crate. Not seen: methods called on
//! a value whose type is never named, paths in attributes, and what a macro adds to the tokens it is given. Code that is compiled for
//! tests only is left out.
//!
//! Steps: `source` (one file) → `modules` (the tree, and who uses whom) → `circles`. `finds` tests these steps.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod circles;
mod finds;
mod modules;
mod source;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use circles::circles;
use modules::uses;

/// The most lines of a file that need no reason.
const LONG: usize = 600;
/// What the header of a longer one says before its reason.
const REASON: &str = "over 600 lines because";

#[test]
fn no_circle_stands_between_modules_folders_or_crates() {
    let found = circles(&uses(&sources()).unwrap());
    let wrong: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(
        wrong.is_empty(),
        "{}\nMove what both sides need into a file below both of them, or have the upper one hand it down.",
        wrong.join("\n")
    );
}

#[test]
fn no_file_is_over_600_lines_without_its_reason() {
    let files = sources();
    let long: Vec<String> =
        files.iter().filter(|(_, text)| is_too_long(text)).map(|(f, _)| f.clone()).collect();
    assert!(
        long.is_empty(),
        "over {LONG} lines: {}\nSplit by subject, or say in the header: \"{REASON} …\"",
        long.join(", ")
    );
}

fn is_too_long(text: &str) -> bool {
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    text.lines().count() > LONG && !header.collect::<String>().contains(REASON)
}

/// Every source file of the repository and each package's `Cargo.toml`, by its path from the repository's root.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut files = BTreeMap::new();
    collect(&root, &root, &mut files);
    assert!(files.contains_key("ggnet-core/src/lib.rs"), "not the repository: {}", root.display());
    files
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    let entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // Cargo builds in `target` beside a manifest; a module may have that name, too.
            let is_build = name == "target" && folder.join("Cargo.toml").exists();
            if !is_build && !name.starts_with('.') {
                collect(root, &path, files);
            }
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            let at = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(at, fs::read_to_string(&path).unwrap());
        }
    }
}
