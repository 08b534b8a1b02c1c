//! [`Helper`]: the client of the helper. One connection for each request, with blocking calls, because callers run on blocking threads.

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

/// Time limit for a place in the helper's queue.
const CONNECT: Duration = Duration::from_secs(10);
/// Time limit for a response: a start by systemd (90 s), the wait for its start limit, and a margin.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(180);

/// The helper behind a socket. Cheap to clone; connects only when it is used.
#[derive(Clone, Debug)]
pub struct Helper {
    socket: PathBuf,
}

impl Helper {
    /// The helper that listens on this socket.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket of the helper.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Checks that a helper listens on the socket and accepts us. Blocking.
    ///
    /// # Errors
    /// Those of [`Helper::ask`].
    pub fn reach(&self) -> Result<()> {
        self.connect().map(drop).map_err(|e| self.failed(e))
    }

    /// Makes the kernel load its iSCSI target. Blocking.
    ///
    /// # Errors
    /// Those of [`Helper::ask`].
    pub fn load_target(&self) -> Result<()> {
        self.done(&Request::LoadTarget)
    }

    /// Applies changes to the objects of one target. Blocking.
    ///
    /// # Errors
    /// Those of [`Helper::ask`].
    pub fn apply(&self, target: &ResourceId, ops: &[Op]) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        self.done(&Request::Apply { target: target.clone(), ops: ops.to_vec() })
    }

    /// Whether a daemon runs. Blocking.
    ///
    /// # Errors
    /// Those of [`Helper::ask`].
    pub fn state(&self, unit: &str) -> Result<State> {
        match self.ask(&Request::Unit { unit: unit.to_owned(), action: Action::State })? {
            Answer::State(state) => Ok(state),
            _ => Err(self.strange()),
        }
    }

    /// Starts or restarts a daemon. Blocking.
    ///
    /// # Errors
    /// Those of [`Helper::ask`].
    pub fn change(&self, unit: &str, action: Action) -> Result<()> {
        self.done(&Request::Unit { unit: unit.to_owned(), action })
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(self.strange()),
        }
    }

    /// Sends a request and waits for the response. Blocking.
    ///
    /// # Errors
    /// `Unavailable` if nothing listens, `Permission` if we are not allowed to connect or the helper rejects the request, `Timeout` if no
    /// response arrives, otherwise the helper's error, with its kind.
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
        // A rejected caller gets the response before its request is read: the response may already be there when the request can no longer
        // be sent.
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
