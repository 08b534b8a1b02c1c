//! Who may use the API: the holder of the administrator token.

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::Response,
};
use ggnet_core::{
    Error,
    error::{Code, code},
    nouns::Actor,
};

use super::{Endpoints, Shared, error::Failure};

/// Lets a request with the right `Authorization: Bearer …` through.
pub async fn require_token(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.strip_prefix("Bearer "));
    match token {
        Some(token) if app.token.matches(token.trim()) => Ok(next.run(request).await),
        Some(_) => Err(Failure::unauthorized(code::token_wrong(), "The token is wrong")),
        None => Err(Failure::unauthorized(
            code::token_missing(),
            "This needs the administrator token as `Authorization: Bearer …`",
        )),
    }
}

/// The actor of an API request.
pub fn admin(ends: &Endpoints) -> Actor {
    Actor::Admin { address: Some(ends.peer.ip().to_string()) }
}

impl Failure {
    fn unauthorized(code: Code, message: &str) -> Self {
        let error = Error::new(code, message)
            .with_hint("`ggnet login` stores it; `ggnet-server token reset` makes a new one");
        Self::with_status(error, axum::http::StatusCode::UNAUTHORIZED)
    }
}
