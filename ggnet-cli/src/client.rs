//! The HTTP client: one server, one token; responses are wire types, everything else is a [`Failure`].
//!
//! It uses no proxy and follows no redirect, so that the token is sent only to the named server.

use std::{collections::BTreeMap, time::Duration};

use ggnet_core::{
    api::{HealthResponse, Problem},
    ports::Page,
};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
    redirect,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    failure::{Failure, Result},
    options::values::ServerUrl,
};

/// Longer than any request may take on the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(130);
/// Enough for any server on a LAN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest page that the server allows.
const PER_PAGE: u64 = 1000;

/// The query of a request.
pub type Query = Vec<(&'static str, String)>;

/// Part of a list, and the length of the list.
pub struct Listed<T> {
    /// The items.
    pub items: Vec<T>,
    /// The number of items on the server.
    pub total: u64,
}

/// A client of one server.
pub struct Client {
    http: reqwest::Client,
    server: ServerUrl,
}

impl Client {
    /// A client of `server` with this token.
    pub fn new(server: ServerUrl, token: &str) -> Result<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Failure::input("token", "The token contains invalid characters"))?;
        value.set_sensitive(true);
        let http = reqwest::Client::builder()
            .user_agent(concat!("ggnet/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| Failure::refused(format!("The HTTP client could not be set up: {e}")))?;
        Ok(Self { http, server })
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &Query) -> Result<T> {
        self.answer(self.http.request(Method::GET, self.url(path, query)?)).await
    }

    /// `POST`.
    pub async fn post<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T> {
        self.answer(self.http.request(Method::POST, self.url(path, &vec![])?).json(body)).await
    }

    /// `POST` without a body; the response has none either.
    pub async fn post_empty(&self, path: &[&str]) -> Result<()> {
        self.send(self.http.request(Method::POST, self.url(path, &vec![])?)).await.map(drop)
    }

    /// `PATCH`.
    pub async fn patch<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T> {
        self.answer(self.http.request(Method::PATCH, self.url(path, &vec![])?).json(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &[&str], query: &Query) -> Result<()> {
        self.send(self.http.request(Method::DELETE, self.url(path, query)?)).await.map(drop)
    }

    /// A paged list, page after page, up to `limit` items (all of them when there is no limit).
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
        limit: Option<u64>,
    ) -> Result<Listed<T>> {
        let per_page = limit.unwrap_or(PER_PAGE).clamp(1, PER_PAGE);
        let mut listed = Listed { items: Vec::new(), total: 0 };
        for page in 1_u32.. {
            let mut query = query.clone();
            query.push(("page", page.to_string()));
            query.push(("per_page", per_page.to_string()));
            let got: Page<T> = self.get(path, &query).await?;
            let last = got.items.is_empty();
            listed.items.extend(got.items);
            listed.total = got.total;
            let have = u64::try_from(listed.items.len()).unwrap_or(u64::MAX);
            if last || have >= got.total || limit.is_some_and(|l| have >= l) {
                break;
            }
        }
        if let Some(limit) = limit {
            listed.items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        Ok(listed)
    }

    /// `GET /health/ready`. A server that is not ready is not a failure.
    pub async fn ready(&self) -> Result<HealthResponse> {
        let url = self.server.join(&["health", "ready"])?;
        let response = self.http.get(url).send().await.map_err(|e| self.unreachable(&e))?;
        match response.status() {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => self.decode(response).await,
            _ => Err(failed(response).await),
        }
    }

    fn url(&self, path: &[&str], query: &Query) -> Result<Url> {
        let mut url = self.server.join(&[&["api", "v1"], path].concat())?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        self.decode(response).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() { Ok(response) } else { Err(failed(response).await) }
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::refused(format!("The response of {} is not a GGnet response: {e}", self.server))
                .hint("Check that this is the address of a GGnet server of this version")
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let why = if error.is_timeout() { "no response in time".to_owned() } else { innermost(error) };
        Failure::unreachable(&self.server, why).hint(
            "Check that ggnet-server is running there. To use another server: `--server URL` or GGNET_SERVER",
        )
    }
}

/// The messages of reqwest describe its own layers; the innermost source is the cause.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The problem document of a failed request; made from the status if the response is no problem document.
async fn failed(response: Response) -> Failure {
    let status = response.status();
    let request_id = response.headers().get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = response.bytes().await.unwrap_or_default();
    let mut problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        type_uri: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        detail: plain(&body, status),
        kind: "internal".to_owned(),
        code: "internal".to_owned(),
        args: BTreeMap::new(),
        field: None,
        hint: None,
        retryable: false,
        request_id: None,
    });
    problem.request_id = problem.request_id.or(request_id);
    Failure::server(problem)
}

fn plain(body: &[u8], status: StatusCode) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(300).collect();
    match text.trim() {
        "" => format!("The server responded with {status}"),
        text => format!("The server responded with {status}: {text}"),
    }
}
