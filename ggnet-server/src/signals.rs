//! The signals that end a server or a helper cleanly: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (its terminal has closed).

use ggnet_core::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// All of them, caught from its making on.
pub(crate) struct Stop([Signal; 3]);

impl Stop {
    /// Must be called within a tokio runtime.
    pub(crate) fn catch() -> Result<Self> {
        let catch = |kind, name: &str| signal(kind).map_err(|e| Error::io(format!("catching {name}"), e));
        Ok(Self([
            catch(SignalKind::terminate(), "SIGTERM")?,
            catch(SignalKind::interrupt(), "SIGINT")?,
            catch(SignalKind::hangup(), "SIGHUP")?,
        ]))
    }

    /// Waits for the first one.
    pub(crate) async fn wait(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
