//! Properties that must hold for all bytes that reach the target: one function per fuzz target, called by the targets in `fuzz/` and by the
//! test `fuzz_corpus`.
//!
//! `pdu` frames a stream, `text` reads keys, `login` runs the login machine, `cdb` runs commands against small disks, `session` sends PDUs
//! of every kind to a session that has logged in. The input of each function is bytes; its module's header says how they are read. All
//! functions accept any input: one that is too short is read as if zeros followed.
//!
//! Assertions are intended here: a false property ends the run.

mod cdb;
mod disk;
mod login;
mod pdu;
mod session;
mod text;

pub use cdb::cdb;
pub use login::login;
pub use pdu::pdu;
pub use session::session;
pub use text::text;

/// An input, read from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.take(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    /// At most `n` bytes; fewer if the input ends.
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
