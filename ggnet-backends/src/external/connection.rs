//! [`Connection`]: a port's connection to its program, which is started when none runs.
//!
//! ```text
//!   none ──call, or open──▶ started ──hello fits──▶ alive ──▶ calls
//!    ▲ │                       └──it does not──┐      └──ended──┐
//!    │ └──call too early: `Unavailable`        ▼                ▼
//!    └──────────── wait: none if the last program was useful, otherwise 1, 2, 4 … 60 seconds
//! ```
//! Invariants: at most one program runs; its capabilities are those of the first hello, and a program that later declares others is rejected;
//! after the shutdown no program is started.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::InstanceId,
    ports::{Health, Listed, Observer},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use super::{
    ExternalConfig, NAME,
    session::{Attached, Session},
    wire::{Hello, HelloAnswer, Nothing, PROTOCOL},
};
use crate::run::{Invocation, SystemRunner, shown};

/// The hint if the program cannot be started.
const HINT: &str = "see `command` in the configuration";

/// See the module.
pub(super) struct Connection {
    config: ExternalConfig,
    port: &'static str,
    instance: InstanceId,
    check: bool,
    runner: SystemRunner,
    observer: Attached,
    capabilities: OnceLock<Value>,
    // Held while a program is started, on purpose: other callers wait for the same program.
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    session: Option<Arc<Session>>,
    /// The number of consecutive starts and programs that were of no use.
    failures: u32,
    /// The earliest time of the next start, and the reason for the delay.
    again: Option<(Instant, String)>,
    closed: bool,
}

impl Current {
    fn failed(&mut self, proven: bool, why: &Error) {
        self.failures = if proven { 1 } else { self.failures.saturating_add(1) };
        let wait = back_off(self.failures);
        tracing::warn!(error = %why.report(), ?wait, "the next call will restart the backend's program");
        self.again = Some((Instant::now() + wait, why.explain()));
    }
}

/// The delay before the next start after this number of consecutive failures.
fn back_off(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => Duration::from_secs(2_u64.saturating_pow(n - 2).min(60)),
    }
}

impl Connection {
    /// Starts the program and reads its capabilities.
    ///
    /// # Errors
    /// `Invalid` settings; `NotFound` if the program does not exist; `Unsupported` if it uses another version of the protocol or is for
    /// another port; the error with which it rejects the hello; `Timeout`, `Unavailable` if it does not respond or ends.
    pub(super) async fn open(
        config: ExternalConfig,
        port: &'static str,
        instance: InstanceId,
    ) -> Result<Self> {
        Self::open_for(config, port, instance, false).await
    }

    async fn open_for(
        config: ExternalConfig,
        port: &'static str,
        instance: InstanceId,
        check: bool,
    ) -> Result<Self> {
        let (program, _) = config.program()?;
        let runner = SystemRunner::new()?;
        if let Err(e) = runner.resolve(Path::new(program), HINT).await
            && e.kind() == ErrorKind::Unavailable
        {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("Program {} does not exist", shown(program)),
            )
            .with_backend(NAME)
            .with_hint(HINT));
        }
        let connection = Self {
            config,
            port,
            instance,
            check,
            runner,
            observer: Attached::default(),
            capabilities: OnceLock::new(),
            current: Mutex::default(),
        };
        connection.session().await.map_err(|e| e.with_backend(NAME).with_operation("hello"))?;
        Ok(connection)
    }

    /// The capabilities that it declared.
    pub(super) fn capabilities<T: DeserializeOwned>(&self) -> Result<T> {
        let said = self.capabilities.get().cloned().unwrap_or_default();
        serde_json::from_value(said).map_err(|e| {
            Error::new(
                ErrorKind::Unsupported,
                format!("The program declares invalid capabilities: {}", shown(&e.to_string())),
            )
            .with_backend(NAME)
            .with_operation("hello")
        })
    }

    /// Sets the observer of the program. Only the first call has an effect.
    pub(super) fn attach(&self, observer: Arc<dyn Observer>) {
        // A second call violates the contract of the port and changes nothing.
        let _ = self.observer.set(observer);
    }

    /// Sends a request, to a new program if none runs.
    ///
    /// # Errors
    /// Those of the program; `Timeout`; `Unavailable` if it has ended or cannot be started now; `Internal` if its response is not valid for
    /// this method.
    ///
    /// # Cancellation
    /// Either the request was not sent, or it continues in the program, which gets a cancel message.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        subject: &str,
        params: impl Serialize,
    ) -> Result<T> {
        let called = async {
            let session = self.session().await?;
            let answer = session.call(method, params, self.config.deadline()).await?;
            serde_json::from_value(answer).map_err(|e| {
                Error::internal(format!(
                    "The program's response to {method} is invalid: {}",
                    shown(&e.to_string())
                ))
            })
        };
        called.await.map_err(|e| {
            let e = if subject.is_empty() { e } else { e.with_subject(subject) };
            e.with_backend(NAME).with_operation(method)
        })
    }

    /// A call whose response only confirms that it is done.
    pub(super) async fn tell(
        &self,
        method: &'static str,
        subject: &str,
        params: impl Serialize,
    ) -> Result<()> {
        self.call::<Value>(method, subject, params).await.map(|_| ())
    }

    /// The objects that it lists.
    pub(super) async fn list(&self) -> Result<Vec<Listed>> {
        self.call("list", "", Nothing {}).await
    }

    /// The health that it reports; down if it does not respond.
    pub(super) async fn health(&self) -> Health {
        self.call("health", "", Nothing {}).await.unwrap_or_else(|e| {
            let hint = e.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            Health::Down(format!("{}{hint}", e.explain()))
        })
    }

    /// Ends the program and prevents further starts.
    pub(super) async fn shut_down(&self) {
        let session = {
            let mut current = self.current.lock().await;
            current.closed = true;
            current.session.take()
        };
        if let Some(session) = session {
            session.shut_down(Duration::from_secs(self.config.shutdown_s)).await;
        }
    }

    async fn session(&self) -> Result<Arc<Session>> {
        let mut current = self.current.lock().await;
        if current.closed {
            return Err(Error::new(ErrorKind::Unavailable, format!("Backend {NAME} is shut down")));
        }
        if let Some(session) = current.session.take() {
            if session.is_alive() {
                return Ok(Arc::clone(current.session.insert(session)));
            }
            let why = session.gone().await;
            current.failed(session.is_proven(), &why);
        }
        if let Some((at, why)) = &current.again {
            let left = at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let message = format!("{why}; it will not be restarted for another {} s", left.as_secs() + 1);
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
        match self.start().await {
            Ok(session) => Ok(Arc::clone(current.session.insert(Arc::new(session)))),
            Err(e) => {
                current.failed(false, &e);
                Err(e)
            }
        }
    }

    async fn start(&self) -> Result<Session> {
        let (program, arguments) = self.config.program()?;
        let invocation = Invocation::new(program, HINT).args(arguments);
        let observer = Arc::clone(&self.observer);
        let session = Session::start(&self.runner, &invocation, observer, self.config.max_line).await?;
        let hello = Hello {
            protocol: PROTOCOL,
            port: self.port,
            instance: &self.instance,
            config: &self.config.config,
            check: self.check,
        };
        let answer = session.call("hello", hello, self.config.deadline()).await?;
        let refused = |why: String| {
            Err(Error::new(ErrorKind::Unsupported, format!("Program {}: {why}", shown(program)))
                .with_hint(HINT))
        };
        let answer: HelloAnswer = match serde_json::from_value(answer) {
            Ok(answer) => answer,
            Err(e) => return refused(format!("its response to hello is invalid: {}", shown(&e.to_string()))),
        };
        if answer.protocol != PROTOCOL {
            return refused(format!(
                "it uses version {} of the protocol, but GGnet uses version {PROTOCOL} (docs/backend-authors.md describes the changes)",
                answer.protocol
            ));
        }
        if answer.port != self.port {
            return refused(format!(
                "it is a backend for the port {}, but {} was requested",
                shown(&answer.port),
                self.port
            ));
        }
        if *self.capabilities.get_or_init(|| answer.capabilities.clone()) != answer.capabilities {
            return refused(
                "its capabilities differ from those of its first start; restart GGnet".to_owned(),
            );
        }
        Ok(session)
    }
}

/// Starts a program only for its hello, then ends it, and returns the declared capabilities. For a check while a server may be running.
///
/// # Errors
/// Those with which a server would reject the program at start.
pub async fn look(config: ExternalConfig, port: &'static str, instance: InstanceId) -> Result<Value> {
    let connection = Connection::open_for(config, port, instance, true).await?;
    connection.shut_down().await;
    Ok(connection.capabilities.get().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_again_is_at_once_and_later_ones_wait_longer() {
        let seconds: Vec<u64> = (0..10).chain([99]).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
