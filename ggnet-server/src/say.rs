//! Prints text for people on standard output and standard error, without a panic if the reader has exited.

use std::io::{self, Write as _};

use ggnet_core::{Error, Result};

/// Prints a line on standard output and flushes it.
///
/// # Errors
/// The line cannot be written: the pipe is closed, or the disk is full.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| Error::io("writing to standard output", e))
}

/// Prints a line on standard error; ignores errors.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
