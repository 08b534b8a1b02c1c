//! The commands, one file per noun, and what they share: the client and the output.

mod audit;
mod guest_kit;
mod image;
mod image_version;
mod import;
mod job;
mod login;
mod machine;
mod session;
mod system;
mod target;
mod timeline;
mod watch;

use ggnet_core::nouns;

use crate::{
    client::Client,
    credentials::Credentials,
    failure::{Failure, Result},
    options::{Command, Global, Options},
    output::{Field, Output},
};

/// What every command needs.
pub struct Context {
    global: Global,
    /// Where results go.
    pub out: Output,
}

/// Runs one command.
pub async fn run(options: Options) -> Result<()> {
    let Options { global, command } = options;
    let out = Output::new(global.output, global.quiet, global.no_color);
    let context = Context { global, out };
    match command {
        Command::Login(o) => login::login(&context, &o).await,
        Command::Logout => login::logout(&context),
        Command::Machine(o) => machine::run(&context, o).await,
        Command::Image(o) => image::run(&context, o).await,
        Command::Session(o) => session::run(&context, o).await,
        Command::Target(o) => target::run(&context, o).await,
        Command::Job(o) => job::run(&context, o).await,
        Command::GuestKit(o) => guest_kit::run(&context, o),
        Command::Events(o) => system::events(&context, &o).await,
        Command::Audit(o) => audit::show(&context, &o).await,
        Command::Server(o) => system::server(&context, &o).await,
        Command::Completion(o) => system::completion(&context, &o),
    }
}

impl Context {
    /// A client of the server named on the command line, else of the stored one.
    pub fn client(&self) -> Result<Client> {
        let stored = Credentials::load()?;
        let server = self.global.server.clone().or_else(|| stored.as_ref().map(|c| c.server.clone()));
        let Some(server) = server else {
            return Err(Failure::forbidden("Not logged in").hint("Run `ggnet login --server URL`"));
        };
        if let Some(token) = token_of_environment() {
            return Client::new(server, &token);
        }
        match stored {
            Some(stored) if stored.server == server => Client::new(server, &stored.token),
            Some(stored) => Err(Failure::forbidden(format!(
                "Not logged in to {server}: the stored token is for {}",
                stored.server
            ))
            .hint(format!("Run `ggnet login --server {server}`, or set GGNET_TOKEN to the token"))),
            None => Err(Failure::forbidden(format!("Not logged in to {server}"))
                .hint(format!("Run `ggnet login --server {server}`, or set GGNET_TOKEN to the token"))),
        }
    }
}

/// The token from the environment, if set.
fn token_of_environment() -> Option<String> {
    std::env::var("GGNET_TOKEN").ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

/// A value's name in the API: `"active"` of `SessionState::Active`.
fn wire_name<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// The rows of a failure beside its message: hint and code.
fn failure_rows(failure: Option<&nouns::Failure>) -> Vec<(&'static str, Field)> {
    let Some(failure) = failure else { return Vec::new() };
    let hint = failure.hint.as_deref().map(|hint| ("what to do", hint.into()));
    hint.into_iter().chain([("code", failure.code.as_str().into())]).collect()
}
