//! The binary `ggnet`: reads the command line, runs one command, ends with its exit code.
//!
//! It is a client of the HTTP API, and every rule is the server's. Beside that it carries the guest kit, which needs no server.

// They panic where nobody reads what they write: `output` does not.
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

// One request at a time: a second thread would only wait beside the first.
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
