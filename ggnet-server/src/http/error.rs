//! Core's errors as HTTP: the only place where an [`ErrorKind`] meets a status code.
//!
//! What goes out is the message, the field and the hint. Backend, tool output and causes stay in the log under the request's id, for they can
//! name paths and commands of this host; an `Internal` error says nothing of itself at all.

use std::{any::Any, sync::LazyLock};

use axum::{
    Json,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use ggnet_backends::log_budget::LogBudget;
use ggnet_core::{Error, ErrorKind, api::Problem};

/// Lines of the log about requests that failed: whoever asks for a boot script may cause them, as often as he likes.
static FAILURES: LazyLock<LogBudget> = LazyLock::new(|| LogBudget::new(10));

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    status: StatusCode,
    /// Where in a body the input is wrong (`macs[0]`): found at run time, so core's error cannot name it.
    field: Option<String>,
}

/// What a route returns.
pub type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(super) const fn with_status(error: Error, status: StatusCode) -> Self {
        Self { error, status, field: None }
    }

    /// Of a request by iPXE, which comes again after 503 and gives up after anything else.
    pub(super) fn to_ipxe(error: Error) -> Self {
        if error.is_retryable() {
            return Self::with_status(error, StatusCode::SERVICE_UNAVAILABLE);
        }
        error.into()
    }

    pub(super) fn with_field(mut self, field: String) -> Self {
        self.field = Some(field);
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = status(error.kind());
        Self { error, status, field: None }
    }
}

const fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Permission => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Full => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { error, status, field } = self;
        if status.is_server_error() {
            if let Some(left_out) = FAILURES.line() {
                tracing::error!(error = %error.report(), left_out, "request failed");
            }
        } else {
            tracing::debug!(error = %error.report(), "request refused");
        }
        let hidden = error.kind() == ErrorKind::Internal;
        let detail = if hidden {
            "An internal error; the server's log has it under this request's id"
        } else {
            error.message()
        };
        let problem = Problem {
            type_uri: format!("urn:ggnet:problem:{}", error.kind()),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.to_owned(),
            kind: error.kind().to_string(),
            field: field.or_else(|| error.field().map(str::to_owned)),
            hint: error.hint().map(str::to_owned),
            retryable: error.is_retryable(),
            request_id: None,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

/// 404 for a path that is no route.
pub async fn no_route() -> Failure {
    Error::new(ErrorKind::NotFound, "There is nothing at this path").into()
}

/// 405 for a method that a path does not have.
pub async fn no_method() -> Failure {
    let error = Error::new(ErrorKind::Invalid, "This path does not have that method");
    Failure::with_status(error, StatusCode::METHOD_NOT_ALLOWED)
}

/// 500 for a handler that panicked: the connection and the server live on.
#[expect(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let what =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Failure::from(Error::internal(format!("A handler panicked: {}", what.unwrap_or("no message"))))
        .into_response()
}

/// A client's own request id is kept where it is one: it goes into every line of the log about its request.
pub async fn drop_odd_request_id(mut request: axum::extract::Request) -> axum::extract::Request {
    let fits = |id: &HeaderValue| id.len() <= 64 && id.to_str().is_ok();
    if request.headers().get("x-request-id").is_some_and(|id| !fits(id)) {
        request.headers_mut().remove("x-request-id");
    }
    request
}

/// The log span of a request: its id, method and path. The query may carry what a machine claims, so it is left out.
pub fn request_span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get("x-request-id").and_then(|v| v.to_str().ok()).unwrap_or("");
    let path: String = request.uri().path().chars().take(200).collect();
    tracing::info_span!("http", id, method = %request.method(), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipxe_is_asked_to_come_again_where_that_may_help() {
        let answer = |kind| Failure::to_ipxe(Error::new(kind, "a reason")).into_response();
        for kind in [ErrorKind::Busy, ErrorKind::Unavailable, ErrorKind::Timeout] {
            let response = answer(kind);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{kind}");
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{kind}");
        }
        assert_eq!(answer(ErrorKind::NotFound).status(), StatusCode::NOT_FOUND);
        assert_eq!(answer(ErrorKind::Full).status(), StatusCode::INSUFFICIENT_STORAGE);
    }
}
