//! The state of SCSI commands in a session, and the results of their jobs.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::SessionId;
use super::scsi::lu::LogicalUnit;
use super::scsi::{Reply, is_busy};

/// The data of a command that all its tasks need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) itt: u32,
    pub(super) lun: u16,
    pub(super) immediate: bool,
    /// Expected data transfer length, by direction.
    pub(super) expect_in: u32,
    pub(super) expect_out: u32,
    pub(super) started: Instant,
}

/// What was sent of a command's Data-In.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) bytes: u32,
    pub(super) pdus: u32,
    pub(super) in_burst: u32,
}

/// A read that is not answered yet.
pub(super) struct ReadTask {
    pub(super) command: Command,
    pub(super) unit: Arc<LogicalUnit>,
    /// The offset of the next byte on the device.
    pub(super) offset: u64,
    /// Bytes still to send.
    pub(super) left: usize,
    /// Bytes that the CDB requests, for the residual count.
    pub(super) asked: u64,
    pub(super) sent: Sent,
    /// Bytes that its job is fetching.
    pub(super) fetching: usize,
}

/// The result of a job.
pub(super) enum Done {
    /// A read of the next bytes of a task.
    Read { ticket: u64, task: Box<ReadTask>, result: io::Result<Vec<u8>> },
    /// A piece of a write: this number of bytes at this offset of the disk.
    Piece { ticket: u64, tag: u32, offset: u64, bytes: usize, result: io::Result<()> },
    /// An action, or the last step of a write.
    Replied { ticket: u64, command: Command, asked: u64, staged: usize, reply: Reply },
    /// Another session has ended its tasks, as a task management function of this session requested.
    Acknowledged { function: u64 },
    /// The policy's answer to a discovery.
    Discovered { itt: u32, answer: Vec<u8>, targets: Vec<String> },
}

/// Logs that the device failed. A busy device is not a failure, and occurs too often for a line each.
pub(super) fn log_failed(session: SessionId, lun: u16, offset: u64, what: &str, error: &io::Error) {
    let session = session.0;
    if is_busy(error) {
        tracing::debug!(session, lun, offset, what, %error, "the device is busy");
    } else {
        tracing::warn!(session, lun, offset, %error, "{what} failed");
    }
}
