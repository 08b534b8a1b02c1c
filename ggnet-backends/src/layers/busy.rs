//! Which failures of a file call pass by themselves: a shortage of file descriptors or of memory. They are handed on as
//! `ResourceBusy`, on which a target has the command sent again.
//!
//! Never for a sync: what the kernel could not write it may have dropped, whatever it names as the reason.

use std::io;

use rustix::io::Errno;

/// Whether file descriptors or memory were short.
pub(crate) fn scarce(e: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM]
        .iter()
        .any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

/// The error of a call that is no sync, as a disk answers with it.
pub(crate) fn or_busy(e: io::Error) -> io::Error {
    if scarce(&e) { io::Error::new(io::ErrorKind::ResourceBusy, e) } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_passes_and_an_error_of_the_medium_does_not() {
        let kind = |errno: Errno| or_busy(io::Error::from(errno)).kind();
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert_eq!(kind(errno), io::ErrorKind::ResourceBusy, "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::NODEV] {
            assert_eq!(kind(errno), io::Error::from(errno).kind(), "{errno}");
        }
    }
}
