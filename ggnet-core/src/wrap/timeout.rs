//! [`Timeout`]: no call waits for ever.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Call, Layer, Op, Wrapped};
use crate::error::{Error, ErrorKind, Result};

/// A port whose calls end with [`ErrorKind::Timeout`] when they take too long.
///
/// The call under way is dropped; what then exists the port's `list` tells, and the next `ensure` completes or `remove` removes it.
/// `convert` of an image has no limit of its own accord, since it takes as long as the image is large.
pub type Timeout<P> = Wrapped<P, TimeoutLayer>;

/// The layer of [`Timeout`].
#[derive(Clone, Debug)]
pub struct TimeoutLayer {
    limit: Duration,
    special: HashMap<&'static str, Option<Duration>>,
}

impl<P: ?Sized> Timeout<P> {
    /// Limits every call but `convert` to `limit`.
    #[must_use]
    pub fn new(inner: Arc<P>, limit: Duration) -> Self {
        let special = HashMap::from([("convert", None)]);
        Self::with_layer(inner, TimeoutLayer { limit, special })
    }

    /// Gives one method a limit of its own; `None`: no limit.
    #[must_use]
    pub fn method(mut self, name: &'static str, limit: Option<Duration>) -> Self {
        self.layer.special.insert(name, limit);
        self
    }
}

impl Layer for TimeoutLayer {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        op: Op,
        call: impl Fn() -> Call<'a, T> + Send + Sync + 'a,
    ) -> Result<T> {
        let Some(limit) = self.special.get(op.name).copied().unwrap_or(Some(self.limit)) else {
            return call().await;
        };
        match tokio::time::timeout(limit, call()).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("{} {} did not answer within {limit:?}", op.port, op.name);
                Err(Error::new(ErrorKind::Timeout, message).with_backend(op.backend).with_operation(op.name))
            }
        }
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use super::*;
    use crate::{
        ports::{DhcpBackend as _, Health},
        testkit::{
            flaky::{Fault, FaultPlan, Flaky},
            memory::MemoryDhcp,
        },
    };

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_ends() {
        let plan = FaultPlan::new();
        let flaky = Flaky::new(Arc::new(MemoryDhcp::new()), &plan);
        let dhcp = Timeout::new(Arc::new(flaky), Duration::from_secs(5)).method("list", None);
        assert!(dhcp.list().await.unwrap().is_empty());
        plan.add(Fault::any().hangs());
        let e = dhcp.remove(&"a".parse().unwrap(), crate::ports::Removal::Force).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Timeout);
        assert!(e.is_retryable());
        assert!(matches!(dhcp.health().await, Health::Down(why) if why.contains("did not answer")));
        dhcp.shutdown().await;
        let unlimited = tokio::time::timeout(Duration::from_secs(3600), dhcp.list()).await;
        assert!(unlimited.is_err(), "this method has no limit");
    }
}
