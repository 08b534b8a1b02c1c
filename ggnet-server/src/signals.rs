//! The signals that stop a server or a helper cleanly: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (its terminal was closed).

use ggnet_core::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches these signals from its creation on. If SIGHUP was ignored (`nohup`), it stays ignored, so that the server outlives its terminal.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Stop {
    /// Must be called within a tokio runtime.
    pub(crate) fn catch() -> Result<Self> {
        let catch = |kind, name: &str| signal(kind).map_err(|e| Error::io(format!("catching {name}"), e));
        let hangup = (!hangup_is_ignored()).then(|| catch(SignalKind::hangup(), "SIGHUP")).transpose()?;
        Ok(Self {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "SIGINT")?,
            hangup,
        })
    }

    /// Waits for the first one.
    pub(crate) async fn wait(&mut self) {
        let Self { terminate, interrupt, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
    }
}

/// Reads the mask of ignored signals (see proc(5)); SIGHUP is its first bit.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
