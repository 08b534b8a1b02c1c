//! The backends that leave files for others to serve, against those others and against hosts that refuse: a full disk, a read-only
//! folder, links that somebody planted, a process killed at any moment. (Their ports' suites: `behaviour`.)

#![expect(
    clippy::disallowed_methods,
    reason = "the servers, clients and tools under test are programs of the host"
)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "../netns/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod netns;
#[path = "../sandbox/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod sandbox;

mod killed;
mod reflink;
mod tftpd;
