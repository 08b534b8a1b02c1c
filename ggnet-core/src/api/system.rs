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
    /// What to give as `after` next time; none while there is no event at all.
    #[serde(default)]
    pub cursor: Option<Cursor>,
}

/// How one backend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    /// The port: `target`, `dhcp` …
    pub port: String,
    /// The backend's name.
    pub backend: String,
    /// How it is.
    #[serde(flatten)]
    pub health: Health,
    /// Whether it lets machines boot now: one that does not makes the server unready.
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
    /// Its instance id, part of every name it gives out.
    pub instance: String,
    /// The folders below which images may be imported.
    pub import_dirs: Vec<String>,
}
