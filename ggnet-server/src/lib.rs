//! GGnet's server as a library: configuration, wiring of backends, the HTTP API and the boot routes.
//!
//! A `main` of ten lines is enough: fill a [`Registry`] with backends (GGnet's own with `ggnet_backends::register`, and any others) and
//! pass it to [`main`].

// These macros panic if the reader of the pipe has exited; the functions of `say` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod backends;
pub mod check;
mod check_firewall;
pub mod config;
pub mod data_dir;
pub mod helper;
pub mod http;
pub mod image_files;
pub mod instance;
mod key;
mod listen;
mod log;
pub mod options;
mod say;
pub mod serve;
mod signals;
mod sockets;
pub mod token;
pub mod wiring;

use std::process::ExitCode;

use clap::Parser as _;
use ggnet_core::{Error, ErrorKind, registry::Registry};

use crate::{
    config::Config,
    options::{Command, KeyCommand, Options, TokenCommand},
};

/// Parses the command line and runs the command. Exit codes: 0 success, 1 failure, 2 wrong arguments or configuration, 3 `check` found
/// a problem that prevents machines from booting.
#[must_use]
pub fn main(registry: &Registry) -> ExitCode {
    let options = Options::parse();
    // `backends` must also work with a wrong configuration: it lists the allowed keys.
    let listing = matches!(options.command, Some(Command::Backends { .. }));
    let configuration = if listing { Ok(Config::default()) } else { options.configuration() };
    let config = match configuration {
        Ok(config) => config,
        Err(e) => return fail(&e, 2),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // One thread for each port call that may hang, and the same number for all other blocking work.
    let runtime = match runtime.enable_all().max_blocking_threads(1024).build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Error::io("starting the async runtime", e), 1),
    };
    let done = runtime.block_on(async {
        match options.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::serve(config, registry).await.map(|()| ExitCode::SUCCESS),
            Command::Helper(options) => helper::helper(&config, &options).await.map(|()| ExitCode::SUCCESS),
            Command::Check { lan, json } => check::check(&config, registry, lan.as_deref(), json).await,
            Command::Backends { json } => backends::list(registry, json).map(|()| ExitCode::SUCCESS),
            Command::Key { command: KeyCommand::Reset } => {
                key::reset(&config, registry).await.map(|()| ExitCode::SUCCESS)
            }
            Command::Token { command: TokenCommand::Reset } => {
                serve::reset_token(&config, registry).await.map(|()| ExitCode::SUCCESS)
            }
        }
    });
    // A blocking call that hangs (a dead disk) must not keep a stopped server alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    // Exit code 2: another start cannot correct a wrong configuration, so the systemd unit does not restart the server.
    done.unwrap_or_else(|e| fail(&e, if e.kind() == ErrorKind::Invalid { 2 } else { 1 }))
}

fn fail(e: &Error, code: u8) -> ExitCode {
    say::complain(&format!("error: {}", e.report()));
    if let Some(hint) = e.hint() {
        say::complain(&format!("  what to do: {hint}"));
    }
    ExitCode::from(code)
}
