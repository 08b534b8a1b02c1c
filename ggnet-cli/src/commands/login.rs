//! `ggnet login` and `ggnet logout`.

use std::io::{self, IsTerminal as _};

use console::Term;
use ggnet_core::api::ServerInfo;

use super::{Context, token_of_environment};
use crate::{
    client::Client,
    credentials::{self, Credentials},
    failure::{Failure, Result},
    options::{
        system::Login,
        values::{self, ServerUrl},
    },
    output::ask,
};

/// The address of a server without configuration.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// Checks the token with the server; stores it only if it is right.
pub async fn login(context: &Context, options: &Login) -> Result<()> {
    let server = server(context)?;
    let token = token(options, &server)?;
    if token.is_empty() {
        return Err(Failure::input("token", "No token was given")
            .hint("ggnet-server prints it at its first start; `ggnet-server token reset` makes a new one"));
    }
    let info: ServerInfo = Client::new(server.clone(), &token)?.get(&["server"], &vec![]).await?;
    let path = Credentials { server: server.clone(), token }.save()?;
    let sentence =
        format!("Logged in to {server} (version {}); the token is in {}", info.version, path.display());
    context.out.done("logged_in", &server.to_string(), &sentence)
}

/// Deletes the stored token.
pub fn logout(context: &Context) -> Result<()> {
    let sentence = if credentials::forget()? { "Logged out" } else { "No token was stored" };
    context.out.done("logged_out", &credentials::path()?.display().to_string(), sentence)
}

fn server(context: &Context) -> Result<ServerUrl> {
    if let Some(named) = &context.global.server {
        return Ok(named.clone());
    }
    // A file that does not parse is no error: it is about to be replaced.
    match Credentials::load() {
        Ok(Some(stored)) => Ok(stored.server),
        _ => values::server_url(DEFAULT_SERVER).map_err(|e| Failure::input("server", e)),
    }
}

fn token(options: &Login, server: &ServerUrl) -> Result<String> {
    if !options.token_stdin {
        if let Some(token) = token_of_environment() {
            return Ok(token);
        }
        let terminal = Term::stderr();
        if io::stdin().is_terminal() && terminal.is_term() {
            ask(&format!("Token for {server}: "))?;
            let token = terminal.read_secure_line().map_err(|e| Failure::io("Reading the token", &e))?;
            return Ok(token.trim().to_owned());
        }
    }
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|e| Failure::io("Reading the token from stdin", &e))?;
    Ok(line.trim().to_owned())
}
