//! Interprets a failed qemu-img: from its exit status and its output to an error kind that a caller can act on.

use ggnet_core::error::{Error, ErrorKind, code};

use crate::run::Output;

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGABRT: i32 = 6;
const SIGBUS: i32 = 7;
const SIGFPE: i32 = 8;
const SIGSEGV: i32 = 11;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;

/// The error of a failed qemu-img; `otherwise` is the kind if its output is not recognized.
pub(super) fn explain(out: &Output, what: &str, otherwise: ErrorKind) -> Error {
    let damaged = |why: &str| out.failure(code::image_damaged(why), format!("{what}: {why}"));
    match out.signal {
        Some(SIGXCPU | SIGXFSZ) => {
            return damaged("the image exceeds limits that no valid image exceeds");
        }
        // If its address space is exhausted, glib aborts or traps; the other signals are crashes on a crafted file.
        Some(SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGFPE | SIGSEGV) => {
            return damaged("qemu-img crashed on the image");
        }
        Some(_) => {
            return out
                .failure(ErrorKind::Unavailable, format!("{what}: qemu-img was killed"))
                .with_hint("Look for the kernel's out-of-memory killer in `journalctl -k`, then try again");
        }
        None => {}
    }
    let said = out.stderr_tail.as_str();
    let has = |text: &str| said.contains(text);
    if has("No space left on device") || has("Disk quota exceeded") || has("File too large") {
        return out
            .failure(code::image_folder_full(), format!("{what}: the disk is full"))
            .with_hint("Free space where the images are stored, then import again");
    }
    if has("Failed to get") && has("lock") {
        return out
            .failure(code::import_file_locked(), format!("{what}: another program uses the image"))
            .with_hint("Stop the virtual machine that uses it, then import again");
    }
    if has("Permission denied") {
        return out.failure(ErrorKind::Permission, format!("{what}: no permission to read the file"));
    }
    if has("log that needs to be replayed") {
        return damaged("the image was not closed properly").with_hint(
            "Attach it once on the system where it was made, or run `qemu-img check -r all` on a copy",
        );
    }
    if has("error while writing") {
        return out.failure(ErrorKind::Unavailable, format!("{what}: cannot write to the destination"));
    }
    if has("error while reading") {
        return damaged("the source cannot be read to its end");
    }
    if has("nsupported") || has("not supported") || has("not support") {
        let why = "the image has a feature that qemu-img lacks";
        return out.failure(code::image_refused(why), format!("{what}: {why}"));
    }
    out.failure(otherwise, what.to_owned())
}
