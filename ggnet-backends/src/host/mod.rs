//! What this host is like: the building blocks of the check that a server runs before it starts.
//!
//! Every check is a plain function that looks, changes nothing and returns a [`Finding`]: what was looked at, why it is good or bad,
//! and the line that mends it. What a finding means for a start-up is the caller's to decide. All of them read files of `/proc`, `/sys`
//! and the disk and may block for milliseconds: call them on a blocking thread.

mod apparmor;
mod clock;
mod dhcpd;
mod firewall;
mod folder;
mod interfaces;
mod kept_space;
mod kernel_target;
mod limits;
mod port;
mod privilege;
mod program;
mod reflinks;
mod space;
mod tftp;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use apparmor::{Confined, DHCPD, DNSMASQ, apparmor};
pub use clock::clock;
pub use dhcpd::dhcpd_includes;
pub use firewall::firewall;
pub use folder::writable_folder;
pub use interfaces::{Address, Interface, interface, interfaces};
pub use kept_space::kept_space;
pub use kernel_target::kernel_target;
pub use limits::{open_files, raise_open_files};
pub use port::{Holder, Transport, holders, port, port_of};
pub use privilege::low_port;
pub use program::{find_program, program};
pub use reflinks::reflinks;
pub use space::{Space, free_space, space};
pub use tftp::{tftp_folder, tftp_server};

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but somebody should look at it.
    Warn,
    /// It will not work.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was looked at: `UDP port 69`.
    pub what: String,
    /// What is so, in one sentence.
    pub why: String,
    /// What to do: a command line where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), why: why.into(), mend: None }
    }

    /// Not as it should be, and what to do.
    pub fn bad(
        level: Level,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { level, what: what.into(), why: why.into(), mend: Some(mend.into()) }
    }

    /// It could not be found out.
    fn unknown(what: impl Into<String>, why: &dyn fmt::Display) -> Self {
        Self {
            level: Level::Warn,
            what: what.into(),
            why: format!("It could not be found out: {why}"),
            mend: None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}  {}: {}", self.level, self.what, self.why)?;
        match &self.mend {
            Some(mend) => write!(f, "\n      {mend}"),
            None => Ok(()),
        }
    }
}
