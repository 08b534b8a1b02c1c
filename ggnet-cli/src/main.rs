//! The binary `ggnet`: parses the command line, runs one command, exits with its exit code.
//!
//! It is a client of the HTTP API; all rules are in the server. It also contains the guest kit, which needs no server.

// These macros panic if the reader of the pipe has exited; the functions of `output` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod commands;
mod credentials;
mod failure;
mod guest_kit;
mod options;
mod output;
mod time;

use std::process::ExitCode;

// One request at a time: a second thread would have nothing to do.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().collect()) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let format = options.global.output;
    match commands::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::report(&failure, format);
            failure.exit_code()
        }
    }
}
