//! `ggnet job`.

use ggnet_core::nouns::{Job, JobId, JobState};

use super::{Context, failure_rows};
use crate::{
    client::{Client, Query},
    failure::Result,
    options::job::{Command, List},
    output::{Field, Mood},
    time,
};

/// Runs one command.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::List(o) => list(context, &o).await,
        Command::Show { job } => show(context, &get(&context.client()?, job).await?),
        Command::Cancel { job } => show(context, &post(&context.client()?, job, "cancel").await?),
        Command::Retry { job } => show(context, &post(&context.client()?, job, "retry").await?),
    }
}

async fn get(client: &Client, id: JobId) -> Result<Job> {
    client.get(&["jobs", &id.to_string()], &vec![]).await
}

async fn post(client: &Client, id: JobId, what: &str) -> Result<Job> {
    client.post(&["jobs", &id.to_string(), what], &serde_json::json!({})).await
}

async fn list(context: &Context, o: &List) -> Result<()> {
    let mut query: Query = Vec::new();
    match o.state {
        Some(state) => query.push(("state", state.as_str().to_owned())),
        None if !o.all => query.push(("live", "true".to_owned())),
        None => {}
    }
    let jobs = context.client()?.list::<Job>(&["jobs"], &query, o.limit).await?.items;
    context.out.list(&["id", "job", "state", "progress", "requested", "error"], &jobs, |job| {
        vec![
            job.id.to_string().into(),
            job.title.as_str().into(),
            state(job),
            progress(job).into(),
            time::ago(job.created_at).into(),
            job.error.as_deref().unwrap_or_default().into(),
        ]
    })
}

fn state(job: &Job) -> Field {
    let mood = match job.state {
        JobState::Succeeded => Mood::Good,
        JobState::Queued | JobState::Running => Mood::Middling,
        JobState::Failed => Mood::Bad,
        JobState::Cancelled => Mood::Plain,
    };
    let ending = if job.state.is_live() && job.cancel_requested { ", being cancelled" } else { "" };
    Field::with(format!("{}{ending}", job.state.as_str()), mood)
}

fn progress(job: &Job) -> String {
    match job.state {
        JobState::Running => format!("{} %", job.progress_per_mille / 10),
        _ => String::new(),
    }
}

fn show(context: &Context, job: &Job) -> Result<()> {
    let mut rows = vec![
        ("id", job.id.to_string().into()),
        ("job", job.title.as_str().into()),
        ("subject", job.subject.to_string().into()),
        ("state", state(job)),
        ("progress", progress(job).into()),
        ("step", job.step.as_str().into()),
        ("attempts", job.attempts.to_string().into()),
        ("requested", time::exact(job.created_at).into()),
        ("started", job.started_at.map(time::exact).unwrap_or_default().into()),
        ("ended", job.finished_at.map(time::exact).unwrap_or_default().into()),
    ];
    if let Some(error) = &job.error {
        rows.push(("error", error.as_str().into()));
        rows.extend(failure_rows(job.failure.as_ref()));
    }
    context.out.one(job, rows)
}
