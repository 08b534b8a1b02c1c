//! Authentication of the API: the administrator token. Each request carries a [`Principal`] (token, client address, request id), which routes
//! take as `Extension(by): Extension<Principal>`.

use axum::{
    extract::{ConnectInfo, Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::Response,
};
use ggnet_core::{
    Error,
    authorization::{Command, authorize},
    error::{Code, code},
    nouns::Principal,
};

use super::{Endpoints, Shared, error::Failure, request_id};

/// Passes on requests with the right `Authorization: Bearer …`, with their principal; rejects all others.
pub async fn require_token(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.strip_prefix("Bearer "));
    match token.map(|token| app.token.matches(token.trim())) {
        Some(true) => {}
        Some(false) => return Err(Failure::unauthorized(code::token_wrong(), "The token is wrong")),
        None => {
            return Err(Failure::unauthorized(
                code::token_missing(),
                "This request needs the administrator token in the header `Authorization: Bearer …`",
            ));
        }
    }
    let ends = request.extensions().get::<ConnectInfo<Endpoints>>();
    let from = ends.map(|ConnectInfo(ends)| ends.peer.ip().to_string());
    let by = Principal::administrator().at(from).asking(request_id::of(request.headers()));
    // Every principal must at least be allowed to read; the orchestrator authorizes each change itself.
    authorize(&by, Command::Read)?;
    request.extensions_mut().insert(by);
    Ok(next.run(request).await)
}

impl Failure {
    fn unauthorized(code: Code, message: &str) -> Self {
        let error = Error::new(code, message).with_hint(
            "Run `ggnet login` to store the token, or `ggnet-server token reset` to make a new one",
        );
        Self::with_status(error, axum::http::StatusCode::UNAUTHORIZED)
    }
}
