//! Images with their versions.

use std::collections::{BTreeSet, HashMap};

use super::Reads;
use crate::{
    error::{Error, Result},
    nouns::{Image, ImageId, ImageState, ImageVersion, ImageVersionId, Name, VersionState},
    ports::{ImageListed, Page, PageRequest},
};

/// An image with its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageView {
    /// The image.
    pub image: Image,
    /// Whether it can be booted.
    pub state: ImageState,
    /// Its versions, by number.
    pub versions: Vec<VersionView>,
}

/// A version, and how far its import is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionView {
    /// The version.
    pub version: ImageVersion,
    /// How far the import is, in per mille, while it is under way.
    pub progress_per_mille: Option<u16>,
}

impl Reads<'_> {
    /// Images by name, with their versions: two reads, however many images there are.
    ///
    /// # Errors
    /// `Invalid` for a page that cannot be; else as the store says.
    pub async fn images(self, page: PageRequest) -> Result<Page<ImageView>> {
        let Page { items, total, page, per_page } = self.store().images(page).await?;
        let ids: Vec<ImageId> = items.iter().map(|image| image.id).collect();
        let mut versions: HashMap<ImageId, Vec<ImageVersion>> = HashMap::new();
        for version in self.store().versions_of(&ids).await? {
            versions.entry(version.image).or_default().push(version);
        }
        let with_versions = |image: Image| {
            let versions = versions.remove(&image.id).unwrap_or_default();
            self.view(image, versions)
        };
        Ok(Page { items: items.into_iter().map(with_versions).collect(), total, page, per_page })
    }

    /// An image by its id or name.
    ///
    /// # Errors
    /// `NotFound`: there is none; else as the store says.
    pub async fn image(self, reference: &str) -> Result<Image> {
        let mut found = None;
        if let Ok(id) = reference.parse::<ImageId>() {
            found = self.store().image(id).await?;
        } else if let Ok(name) = reference.parse::<Name>() {
            found = self.store().image_by_name(&name).await?;
        }
        found.ok_or_else(|| Error::not_found("image", reference).with_hint("`ggnet image list` shows all"))
    }

    /// This image with its versions.
    ///
    /// # Errors
    /// As the store says.
    pub async fn image_view(self, image: Image) -> Result<ImageView> {
        let versions = self.store().versions(image.id).await?;
        Ok(self.view(image, versions))
    }

    /// A version.
    ///
    /// # Errors
    /// `NotFound`: there is none; else as the store says.
    pub async fn version(self, id: ImageVersionId) -> Result<VersionView> {
        let found = self.store().version(id).await?;
        Ok(self.version_view(found.ok_or_else(|| Error::not_found("image version", id))?))
    }

    /// This version, and how far its import is.
    #[must_use]
    pub fn version_view(self, version: ImageVersion) -> VersionView {
        VersionView { progress_per_mille: self.orchestrator.images().import_progress(version.id), version }
    }

    /// A version for people: `win11 version 3`; with ids where the records are gone.
    ///
    /// # Errors
    /// As the store says.
    pub async fn version_name(self, id: ImageVersionId) -> Result<String> {
        let Some(version) = self.store().version(id).await? else { return Ok(format!("version {id}")) };
        let image = self.store().image(version.image).await?;
        let image = image.map_or_else(|| version.image.to_string(), |image| image.name.to_string());
        Ok(format!("{image} version {}", version.number))
    }

    /// The name of the image store, as in the configuration.
    #[must_use]
    pub fn image_store(self) -> &'static str {
        self.ports().images().name()
    }

    /// What the image store has.
    ///
    /// # Errors
    /// As the image store says: then it is not known.
    pub async fn stored_versions(self) -> Result<Vec<ImageListed>> {
        self.ports().images().list().await
    }

    /// The current version of each image, what machines are pinned to, and what live sessions stand on: those whose bytes must be there for a
    /// machine that asks now. Reads the store alone: the image store says whether they are there.
    ///
    /// # Errors
    /// As the store says.
    pub async fn versions_to_boot(self) -> Result<BTreeSet<ImageVersionId>> {
        let mut versions = BTreeSet::new();
        let mut read = 0;
        for page in 1.. {
            let got = self.store().images(PageRequest { page, per_page: 1000 }).await?;
            read += got.items.len() as u64;
            let last = got.items.is_empty() || read >= got.total;
            versions.extend(got.items.into_iter().filter_map(|image| image.current));
            if last {
                break;
            }
        }
        let machines = self.orchestrator.shared().all_machines().await?;
        versions.extend(machines.into_iter().filter_map(|machine| machine.pinned_version));
        for session in self.store().live_sessions().await? {
            versions.extend(session.versions());
        }
        Ok(versions)
    }

    fn view(self, image: Image, versions: Vec<ImageVersion>) -> ImageView {
        let state = if image.current.is_some() {
            ImageState::Ready
        } else if versions.iter().any(|v| v.state == VersionState::Importing) {
            ImageState::Importing
        } else {
            ImageState::Empty
        };
        let versions = versions.into_iter().map(|version| self.version_view(version)).collect();
        ImageView { image, state, versions }
    }
}
