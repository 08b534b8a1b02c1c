//! A blocking client of the server's API, with the types that server and CLI share.
//!
//! A refusal is an [`ApiError`] inside the error: tests of refusals take it out with [`refusal`].

use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ggnet_core::api::{
    BootScriptResponse, CreateMachineRequest, CreateTargetRequest, EventListResponse, HealthResponse,
    ImageResponse, ImportImageRequest, ImportResponse, Problem, SessionListResponse, SessionResponse,
    SessionStartRequest, SessionStartResponse, SessionStopRequest, TargetResponse, UpdateMachineRequest,
    VersionResponse,
};
use ggnet_core::nouns::{
    BootStage, Cursor, Event, EventKind, ImageId, ImageVersionId, Machine, MachineId, SessionId,
    VersionState, WritebackPolicy,
};
use ggnet_core::ports::Health;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wait;

/// What the server answered instead of doing it.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// The HTTP status code.
    pub status: u16,
    /// Why, and what to do; none where the answer was no problem document.
    pub problem: Option<Problem>,
    /// The request.
    pub request: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.problem.as_ref().map_or("no problem document", |p| p.detail.as_str());
        write!(f, "{}: {} {detail}", self.request, self.status)
    }
}

impl std::error::Error for ApiError {}

/// The refusal in a result that must be one.
///
/// # Errors
/// The call succeeded, or failed otherwise than by an answer of the server.
pub fn refusal<T: fmt::Debug>(result: Result<T>) -> Result<ApiError> {
    match result {
        Ok(done) => bail!("the server did it: {done:?}"),
        Err(e) => e.downcast::<ApiError>(),
    }
}

/// The client. Its methods block; from async code use `spawn_blocking`.
#[derive(Debug)]
pub struct Api {
    base: String,
    token: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    /// A client of the server at `base` (`http://127.0.0.1:8080`).
    ///
    /// # Errors
    /// This host allows no runtime or no sockets.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        Ok(Self {
            base: base.to_owned(),
            token: token.to_owned(),
            client: reqwest::Client::builder()
                // A proxy of the environment is none of a loopback server's business.
                .no_proxy()
                // A connection kept from before a restart of the server would fail the first request after it.
                .pool_max_idle_per_host(0)
                // Not for ever; and long enough for fifty starts at once on an emulated server that shares its host.
                .timeout(Duration::from_secs(600))
                .build()?,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        })
    }

    /// Sends a request without the token and returns status and text.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn plain(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let request = self.client.request(method.parse()?, format!("{}{path}", self.base));
        self.runtime.block_on(async {
            let response = request.send().await?;
            Ok((response.status().as_u16(), response.text().await?))
        })
    }

    /// What `/metrics` tells.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub fn metrics(&self) -> Result<String> {
        let request = self.client.get(format!("{}/metrics", self.base)).bearer_auth(&self.token);
        self.runtime.block_on(async { Ok(request.send().await?.error_for_status()?.text().await?) })
    }

    fn call<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Option<String>) -> Result<T> {
        let shown = format!("{method} {path}");
        let mut request = self.client.request(method.clone(), format!("{}/api/v1{path}", self.base));
        request = request.bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let (status, text) = self.runtime.block_on(async {
            let response = request.send().await.with_context(|| shown.clone())?;
            anyhow::Ok((response.status(), response.text().await?))
        })?;
        if !status.is_success() {
            let problem = serde_json::from_str(&text).ok();
            return Err(ApiError { status: status.as_u16(), problem, request: shown }.into());
        }
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).with_context(|| format!("{shown} answered {text}"))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(&Method::GET, path, None)
    }

    fn send<T: DeserializeOwned>(&self, method: &Method, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(method, path, Some(serde_json::to_string(body)?))
    }

    /// Whether machines can boot now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let answer = self.plain("GET", "/health/ready").ok().filter(|(status, _)| *status == 200);
        answer
            .and_then(|(_, text)| serde_json::from_str::<HealthResponse>(&text).ok())
            .is_some_and(|h| h.ready)
    }

    /// The status of every part of the server, without its reason: what hostile work or many boots must leave as it was. It is compared
    /// with one of before, because a host whose disk is nearly full says so all the time.
    ///
    /// # Errors
    /// It does not answer.
    pub fn statuses(&self) -> Result<Vec<(String, Discriminant<Health>)>> {
        let health: HealthResponse = serde_json::from_str(&self.health()?)?;
        Ok(health.backends.into_iter().map(|b| (b.port, discriminant(&b.health))).collect())
    }

    /// What the server says of each backend.
    ///
    /// # Errors
    /// It does not answer.
    pub fn health(&self) -> Result<String> {
        self.plain("GET", "/health/ready").map(|(_, text)| text)
    }

    /// Registers a machine.
    ///
    /// # Errors
    /// As the server answers.
    pub fn create_machine(&self, machine: &CreateMachineRequest) -> Result<Machine> {
        self.send(&Method::POST, "/machines", machine)
    }

    /// Registers a machine of this name and MAC address with an image, all else as it comes.
    ///
    /// # Errors
    /// As the server answers.
    pub fn add_machine(
        &self,
        name: &str,
        mac: &str,
        image: ImageId,
        writeback: WritebackPolicy,
    ) -> Result<Machine> {
        let mut machine: CreateMachineRequest = serde_json::from_value(serde_json::json!({ "name": name }))?;
        machine.macs = vec![mac.parse()?];
        machine.image = Some(image);
        machine.writeback = writeback;
        self.create_machine(&machine)
    }

    /// A machine by id or name.
    ///
    /// # Errors
    /// As the server answers.
    pub fn machine(&self, reference: &str) -> Result<Machine> {
        self.get(&format!("/machines/{reference}"))
    }

    /// Changes a machine.
    ///
    /// # Errors
    /// As the server answers.
    pub fn update_machine(&self, id: MachineId, change: &UpdateMachineRequest) -> Result<Machine> {
        self.send(&Method::PATCH, &format!("/machines/{id}"), change)
    }

    /// The machines that nobody registered and that asked for something.
    ///
    /// # Errors
    /// As the server answers.
    pub fn seen(&self) -> Result<Vec<ggnet_core::nouns::SeenMachine>> {
        let page: ggnet_core::ports::Page<_> = self.get("/machines/seen?per_page=1000")?;
        Ok(page.items)
    }

    /// Begins an import.
    ///
    /// # Errors
    /// As the server answers.
    pub fn import(&self, request: &ImportImageRequest) -> Result<ImportResponse> {
        self.send(&Method::POST, "/images/import", request)
    }

    /// Imports a file of the server under this name and waits for the end; `progress` hears per mille.
    ///
    /// # Errors
    /// As the server answers, or the import fails: the error says why.
    pub fn import_and_wait(
        &self,
        name: &str,
        path: &std::path::Path,
        mut progress: impl FnMut(u16),
    ) -> Result<VersionResponse> {
        let begun = self.import(&ImportImageRequest {
            name: name.parse()?,
            path: path.to_owned(),
            format: None,
            sha256: None,
            comment: String::new(),
            make_current: true,
        })?;
        let id = begun.version.version.id;
        wait::until("the import", Duration::from_secs(300), || {
            let version = self.version(id)?;
            match version.version.state {
                VersionState::Importing => {
                    progress(version.progress_per_mille.unwrap_or(0));
                    Ok(None)
                }
                VersionState::Ready => Ok(Some(version)),
                VersionState::Failed => bail!("the import failed: {:?}", version.version.error),
            }
        })
    }

    /// An image by id or name.
    ///
    /// # Errors
    /// As the server answers.
    pub fn image(&self, reference: &str) -> Result<ImageResponse> {
        self.get(&format!("/images/{reference}"))
    }

    /// A version.
    ///
    /// # Errors
    /// As the server answers.
    pub fn version(&self, id: ImageVersionId) -> Result<VersionResponse> {
        self.get(&format!("/versions/{id}"))
    }

    /// Deletes a version.
    ///
    /// # Errors
    /// As the server answers.
    pub fn delete_version(&self, id: ImageVersionId) -> Result<()> {
        self.call(&Method::DELETE, &format!("/versions/{id}"), None)
    }

    /// Deletes an image.
    ///
    /// # Errors
    /// As the server answers.
    pub fn delete_image(&self, id: ImageId) -> Result<()> {
        self.call(&Method::DELETE, &format!("/images/{id}"), None)
    }

    /// Starts a session.
    ///
    /// # Errors
    /// As the server answers.
    pub fn start_session(&self, machine: MachineId) -> Result<SessionStartResponse> {
        let request = SessionStartRequest { machine_id: machine, image_id: None };
        self.send(&Method::POST, "/sessions/start", &request)
    }

    /// Stops a session.
    ///
    /// # Errors
    /// As the server answers; 409 with a live initiator unless `force`.
    pub fn stop_session(&self, id: SessionId, force: bool) -> Result<SessionResponse> {
        self.send(&Method::POST, &format!("/sessions/{id}/stop"), &SessionStopRequest { force })
    }

    /// A session.
    ///
    /// # Errors
    /// As the server answers.
    pub fn session(&self, id: SessionId) -> Result<SessionResponse> {
        self.get(&format!("/sessions/{id}"))
    }

    /// The live sessions.
    ///
    /// # Errors
    /// As the server answers.
    pub fn live_sessions(&self) -> Result<SessionListResponse> {
        self.get("/sessions?live=true&per_page=1000")
    }

    /// A machine's live session.
    ///
    /// # Errors
    /// As the server answers; 404 when there is none.
    pub fn active(&self, machine: MachineId) -> Result<SessionResponse> {
        self.get(&format!("/sessions/machine/{machine}/active"))
    }

    /// A machine's boot script as it would read it now; changes nothing.
    ///
    /// # Errors
    /// As the server answers.
    pub fn boot_script(&self, machine: MachineId) -> Result<BootScriptResponse> {
        self.get(&format!("/sessions/machine/{machine}/boot-script"))
    }

    /// Exports a version read-only to whoever asks.
    ///
    /// # Errors
    /// As the server answers.
    pub fn export(&self, name: &str, version: ImageVersionId) -> Result<TargetResponse> {
        let request = CreateTargetRequest { name: name.parse()?, version_id: version, initiator: None };
        self.send(&Method::POST, "/targets", &request)
    }

    /// Every target that is served.
    ///
    /// # Errors
    /// As the server answers.
    pub fn targets(&self) -> Result<Vec<TargetResponse>> {
        self.get("/targets")
    }

    /// All events after a cursor (none: all that are kept), of one machine or of all.
    ///
    /// # Errors
    /// As the server answers.
    pub fn events(&self, after: Option<&Cursor>, machine: Option<MachineId>) -> Result<Vec<Event>> {
        let filter = machine.map_or_else(String::new, |m| format!("&machine={m}"));
        let mut all = Vec::new();
        let mut after = after.cloned();
        loop {
            let since = after.as_ref().map_or_else(String::new, |cursor| format!("&after={cursor}"));
            let got: EventListResponse = self.get(&format!("/events?limit=1000{since}{filter}"))?;
            if got.items.is_empty() {
                return Ok(all);
            }
            after = got.cursor;
            all.extend(got.items);
        }
    }

    /// The boot stages of a machine after a cursor (none: all of them), as they were recorded.
    ///
    /// # Errors
    /// As the server answers.
    pub fn stages(&self, after: Option<&Cursor>, machine: MachineId) -> Result<Vec<BootStage>> {
        let events = self.events(after, Some(machine))?;
        Ok(events
            .into_iter()
            .filter_map(|e| match e.event.kind {
                EventKind::BootStage { stage, .. } => Some(stage),
                _ => None,
            })
            .collect())
    }

    /// The cursor after everything that was recorded so far; none: nothing was.
    ///
    /// # Errors
    /// As the server answers.
    pub fn cursor(&self) -> Result<Option<Cursor>> {
        let newest: EventListResponse = self.get("/events?newest=true&limit=1")?;
        Ok(newest.cursor)
    }
}
