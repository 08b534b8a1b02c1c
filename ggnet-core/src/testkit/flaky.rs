//! [`Flaky`]: wraps any port so that its calls fail as a test plans.
//!
//! ```
//! # use std::sync::Arc;
//! # use ggnet_core::{ErrorKind, ports::BootFileStore as _, testkit::{flaky::{Fault, FaultPlan, Flaky}, memory::MemoryBootFiles}};
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let plan = FaultPlan::new();
//! let files = Flaky::new(Arc::new(MemoryBootFiles::new()), &plan);
//! plan.add(Fault::on("ensure").nth(2).fails(ErrorKind::Unavailable)); // the second one from here on
//! plan.add(Fault::on("boot_file.remove").loses_the_answer(ErrorKind::Timeout)); // done, but the response is lost
//! assert!(files.list().await.is_ok());
//! # });
//! ```
//!
//! One plan can be shared by the wrappers of all ports: then `Fault::any().nth(k)` fails the k-th call of them all, and a loop over k
//! visits every step of the code that uses them. [`Matching::kills`] stops everything at that step, as the death of our process does.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::suite::cut_after;
use crate::{
    error::{Error, ErrorKind, Result},
    wrap::{Call, Layer, Op, Wrapped},
};

/// A port whose calls fail as a [`FaultPlan`] says.
pub type Flaky<P> = Wrapped<P, FaultLayer>;

impl<P: ?Sized> Flaky<P> {
    /// Wraps `inner` so that `plan` controls its calls.
    #[must_use]
    pub fn new(inner: Arc<P>, plan: &FaultPlan) -> Self {
        Self::with_layer(inner, FaultLayer { plan: plan.clone() })
    }
}

/// The layer of [`Flaky`].
#[derive(Clone, Debug)]
pub struct FaultLayer {
    plan: FaultPlan,
}

/// Which calls fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    on: Option<String>,
    which: Which,
    effect: Effect,
    matched: u64,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Every,
    First(u64),
    Nth(u64),
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    Fail(ErrorKind),
    LoseTheAnswer(ErrorKind),
    Cut(usize),
    Delay(Duration),
    Hang,
    Kill(usize),
}

/// A fault without an effect yet.
#[derive(Clone, Debug)]
pub struct Matching {
    on: Option<String>,
    which: Which,
}

impl Fault {
    /// Calls of this method: `ensure` of every port, or `target.ensure` of one (the ports' names are those of
    /// [`Op::port`]).
    #[must_use]
    pub fn on(method: &str) -> Matching {
        Matching { on: Some(method.to_owned()), which: Which::Every }
    }

    /// Calls of every method.
    #[must_use]
    pub const fn any() -> Matching {
        Matching { on: None, which: Which::Every }
    }

    /// Whether the fault applies to this call; counts the calls that match.
    fn strikes(&mut self, op: &Op) -> bool {
        let meant = match self.on.as_deref().map(|on| on.split_once('.').ok_or(on)) {
            None => true,
            Some(Ok((port, name))) => port == op.port && name == op.name,
            Some(Err(name)) => name == op.name,
        };
        if !meant {
            return false;
        }
        self.matched += 1;
        match self.which {
            Which::Every => true,
            Which::First(n) => self.matched <= n,
            Which::Nth(n) => self.matched == n,
        }
    }
}

impl Matching {
    /// Only the `n`-th of them, from 1 on, counted from when the fault is added.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.which = Which::Nth(n);
        self
    }

    /// Only the first `n` of them.
    #[must_use]
    pub fn first(mut self, n: u64) -> Self {
        self.which = Which::First(n);
        self
    }

    fn with(self, effect: Effect) -> Fault {
        Fault { on: self.on, which: self.which, effect, matched: 0 }
    }

    /// They fail, and nothing is done.
    #[must_use]
    pub fn fails(self, kind: ErrorKind) -> Fault {
        self.with(Effect::Fail(kind))
    }

    /// They are done, and then fail: the response was lost.
    #[must_use]
    pub fn loses_the_answer(self, kind: ErrorKind) -> Fault {
        self.with(Effect::LoseTheAnswer(kind))
    }

    /// They are polled `polls` times and dropped, and fail with `Timeout`: partly done.
    #[must_use]
    pub fn is_cut_after(self, polls: usize) -> Fault {
        self.with(Effect::Cut(polls))
    }

    /// They start only after this time.
    #[must_use]
    pub fn is_delayed(self, by: Duration) -> Fault {
        self.with(Effect::Delay(by))
    }

    /// They never start and never end.
    #[must_use]
    pub fn hangs(self) -> Fault {
        self.with(Effect::Hang)
    }

    /// They are polled `polls` times; then that call and every later one through the plan hangs, as if our process had died here.
    /// [`FaultPlan::killed`] returns at that moment; drop the objects that use the ports and open the worlds again.
    #[must_use]
    pub fn kills(self, polls: usize) -> Fault {
        self.with(Effect::Kill(polls))
    }
}

/// The faults to come, and a count of the calls. Cloning gives another handle to the same plan.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    inner: Arc<Mutex<Inner>>,
    dead: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    faults: Vec<Fault>,
    calls: Vec<Op>,
}

impl FaultPlan {
    /// A plan without faults.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::default(), dead: watch::Sender::new(false) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault. If several match one call, the one that was added first takes effect.
    pub fn add(&self, fault: Fault) -> &Self {
        self.inner().faults.push(fault);
        self
    }

    /// Removes every fault; the counts stay, and a killed process stays dead.
    pub fn clear(&self) -> &Self {
        self.inner().faults.clear();
        self
    }

    /// How often this method (`ensure`, or `target.ensure`) was called.
    #[must_use]
    pub fn calls(&self, method: &str) -> usize {
        let mut probe = Fault::on(method).hangs();
        self.inner().calls.iter().filter(|op| probe.strikes(op)).count()
    }

    /// Every call in its order.
    #[must_use]
    pub fn log(&self) -> Vec<Op> {
        self.inner().calls.clone()
    }

    /// Returns when a fault has killed the process.
    pub async fn killed(&self) {
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    fn next(&self, op: &Op) -> Option<Effect> {
        let mut inner = self.inner();
        inner.calls.push(op.clone());
        // Each fault counts its own matches, so all of them are evaluated.
        let mut effect = None;
        for fault in &mut inner.faults {
            if fault.strikes(op) && effect.is_none() {
                effect = Some(fault.effect);
            }
        }
        effect
    }
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self::new()
    }
}

fn error(op: &Op, kind: ErrorKind, what: &str) -> Error {
    let message = format!("Injected fault: {} {} {what}", op.port, op.name);
    Error::new(kind, message).with_backend(op.backend).with_operation(op.name)
}

impl Layer for FaultLayer {
    async fn around<T: Send + 'static>(
        &self,
        op: Op,
        call: impl Fn() -> Call<T> + Send + Sync + 'static,
    ) -> Result<T> {
        if *self.plan.dead.borrow() {
            return pending().await;
        }
        match self.plan.next(&op) {
            None => call().await,
            Some(Effect::Fail(kind)) => Err(error(&op, kind, "failed")),
            Some(Effect::LoseTheAnswer(kind)) => {
                call().await?;
                Err(error(&op, kind, "was done, but the answer was lost"))
            }
            Some(Effect::Cut(polls)) => match cut_after(polls, call()).await {
                Some(result) => result,
                None => Err(error(&op, ErrorKind::Timeout, "was cut short")),
            },
            Some(Effect::Delay(by)) => {
                tokio::time::sleep(by).await;
                call().await
            }
            Some(Effect::Hang) => pending().await,
            Some(Effect::Kill(polls)) => {
                // What the call had done by then stays done; its response never comes.
                let _ = cut_after(polls, call()).await;
                self.plan.dead.send_replace(true);
                pending().await
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
mod tests {
    use super::*;
    use crate::{
        nouns::{DeviceType, MachineId, ResourceId},
        ports::{Completeness, DhcpBackend, DhcpBackendExt as _, DhcpHost},
        testkit::memory::MemoryDhcp,
    };

    fn host() -> DhcpHost {
        DhcpHost {
            id: ResourceId::machine(MachineId::generate()),
            name: "pc-1".parse().unwrap(),
            macs: vec!["52:54:00:00:00:01".parse().unwrap()],
            fixed_address: None,
            device_type: DeviceType::X64,
        }
    }

    fn flaky() -> (FaultPlan, Flaky<MemoryDhcp>) {
        let plan = FaultPlan::new();
        let flaky = Flaky::new(Arc::new(MemoryDhcp::new()), &plan);
        (plan, flaky)
    }

    #[tokio::test]
    async fn a_failed_call_did_nothing_and_a_lost_answer_did() {
        let (plan, dhcp) = flaky();
        let host = host();
        plan.add(Fault::on("dhcp.apply").nth(1).fails(ErrorKind::Full));
        plan.add(Fault::on("apply").nth(2).loses_the_answer(ErrorKind::Timeout));
        plan.add(Fault::on("target.apply").fails(ErrorKind::Internal));
        assert_eq!(dhcp.ensure(&host).await.unwrap_err().kind(), ErrorKind::Full);
        assert!(dhcp.list().await.unwrap().is_empty());
        assert_eq!(dhcp.ensure(&host).await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(dhcp.list().await.unwrap()[0].completeness, Completeness::Whole);
        dhcp.ensure(&host).await.unwrap();
        assert_eq!((plan.calls("apply"), plan.calls("dhcp.apply"), plan.calls("target.apply")), (3, 3, 0));
    }

    #[tokio::test]
    async fn a_cut_call_did_a_part() {
        let (plan, dhcp) = flaky();
        plan.add(Fault::on("apply").nth(1).is_cut_after(1));
        assert_eq!(dhcp.ensure(&host()).await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(dhcp.list().await.unwrap()[0].completeness, Completeness::Partial);
    }

    #[tokio::test]
    async fn a_killed_process_does_no_more_and_the_next_finds_what_it_did() {
        let (plan, dhcp) = flaky();
        let world = dhcp.inner().world();
        let host = host();
        dhcp.ensure(&host).await.unwrap();
        plan.add(Fault::on("apply").kills(1));
        let gone = host.id.clone();
        let task = tokio::spawn(async move { dhcp.remove(&gone).await });
        plan.killed().await;
        assert!(!task.is_finished());
        task.abort();
        let next = MemoryDhcp::over(&world);
        assert_eq!(next.list().await.unwrap()[0].completeness, Completeness::Partial);
        next.ensure(&host).await.unwrap();
        assert_eq!(next.list().await.unwrap()[0].completeness, Completeness::Whole);
    }
}
