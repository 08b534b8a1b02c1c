//! Words on standard output and standard error, for people: never a panic where nobody can read them.

use std::io::{self, Write as _};

use ggnet_core::{Error, Result};

/// A line on standard output, flushed.
///
/// # Errors
/// It cannot be written: nobody reads the pipe, or the disk is full.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| Error::io("writing to standard output", e))
}

/// A line on standard error; lost where that cannot be written.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
