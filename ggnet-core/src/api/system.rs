//! Events, health and the server itself on the wire.

use serde::{Deserialize, Serialize};

use crate::{
    nouns::{Cursor, Event},
    ports::Health,
};

/// `GET /api/v1/events?after=…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventListResponse {
    /// The events, oldest first.
    pub items: Vec<Event>,
    /// The value for `after` in the next request; `None` if there is no event at all.
    #[serde(default)]
    pub cursor: Option<Cursor>,
}

/// The health of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    /// The port: `target`, `dhcp` …
    pub port: String,
    /// The backend's name.
    pub backend: String,
    /// Its health.
    #[serde(flatten)]
    pub health: Health,
    /// Whether machines can boot with it now. A backend for which this is false makes the server unready.
    #[serde(default)]
    pub boots: bool,
}

/// `GET /health/ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResponse {
    /// Whether machines can boot now.
    pub ready: bool,
    /// Whether the first reconcile has ended.
    pub serving: bool,
    /// Every backend.
    pub backends: Vec<BackendHealth>,
}

/// `GET /api/v1/server`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// The server's version.
    pub version: String,
    /// Its instance id, part of every name that it creates.
    pub instance: String,
    /// The folders from which images may be imported.
    pub import_dirs: Vec<String>,
}
