//! [`Helper`]: the asking end. A connection for each question, plain blocking calls: whoever asks stands on a blocking thread.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{Action, Answer, MAX_ANSWER, Request, decode, encode, too_long};
use crate::{daemon::State, lio::Op};

/// How long to wait for a place in the helper's queue.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take: a start by systemd (90 s), the wait for its start limit, and some.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(180);

/// The helper behind a socket. Cheap to clone; asks nobody until it is used.
#[derive(Clone, Debug)]
pub struct Helper {
    socket: PathBuf,
}

impl Helper {
    /// The helper that listens there.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether somebody listens there whom we may ask. Blocking.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn reach(&self) -> Result<()> {
        self.connect().map(drop).map_err(|e| self.failed(e))
    }

    /// Has the kernel load its iSCSI target. Blocking.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn load_target(&self) -> Result<()> {
        self.done(&Request::LoadTarget)
    }

    /// Applies changes to one target's objects. Blocking.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn apply(&self, target: &ResourceId, ops: &[Op]) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        self.done(&Request::Apply { target: target.clone(), ops: ops.to_vec() })
    }

    /// Whether a daemon runs. Blocking.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn state(&self, unit: &str) -> Result<State> {
        match self.ask(&Request::Unit { unit: unit.to_owned(), action: Action::State })? {
            Answer::State(state) => Ok(state),
            _ => Err(self.strange()),
        }
    }

    /// Starts or restarts a daemon. Blocking.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn change(&self, unit: &str, action: Action) -> Result<()> {
        self.done(&Request::Unit { unit: unit.to_owned(), action })
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(self.strange()),
        }
    }

    /// Asks, and waits for the answer. Blocking.
    ///
    /// # Errors
    /// `Unavailable` if nobody listens, `Permission` if we are not among those who may ask or the helper refuses, `Timeout` if no
    /// answer comes, else what the helper says, with its kind.
    pub fn ask(&self, request: &Request) -> Result<Answer> {
        let line = encode(request)?;
        let answer = self.exchange(&line).map_err(|e| self.failed(e))?;
        match decode(&answer)? {
            Answer::Failed(e) => Err(e),
            answer => Ok(answer),
        }
    }

    fn connect(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_write_timeout(Some(CONNECT))?;
        socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        socket.connect(&SockAddr::unix(&self.socket)?)?;
        Ok(socket)
    }

    fn exchange(&self, line: &[u8]) -> io::Result<Vec<u8>> {
        let mut socket = self.connect()?;
        // Who is refused is told so without being read: the answer may be there when the question can no longer be sent.
        let sent = socket.write_all(line);
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while answer.last() != Some(&b'\n') {
            match socket.read(&mut piece) {
                Ok(0) if answer.is_empty() => return sent.and(Err(io::ErrorKind::ConnectionReset.into())),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => answer.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if answer.len() > MAX_ANSWER {
                return Err(too_long(MAX_ANSWER));
            }
        }
        Ok(answer)
    }

    fn failed(&self, e: io::Error) -> Error {
        use io::ErrorKind as Io;
        let at = self.socket.display();
        let (kind, message, hint) = match e.kind() {
            Io::NotFound | Io::ConnectionRefused => (
                ErrorKind::Unavailable,
                format!("The helper is not running: nothing listens on {at}"),
                "systemctl enable --now ggnet-helper.socket",
            ),
            Io::PermissionDenied => (
                ErrorKind::Permission,
                format!("No permission to connect to the helper on {at}"),
                "It accepts root and the server's user: see SocketGroup= of ggnet-helper.socket, --user of ggnet-helper.service",
            ),
            Io::WouldBlock | Io::TimedOut => (
                ErrorKind::Timeout,
                format!("No response from the helper on {at}"),
                "journalctl -u ggnet-helper shows what it is doing",
            ),
            _ => (
                ErrorKind::Unavailable,
                format!("The helper on {at} closed the connection"),
                "journalctl -u ggnet-helper shows why",
            ),
        };
        Error::new(kind, message).with_subject(at.to_string()).with_hint(hint).with_reason(e)
    }

    fn strange(&self) -> Error {
        Error::internal(format!(
            "The helper on {} sent a response to a different request",
            self.socket.display()
        ))
    }
}
