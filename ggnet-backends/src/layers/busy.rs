//! Failures of a file call that are temporary: a lack of file descriptors or of memory. They are returned as `ResourceBusy`, on which a
//! target makes the initiator retry the command.
//!
//! This never applies to a sync: the kernel may have dropped the data that it could not write, whatever reason it reports.

use std::io;

use rustix::io::Errno;

/// Whether file descriptors or memory were exhausted.
pub(crate) fn scarce(e: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM]
        .iter()
        .any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

/// The error that a disk returns for a failed call that is not a sync.
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
