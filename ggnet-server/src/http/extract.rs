//! Extractors of JSON bodies, queries and paths; their errors name the field.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::request::Parts,
};
use ggnet_core::{Error, Result, error::code, nouns::Name, ports::PageRequest};
use serde::de::DeserializeOwned;

use super::error::Failure;

/// A JSON body. The error 422 names the field and the reason.
pub struct ValidJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ValidJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| Failure::with_status(refused(e.body_text()), e.status()))?;
        // An empty body means an empty object: all optional fields are omitted.
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        parse(&mut serde_json::Deserializer::from_slice(bytes)).map(Self)
    }
}

/// The error of a request that does not fit its route.
fn refused(why: String) -> Error {
    Error::new(code::request_invalid(&why), why)
}

fn parse<'de, T: DeserializeOwned>(
    json: &mut serde_json::Deserializer<serde_json::de::SliceRead<'de>>,
) -> Result<T, Failure> {
    let parsed = serde_path_to_error::deserialize(&mut *json).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let at = if path == "." { String::new() } else { format!("{path}: ") };
        let error = refused(format!("{at}{inner}"));
        if path == "." { error } else { error.with_field(path) }
    })?;
    json.end().map_err(|e| refused(format!("After the end of the JSON body: {e}")))?;
    Ok(parsed)
}

/// Query parameters. The error 422 contains the reason.
pub struct ValidQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ValidQuery<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|q| Self(q.0)).map_err(|e| refused(e.body_text()).into())
    }
}

/// Parameters of the path. The error 422 contains the reason; axum's own error is no problem document.
pub struct ValidPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ValidPath<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|p| Self(p.0)).map_err(|e| refused(e.body_text()).into())
    }
}

/// Checks `?page=…&per_page=…`.
pub fn page(page: Option<u32>, per_page: Option<u32>) -> Result<PageRequest> {
    let (page, per_page) = (page.unwrap_or(1), per_page.unwrap_or(100));
    if page == 0 {
        let most = u32::MAX;
        return Err(Error::invalid("page", "The first page is 1").with_code(code::out_of_range(1, most)));
    }
    if !(1..=1000).contains(&per_page) {
        return Err(
            Error::invalid("per_page", "A page has 1 to 1000 items").with_code(code::out_of_range(1, 1000))
        );
    }
    Ok(PageRequest { page, per_page })
}

/// Refuses a name that is also a fixed word at the same place in a path: the object could not be requested.
pub fn free_in_a_path(name: &Name, reserved: &[&str]) -> Result<()> {
    if reserved.contains(&name.as_str()) {
        return Err(Error::invalid(
            "name",
            format!("The name {name} is reserved, because it is part of paths of the API"),
        )
        .with_code(code::name_reserved(name))
        .with_hint("Choose another name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::{Body, to_bytes},
        http::{StatusCode, header},
        response::{IntoResponse as _, Response},
        routing::get,
    };
    use ggnet_core::{
        api::{CreateMachineRequest, Problem},
        nouns::ImageVersionId,
    };
    use tower::ServiceExt as _;

    use super::*;

    async fn problem(response: Response) -> Problem {
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        serde_json::from_slice(&to_bytes(response.into_body(), 1 << 16).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_refused_body_names_its_field() {
        let request = Request::new(Body::from(r#"{"name":"pc-1","macs":["52:54:00:aa:00:01","nonsense"]}"#));
        let refused = ValidJson::<CreateMachineRequest>::from_request(request, &()).await.err().unwrap();
        let problem = problem(refused.into_response()).await;
        assert_eq!(problem.field.as_deref(), Some("macs[1]"));
        assert_eq!((problem.code.as_str(), &problem.args["reason"]), ("request_invalid", &problem.detail));
        assert!(problem.detail.contains("is not a MAC address"), "{}", problem.detail);
    }

    #[tokio::test]
    async fn a_refused_path_is_a_problem_document() {
        let echo = |ValidPath(id): ValidPath<ImageVersionId>| async move { id.to_string() };
        let app = Router::<()>::new().route("/{id}", get(echo));
        let response = app.oneshot(Request::get("/nonsense").body(Body::empty()).unwrap()).await.unwrap();
        assert!(problem(response).await.detail.contains("image version id"));
    }
}
