//! [`Unit`]: a daemon that systemd manages, through D-Bus (org.freedesktop.systemd1).
//!
//! A start or restart is a job: the call returns at once, and the job has ended when the unit's `Job` is 0. The unit's `ActiveState` then
//! shows whether it worked. A unit that failed before is reset first, because systemd may have given up on it; our restarts respect the
//! start limit of the unit.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use ggnet_core::{Error, ErrorKind, Result};
use tokio::sync::Mutex;
use zbus::{Connection, OwnedObjectPath, connection::Builder};

use super::{State, limit::StartLimit};

/// Time limit for a job; Debian's dhcpd script alone sleeps two seconds.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Time limit for the connection to D-Bus, and for a response (the default of D-Bus's own library). A D-Bus that never responds must not
/// block the unit's start limit forever.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(25);
/// How often a job is checked.
const LOOK: Duration = Duration::from_millis(20);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
}

// Nothing is cached, because a cached state could be outdated.
#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait UnitObject {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn start_limit_burst(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"), name = "StartLimitIntervalUSec")]
    fn start_limit_interval(&self) -> zbus::Result<u64>;
}

pub(super) struct Unit {
    name: String,
    /// The last connection that worked.
    bus: std::sync::Mutex<Option<Connection>>,
    /// Held during a restart, because the next restart must count it.
    limit: Mutex<StartLimit>,
}

impl Unit {
    pub(super) fn new(name: &str) -> Result<Self> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.@\\:".contains(&b);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(good) || !name.contains('.') {
            let message = format!("{name:?} is not a systemd unit's name, such as dnsmasq.service");
            return Err(Error::invalid("service.unit", message));
        }
        Ok(Self { name: name.to_owned(), bus: std::sync::Mutex::default(), limit: Mutex::default() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn label(&self) -> String {
        format!("unit {}", self.name)
    }

    /// The manager and the unit, over the existing connection. It ends with the D-Bus daemon to which it was made: if it fails, a new
    /// connection shows the actual problem.
    async fn reach(&self) -> Result<(ManagerProxy<'static>, UnitObjectProxy<'static>)> {
        let last = self.bus.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(bus) = last
            && let Ok(reached) = self.reach_over(&bus).await
        {
            return Ok(reached);
        }
        let unavailable = |why: String| {
            Error::new(ErrorKind::Unavailable, format!("No response from the system's D-Bus: {why}"))
                .with_hint(
                    "apt-get install dbus, or systemctl restart dbus; or set service.manager to \"process\"",
                )
        };
        let connecting = Builder::system().method_timeout(ANSWER).build();
        let bus = tokio::time::timeout(CONNECT, connecting)
            .await
            .map_err(|_| unavailable(format!("it took longer than {CONNECT:?} to connect")))?
            .map_err(|e| unavailable(e.to_string()))?;
        let reached = self.reach_over(&bus).await?;
        *self.bus.lock().unwrap_or_else(PoisonError::into_inner) = Some(bus);
        Ok(reached)
    }

    async fn reach_over(
        &self,
        bus: &Connection,
    ) -> Result<(ManagerProxy<'static>, UnitObjectProxy<'static>)> {
        let manager = ManagerProxy::new(bus).await.map_err(|e| self.failed("connecting to systemd", e))?;
        let path = manager.load_unit(&self.name).await.map_err(|e| self.failed("loading it", e))?;
        let object = UnitObjectProxy::builder(bus).path(path).build().await;
        Ok((manager, object.map_err(|e| self.failed("loading it", e))?))
    }

    pub(super) async fn state(&self) -> Result<State> {
        let (_, object) = self.reach().await?;
        let state = object.active_state().await.map_err(|e| self.failed("asking its state", e))?;
        if state == "active" || state == "reloading" {
            return Ok(State::Running);
        }
        let loaded = object.load_state().await.map_err(|e| self.failed("asking its state", e))?;
        Ok(State::Stopped(match loaded.as_str() {
            "loaded" => format!("Unit {} is {state}", self.name),
            other => format!("Unit {} is {other}", self.name),
        }))
    }

    pub(super) async fn start(&self) -> Result<()> {
        if self.state().await? == State::Running {
            return Ok(());
        }
        self.change(false).await
    }

    pub(super) async fn restart(&self) -> Result<()> {
        self.change(true).await
    }

    /// Starts or restarts it within its start limit, and waits for the end of the job.
    async fn change(&self, restart: bool) -> Result<()> {
        let mut limit = self.limit.lock().await;
        let (manager, object) = self.reach().await?;
        let asking = |e| self.failed("asking its start limit", e);
        let burst = object.start_limit_burst().await.map_err(asking)?;
        let interval = Duration::from_micros(object.start_limit_interval().await.map_err(asking)?);
        let wait = limit.wait(Instant::now(), burst, interval);
        if !wait.is_zero() {
            tracing::info!(unit = self.name, ?wait, "waiting for systemd's start limit");
            tokio::time::sleep(wait).await;
        }
        if object.active_state().await.map_err(asking)? == "failed" {
            let reset = manager.reset_failed_unit(&self.name).await;
            reset.map_err(|e| self.failed("resetting its failure", e))?;
        }
        limit.started(Instant::now());
        let job = if restart {
            manager.restart_unit(&self.name, "replace").await
        } else {
            manager.start_unit(&self.name, "replace").await
        };
        job.map_err(|e| self.failed("starting it", e))?;
        let end = Instant::now() + START_TIMEOUT;
        while object.job().await.map_err(|e| self.failed("waiting for its start", e))?.0 != 0 {
            if Instant::now() > end {
                let message = format!("Unit {} did not start within {START_TIMEOUT:?}", self.name);
                return Err(Error::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(LOOK).await;
        }
        match self.state().await? {
            State::Running => Ok(()),
            State::Stopped(why) | State::Suspended(why) => {
                Err(Error::new(ErrorKind::Unavailable, format!("{why} after it was started"))
                    .with_hint(format!("systemctl status {0}; journalctl -u {0} shows why", self.name)))
            }
        }
    }

    fn failed(&self, doing: &str, e: zbus::Error) -> Error {
        let denied = matches!(&e, zbus::Error::MethodError(name, ..)
            if name.ends_with(".AccessDenied") || name.ends_with(".InteractiveAuthorizationRequired"));
        let kind = if denied { ErrorKind::Permission } else { ErrorKind::Unavailable };
        let error = Error::new(kind, format!("Unit {}: {doing} failed", self.name)).with_reason(e);
        if denied {
            error.with_hint("Set service.manager to \"helper\", or run the server as root")
        } else {
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_units_name_is_taken() {
        assert!(Unit::new("isc-dhcp-server.service").is_ok());
        for bad in ["", "dnsmasq", "a b.service", "../x.service", "x.service;reboot"] {
            assert_eq!(Unit::new(bad).err().unwrap().field(), Some("service.unit"), "{bad:?}");
        }
    }
}
