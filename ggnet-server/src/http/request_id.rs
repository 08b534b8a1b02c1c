//! The id of a request, in the header `x-request-id` of request and response: the client's own id if it is short and plain, else one that
//! the server generates. It is in all log lines about the request and in the audit.

use axum::{extract::Request, http::HeaderMap};
use ggnet_core::nouns::RequestId;

/// The header.
pub const HEADER: &str = "x-request-id";

/// A request's id; none if it is not plain.
pub fn of(headers: &HeaderMap) -> Option<RequestId> {
    headers.get(HEADER)?.to_str().ok()?.parse().ok()
}

/// Removes an id that is not plain, so that the server generates one.
pub async fn drop_odd(mut request: Request) -> Request {
    if of(request.headers()).is_none() {
        request.headers_mut().remove(HEADER);
    }
    request
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn a_plain_id_is_kept_and_any_other_is_dropped() {
        let long = "a".repeat(65);
        for (id, kept) in [("a-1", true), ("a b", false), ("\"", false), ("", false), (long.as_str(), false)]
        {
            let request = Request::builder().header(HEADER, id).body(Body::empty()).unwrap();
            let request = drop_odd(request).await;
            let left = request.headers().get(HEADER).map(|id| id.to_str().unwrap());
            assert_eq!(left, kept.then_some(id), "{id}");
        }
    }
}
