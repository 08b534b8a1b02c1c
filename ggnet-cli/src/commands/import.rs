//! `ggnet image import`: begins an import and follows it to its end.
//!
//! The import is the server's. Whoever watches it may go (Ctrl-C, a time limit, a lost connection) without harm to it.

use std::time::Duration;

use ggnet_core::{
    api::{ImportImageRequest, ImportResponse, VersionResponse},
    nouns::{ImageVersionId, VersionState},
};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::{Context, image_version};
use crate::{
    client::Client,
    failure::{Failure, Result},
    options::image::Import,
    output::{Output, printable},
};

const POLL: Duration = Duration::from_millis(200);
/// A restart of the server takes a few seconds; one that takes longer is for people to look at.
const PATIENCE: Duration = Duration::from_secs(60);
/// A line each so much of the way, where nobody sees a bar.
const PER_MILLE_PER_LINE: u16 = 100;

/// Imports, and waits unless told otherwise.
pub async fn import(context: &Context, o: Import) -> Result<()> {
    let client = context.client()?;
    let body = ImportImageRequest {
        name: o.name,
        path: o.path,
        format: o.format,
        sha256: o.sha256,
        comment: o.comment,
        make_current: !o.no_current,
    };
    let begun: ImportResponse = client.post(&["images", "import"], &body).await?;
    let label = format!("{}:{}", begun.image.name, begun.version.version.number);
    if o.no_wait {
        context.out.note(&format!("The import goes on; `ggnet image show {}` shows it", begun.image.name));
        return image_version::show(context, begun.image.name.as_str(), &begun.version);
    }
    let id = begun.version.version.id;
    let how =
        format!("`ggnet image show {}` shows it, `ggnet image cancel {label}` cancels it", begun.image.name);
    let ended = tokio::select! {
        ended = follow(&client, context.out, id, &label) => ended?,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(|e| Failure::io("Waiting for Ctrl-C", &e))?;
            return Err(Failure::interrupted(format!("Interrupted; the import of {label} goes on")).hint(how));
        }
        () = limit(o.timeout) => {
            return Err(Failure::timed_out(format!("The import of {label} has not ended yet; it goes on")).hint(how));
        }
    };
    if ended.version.state == VersionState::Failed {
        let why = ended.version.error.as_deref().unwrap_or("the server does not say why");
        let failure =
            Failure::refused(format!("The import of {label} failed and left nothing on the server: {why}"));
        return Err(match &ended.version.failure {
            Some(known) => failure.because_of(known),
            None => failure,
        });
    }
    image_version::show(context, begun.image.name.as_str(), &ended)
}

/// Never ends without a limit.
async fn limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Polls until the version is ready or failed. Dropped at any moment it changes nothing.
async fn follow(client: &Client, out: Output, id: ImageVersionId, label: &str) -> Result<VersionResponse> {
    let mut progress = Progress::new(out, label);
    let mut silent_since = None;
    loop {
        match client.get::<VersionResponse>(&["versions", &id.to_string()], &vec![]).await {
            Ok(v) if v.version.state == VersionState::Importing => {
                silent_since = None;
                progress.at(v.progress_per_mille.unwrap_or(0));
            }
            Ok(v) => {
                progress.end();
                return Ok(v);
            }
            Err(failure) if failure.is_unreachable() => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        sleep(POLL).await;
    }
}

/// A bar on a terminal, a line now and then elsewhere, nothing when nobody wants it.
enum Progress {
    Bar(ProgressBar),
    Lines { out: Output, label: String, next: u16 },
}

impl Progress {
    fn new(out: Output, label: &str) -> Self {
        if !out.shows_progress() {
            return Self::Lines { out, label: label.to_owned(), next: 0 };
        }
        let bar = ProgressBar::new(1000);
        if let Ok(style) = ProgressStyle::with_template("{msg}  [{bar:40}] {percent:>3} %  {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(format!("importing {}", printable(label)));
        Self::Bar(bar)
    }

    fn at(&mut self, per_mille: u16) {
        match self {
            Self::Bar(bar) => bar.set_position(u64::from(per_mille)),
            Self::Lines { out, label, next } if per_mille >= *next => {
                out.note(&format!("importing {label}: {} %", per_mille / 10));
                *next = per_mille - per_mille % PER_MILLE_PER_LINE + PER_MILLE_PER_LINE;
            }
            Self::Lines { .. } => {}
        }
    }

    fn end(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { .. } => {}
        }
    }
}
