//! Errors of ggnet-core as HTTP responses: the only place that maps an [`ErrorKind`] to a status code.
//!
//! A response contains the message with its reason, the code, the field and the hint. Context, tool output and causes are only in the log,
//! under the request's id, because they can contain paths and commands of this host. The response of an `Internal` error has no details.

use std::{any::Any, sync::LazyLock};

use axum::{
    Json,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use ggnet_core::{Error, ErrorKind, api::Problem, error::code};
use ggnet_iscsi::LogBudget;

use super::request_id;

/// Limits the log lines about failed requests, because any client can cause them with requests for boot scripts.
static FAILURES: LazyLock<LogBudget> = LazyLock::new(|| LogBudget::new(10));

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    status: StatusCode,
}

/// The result of a route.
pub type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(super) const fn with_status(error: Error, status: StatusCode) -> Self {
        Self { error, status }
    }

    /// The failure of a request by iPXE, which retries after 503 and gives up after any other status.
    pub(super) fn to_ipxe(error: Error) -> Self {
        if error.is_retryable() {
            return Self::with_status(error, StatusCode::SERVICE_UNAVAILABLE);
        }
        error.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = status(error.kind());
        Self { error, status }
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
        let Self { error, status } = self;
        if status.is_server_error() {
            if let Some(left_out) = FAILURES.line() {
                tracing::error!(error = %error.report(), left_out, "request failed");
            }
        } else {
            tracing::debug!(error = %error.report(), "request refused");
        }
        let shown = if error.kind() == ErrorKind::Internal { without_words(&error) } else { error };
        let title = status.canonical_reason().unwrap_or("Error");
        let problem = Problem::of(&shown, status.as_u16(), title);
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

/// The response of an internal error, without details.
fn without_words(error: &Error) -> Error {
    let shown =
        Error::internal("Internal error; the details are in the server's log under the id of this request");
    let shown = shown.retryable(error.is_retryable());
    match error.hint() {
        Some(hint) => shown.with_hint(hint),
        None => shown,
    }
}

/// 404: the path does not exist.
pub async fn no_route() -> Failure {
    Error::new(code::path_not_found(), "This path does not exist").into()
}

/// 405: the path does not support this method.
pub async fn no_method() -> Failure {
    let error = Error::new(code::method_not_allowed(), "This path does not support that method");
    Failure::with_status(error, StatusCode::METHOD_NOT_ALLOWED)
}

/// 500: a handler panicked; the connection and the server continue.
#[expect(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let what =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Failure::from(Error::internal(format!("A handler panicked: {}", what.unwrap_or("no message"))))
        .into_response()
}

/// The log span of a request: its id, method and path. Not its query, which may contain untrusted data of a machine.
pub fn request_span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get(request_id::HEADER).and_then(|v| v.to_str().ok()).unwrap_or("");
    let path: String = request.uri().path().chars().take(200).collect();
    tracing::info_span!("http", id, method = %request.method(), path)
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::to_bytes;

    use super::*;

    async fn document(error: Error) -> serde_json::Value {
        let response = Failure::from(error).into_response();
        serde_json::from_slice(&to_bytes(response.into_body(), 1 << 16).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_has_code_arguments_and_reason_but_neither_context_nor_causes() {
        let error = Error::new(code::machine_not_active("pc-1", "retired"), "It may not boot")
            .with_field("machine")
            .with_hint("Set its state")
            .with_reason(io::Error::other("the reason"))
            .with_backend("a backend")
            .with_source("the cause");
        let got = document(error).await;
        let want = serde_json::json!({
            "type": "urn:ggnet:problem:conflict", "title": "Conflict", "status": 409, "kind": "conflict",
            "detail": "It may not boot: the reason", "code": "machine_not_active",
            "args": { "machine": "pc-1", "state": "retired" }, "field": "machine", "hint": "Set its state",
            "retryable": false,
        });
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn an_internal_error_shows_no_details() {
        let error = Error::internal("words of it").with_reason(io::Error::other("its reason"));
        let got = document(error.with_field("its field")).await;
        assert_eq!(got["code"], "internal");
        for part in ["words of it", "its reason", "its field"] {
            assert!(!got.to_string().contains(part), "{got}");
        }
    }

    #[test]
    fn ipxe_is_asked_to_retry_if_that_may_help() {
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
