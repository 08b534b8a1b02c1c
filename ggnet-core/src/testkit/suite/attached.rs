//! The gate and the observer that the suites attach: the gate gives the configured verdicts, and both record what they saw.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use crate::ports::{Login, LoginGate, LoginVerdict, Observation, Observer};

/// A gate that a case controls.
pub struct Gate {
    serving: AtomicBool,
    verdict: Mutex<LoginVerdict>,
    asked: Mutex<Vec<Login>>,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            serving: AtomicBool::new(true),
            verdict: Mutex::new(LoginVerdict::Accept),
            asked: Mutex::default(),
        })
    }

    pub fn serve(&self, serving: bool) {
        self.serving.store(serving, Ordering::SeqCst);
    }

    pub fn answer(&self, verdict: LoginVerdict) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }

    pub fn asked(&self) -> Vec<Login> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl LoginGate for Gate {
    fn serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    async fn login(&self, login: Login) -> LoginVerdict {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(login);
        tokio::task::yield_now().await;
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An observer that records observations.
#[derive(Default)]
pub struct Witness {
    seen: Mutex<Vec<Observation>>,
}

impl Witness {
    pub fn seen(&self) -> Vec<Observation> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until such an observation was made: observations may come a moment after their cause.
    pub async fn sees(&self, what: &str, like: impl Fn(&Observation) -> bool) {
        eventually(what, || async { self.seen().iter().any(&like) }).await;
    }
}

impl Observer for Witness {
    fn observe(&self, observation: Observation) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(observation);
    }
}

/// Waits up to twenty seconds until the condition holds: long enough on the slowest machine. No duration is asserted.
pub async fn eventually<F: Future<Output = bool>>(what: &str, so: impl Fn() -> F) {
    for _ in 0..2000 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("It did not happen in time: {what}");
}
