//! `ggnet image`, except `import`.

use ggnet_core::{
    api::{ImageResponse, VersionResponse},
    nouns::{ImageState, VersionSource, VersionState},
};

use super::{Context, image_version, import, wire_name};
use crate::{
    client::Client,
    failure::{Failure, Result},
    options::{image::Command, values::VersionRef},
    output::{Field, Mood, confirm, size},
    time,
};

/// Runs one command.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::List => list(context).await,
        Command::Show { image } => show(context, &get(&context.client()?, &image).await?),
        Command::Import(o) => import::import(context, o).await,
        Command::SetCurrent { version: reference } => {
            let client = context.client()?;
            let found = version(&client, &reference, Bare::Refused).await?.version;
            let path = ["images", &found.image.to_string(), "current", &found.id.to_string()];
            let image: ImageResponse = client.post(&path, &serde_json::json!({})).await?;
            show(context, &image)
        }
        Command::Remove { image, yes } => {
            let client = context.client()?;
            confirm(yes.yes, &format!("Remove image {image} with all its versions?"))?;
            client.delete(&["images", &image], &vec![]).await?;
            context.out.done("removed", &image, &format!("Image {image} was removed"))
        }
        Command::RemoveVersion { version: reference, yes } => {
            let client = context.client()?;
            let found = version(&client, &reference, Bare::Refused).await?.version;
            confirm(yes.yes, &format!("Remove image version {reference}?"))?;
            client.delete(&["versions", &found.id.to_string()], &vec![]).await?;
            context.out.done(
                "removed",
                &found.id.to_string(),
                &format!("Image version {reference} was removed"),
            )
        }
        Command::Cancel { version: reference } => {
            let client = context.client()?;
            let found = version(&client, &reference, Bare::Importing).await?.version;
            client.post_empty(&["versions", &found.id.to_string(), "cancel"]).await?;
            context.out.done(
                "cancelled",
                &found.id.to_string(),
                &format!("The import of {reference} is being cancelled"),
            )
        }
    }
}

/// Gets an image by name or id.
pub async fn get(client: &Client, reference: &str) -> Result<ImageResponse> {
    client.get(&["images", reference], &vec![]).await
}

/// Which version an image name without a number refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// The current one.
    Current,
    /// The one whose import is running.
    Importing,
    /// None: a number is required.
    Refused,
}

/// Gets the version of a reference.
pub async fn version(client: &Client, reference: &VersionRef, bare: Bare) -> Result<VersionResponse> {
    match reference {
        VersionRef::Id(id) => client.get(&["versions", &id.to_string()], &vec![]).await,
        VersionRef::Of { image, number } => pick(get(client, image.as_str()).await?, *number, bare),
    }
}

fn pick(response: ImageResponse, number: Option<u32>, bare: Bare) -> Result<VersionResponse> {
    let ImageResponse { image, versions, .. } = response;
    let name = &image.name;
    let mut versions = versions.into_iter();
    let (found, missing) = match (number, bare) {
        (Some(number), _) => {
            (versions.find(|v| v.version.number == number), format!("Image {name} has no version {number}"))
        }
        (None, Bare::Current) => (
            versions.find(|v| Some(v.version.id) == image.current),
            format!("Image {name} has no current version"),
        ),
        (None, Bare::Importing) => (
            versions.rfind(|v| v.version.state == VersionState::Importing),
            format!("No import of image {name} is running"),
        ),
        (None, Bare::Refused) => {
            return Err(Failure::input("VERSION", format!("Which version of {name}? Use {name}:NUMBER"))
                .hint(format!("`ggnet image show {name}` lists them")));
        }
    };
    found.ok_or_else(|| {
        Failure::not_found(missing).hint(format!("`ggnet image show {name}` lists its versions"))
    })
}

async fn list(context: &Context) -> Result<()> {
    let images = context.client()?.list::<ImageResponse>(&["images"], &vec![], None).await?.items;
    context.out.list(&["name", "state", "current", "size", "versions", "changed"], &images, |i| {
        let current = i.versions.iter().find(|v| Some(v.version.id) == i.image.current);
        vec![
            i.image.name.as_str().into(),
            state(i),
            current.map(|v| v.version.number.to_string()).unwrap_or_default().into(),
            current.map(|v| size(v.version.size_bytes)).unwrap_or_default().into(),
            i.versions.len().to_string().into(),
            time::ago(i.image.updated_at).into(),
        ]
    })
}

fn state(image: &ImageResponse) -> Field {
    let mood = match image.state {
        ImageState::Ready => Mood::Good,
        ImageState::Importing => Mood::Middling,
        ImageState::Empty => Mood::Bad,
    };
    Field::with(wire_name(&image.state), mood)
}

fn show(context: &Context, i: &ImageResponse) -> Result<()> {
    if context.out.is_json() {
        return context.out.json(i);
    }
    let rows = vec![
        ("name", i.image.name.as_str().into()),
        ("id", i.image.id.to_string().into()),
        ("description", i.image.description.as_str().into()),
        ("state", state(i)),
        ("created", time::exact(i.image.created_at).into()),
        ("changed", format!("{} (revision {})", time::exact(i.image.updated_at), i.image.revision).into()),
    ];
    context.out.one(i, rows)?;
    context.out.text("")?;
    context.out.list(
        &["version", "state", "size", "sha-256", "source", "finished", "comment"],
        &i.versions,
        |v| {
            let current = if Some(v.version.id) == i.image.current { " (current)" } else { "" };
            vec![
                format!("{}:{}{current}", i.image.name, v.version.number).into(),
                image_version::state(v),
                if v.version.size_bytes == 0 { Field::from("") } else { size(v.version.size_bytes).into() },
                v.version.sha256.as_deref().and_then(|s| s.get(..12)).unwrap_or_default().into(),
                source(&v.version.source).into(),
                v.version.finished_at.map(time::ago).unwrap_or_default().into(),
                v.version.comment.as_str().into(),
            ]
        },
    )?;
    for v in i.versions.iter().filter(|v| v.version.state == VersionState::Failed) {
        context.out.text("")?;
        image_version::show(context, i.image.name.as_str(), v)?;
    }
    Ok(())
}

fn source(source: &VersionSource) -> String {
    match source {
        VersionSource::Import { path, .. } => path.display().to_string(),
        VersionSource::Writeback { session, .. } => format!("session {session}"),
    }
}
