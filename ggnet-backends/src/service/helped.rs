//! [`Helped`]: a daemon that systemd manages, through the helper.

use std::path::Path;

use ggnet_core::{Error, Result};

use super::State;
use crate::helper::{Action, Helper, SOCKET};

pub(super) struct Helped {
    helper: Helper,
    unit: String,
}

impl Helped {
    pub(super) fn new(socket: Option<&Path>, unit: &str) -> Self {
        Self { helper: Helper::at(socket.unwrap_or(Path::new(SOCKET))), unit: unit.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.unit
    }

    pub(super) fn label(&self) -> String {
        format!("unit {}", self.unit)
    }

    pub(super) async fn state(&self) -> Result<State> {
        self.ask(|helper, unit| helper.state(unit)).await
    }

    pub(super) async fn start(&self) -> Result<()> {
        self.ask(|helper, unit| helper.change(unit, Action::Start)).await
    }

    pub(super) async fn restart(&self) -> Result<()> {
        self.ask(|helper, unit| helper.change(unit, Action::Restart)).await
    }

    /// On a blocking thread, where the call completes even if the caller is gone.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Helper, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (helper, unit) = (self.helper.clone(), self.unit.clone());
        let asked = tokio::task::spawn_blocking(move || question(&helper, &unit)).await;
        asked.map_err(|e| Error::internal("The task that calls the helper panicked").with_source(e))?
    }
}
