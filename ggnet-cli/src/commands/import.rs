//! `ggnet image import`: starts an import and waits for its end.
//!
//! The import runs on the server. If this command ends early (Ctrl-C, a timeout, a lost connection), the import continues.

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
/// How long the server may be unreachable. A restart takes a few seconds; after a longer outage the command fails.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(60);
/// Without a progress bar: one line per 10 %.
const PER_MILLE_PER_LINE: u16 = 100;

/// Starts an import and, unless `--no-wait` is given, waits for its end.
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
        context.out.note(&format!(
            "The import continues; `ggnet image show {}` shows its progress",
            begun.image.name
        ));
        return image_version::show(context, begun.image.name.as_str(), &begun.version);
    }
    let id = begun.version.version.id;
    let how = format!(
        "`ggnet image show {}` shows its progress, `ggnet image cancel {label}` cancels it",
        begun.image.name
    );
    let ended = tokio::select! {
        ended = follow(&client, context.out, id, &label) => ended?,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(|e| Failure::io("Waiting for Ctrl-C", &e))?;
            return Err(Failure::interrupted(format!("Interrupted; the import of {label} continues")).hint(how));
        }
        () = limit(o.timeout) => {
            return Err(Failure::timed_out(format!("The import of {label} did not end in time; it continues")).hint(how));
        }
    };
    if ended.version.state == VersionState::Failed {
        let why = ended.version.error.as_deref().unwrap_or("the server gave no reason");
        let failure =
            Failure::refused(format!("The import of {label} failed and left no data on the server: {why}"));
        return Err(match &ended.version.failure {
            Some(known) => failure.because_of(known),
            None => failure,
        });
    }
    image_version::show(context, begun.image.name.as_str(), &ended)
}

/// Sleeps for `limit`; without one, for ever.
async fn limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Polls until the version is ready or failed. Can be dropped at any time.
async fn follow(client: &Client, out: Output, id: ImageVersionId, label: &str) -> Result<VersionResponse> {
    let mut progress = Progress::new(out, label);
    let mut unreachable_since = None;
    loop {
        match client.get::<VersionResponse>(&["versions", &id.to_string()], &vec![]).await {
            Ok(v) if v.version.state == VersionState::Importing => {
                unreachable_since = None;
                progress.at(v.progress_per_mille.unwrap_or(0));
            }
            Ok(v) => {
                progress.end();
                return Ok(v);
            }
            Err(failure) if failure.is_unreachable() => {
                let since = *unreachable_since.get_or_insert_with(Instant::now);
                if since.elapsed() > UNREACHABLE_LIMIT {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        sleep(POLL).await;
    }
}

/// Progress: a bar on a terminal, else lines; `--quiet` and JSON suppress both.
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
