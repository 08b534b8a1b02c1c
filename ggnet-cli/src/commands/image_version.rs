//! Shows one version of an image: its state in a list, and all of it at the end of an import.

use ggnet_core::{api::VersionResponse, nouns::VersionState};

use super::{Context, failure_rows};
use crate::{
    failure::Result,
    output::{Field, Mood, size},
};

/// The state of a version, with the progress of its import.
pub fn state(v: &VersionResponse) -> Field {
    match (v.version.state, v.progress_per_mille) {
        (VersionState::Ready, _) => Field::with("ready", Mood::Good),
        (VersionState::Failed, _) => Field::with("failed", Mood::Bad),
        (VersionState::Importing, Some(p)) => Field::with(format!("importing, {} %", p / 10), Mood::Middling),
        (VersionState::Importing, None) => Field::with("importing", Mood::Middling),
    }
}

/// Shows one version.
pub fn show(context: &Context, name: &str, v: &VersionResponse) -> Result<()> {
    let mut rows = vec![
        ("version", format!("{name}:{}", v.version.number).into()),
        ("id", v.version.id.to_string().into()),
        ("state", state(v)),
        ("size", size(v.version.size_bytes).into()),
        ("sha-256", v.version.sha256.as_deref().unwrap_or_default().into()),
        ("comment", v.version.comment.as_str().into()),
    ];
    if let Some(error) = &v.version.error {
        rows.push(("error", Field::with(error, Mood::Bad)));
    }
    rows.extend(failure_rows(v.version.failure.as_ref()));
    context.out.one(v, rows)
}
