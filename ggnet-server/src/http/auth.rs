//! Who uses the API: the holder of the administrator token. Who that is, from where and with which request, goes with the request as a
//! [`Principal`], which routes take by `Extension(by): Extension<Principal>`.

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

/// Lets a request with the right `Authorization: Bearer …` through, with its principal.
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
                "This needs the administrator token as `Authorization: Bearer …`",
            ));
        }
    }
    let ends = request.extensions().get::<ConnectInfo<Endpoints>>();
    let from = ends.map(|ConnectInfo(ends)| ends.peer.ip().to_string());
    let by = Principal::administrator().at(from).asking(request_id::of(request.headers()));
    // Whoever comes in may at least look; what changes something the orchestrator asks for itself.
    authorize(&by, Command::Read)?;
    request.extensions_mut().insert(by);
    Ok(next.run(request).await)
}

impl Failure {
    fn unauthorized(code: Code, message: &str) -> Self {
        let error = Error::new(code, message)
            .with_hint("`ggnet login` stores it; `ggnet-server token reset` makes a new one");
        Self::with_status(error, axum::http::StatusCode::UNAUTHORIZED)
    }
}
