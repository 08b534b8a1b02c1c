//! The end of a session.
//!
//! ```text
//!  Draining (jobs end) ──▶ Leaving (no unit knows it any more) ──▶ Flushing (answers out, the logout's last) ──▶ closed
//! ```
//!
//! Invariants:
//! * after it nothing of the session is in flight;
//! * whoever reads the answer to a logout finds nothing of the session in the units: its RESERVE and its wish to keep a medium in
//!   have ended before (RFC 7143 section 11.15.1: the session was closed; with it goes the I_T nexus, SAM-5 section 6.3.4).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use super::CloseReason;
use super::session::Session;
use super::target::Control;

/// How long the last answers of a closing session may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Session {
    /// All of it.
    pub(super) async fn finish<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        control: &mut mpsc::UnboundedReceiver<Control>,
        reason: CloseReason,
    ) {
        self.drain(control, reason).await;
        self.leave_units();
        if let Some(mut r) = self.logout.take() {
            self.number(&mut r, true);
            self.out.push(r, &[]);
        }
        if reason != CloseReason::ConnectionLost {
            self.flush(stream).await;
        }
    }

    async fn drain(&mut self, control: &mut mpsc::UnboundedReceiver<Control>, reason: CloseReason) {
        self.reads.clear();
        self.writes.keep_complete();
        if reason == CloseReason::ConnectionLost {
            // Nobody will read what they find. Writes that have all their data go on. In every other end answers still go out, and
            // a command that was cut short would be answered with an error.
            self.running.iter().for_each(|r| r.cancel.cancel());
        }
        // Another session that closes too may wait for our tasks to end, as we may for its: it is heard to the last.
        let mut heard = true;
        while !self.jobs.is_empty() {
            tokio::select! {
                Some(done) = self.jobs.next() => self.on_done(done),
                asked = control.recv(), if heard => match asked {
                    Some(Control::Abort(lun, ack)) => self.abort_from_outside(lun, ack),
                    None => heard = false,
                },
            }
        }
    }

    fn leave_units(&mut self) {
        for unit in self.units.iter() {
            if let Some(nexus) = self.nexuses.get_mut(usize::from(unit.number)).and_then(Option::take) {
                unit.detach(&nexus);
            }
        }
    }

    async fn flush<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) {
        let out = &mut self.out;
        let flush = poll_fn(|cx| {
            while !out.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, out.pending()) {
                    Poll::Ready(Ok(n)) if n > 0 => out.sent(n),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Pin::new(&mut *stream).poll_shutdown(cx).map(|_| ())
        });
        // A peer that does not read its last answers does not keep the session alive.
        let _ = tokio::time::timeout(LAST_WORDS, flush).await;
    }
}

/// A session whose task was dropped leaves, too.
impl Drop for Session {
    fn drop(&mut self) {
        self.leave_units();
    }
}
