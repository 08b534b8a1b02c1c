//! The backends that write files for other programs, with these programs and on hosts with problems: a full disk, a read-only folder,
//! planted links, a process that is killed at a random time. (The suites of their ports: `behaviour`.)

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
