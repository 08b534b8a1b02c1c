//! [`BootFileStore`]: the small files that firmware and iPXE fetch (loaders, scripts, Pi configuration).

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Health, Listed, Observer, SpecDigest};
use crate::{
    error::{Error, Result},
    nouns::ResourceId,
};

/// A relative path below the store's root: 1 to 8 parts of `[A-Za-z0-9._-]`, none of them starting with a dot, so that no path can lead out
/// of the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootPath(String);

impl BootPath {
    /// The path, without a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first part and the rest, when it has more than one.
    #[must_use]
    pub fn split_first(&self) -> Option<(&str, BootPath)> {
        let (first, rest) = self.0.split_once('/')?;
        Some((first, BootPath(rest.to_owned())))
    }
}

impl FromStr for BootPath {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let part = |p: &str| {
            !p.is_empty()
                && !p.starts_with('.')
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = s.split('/').collect();
        if s.len() <= 255 && parts.len() <= 8 && parts.iter().all(|p| part(p)) {
            Ok(Self(s.to_owned()))
        } else {
            Err(Error::invalid(
                "path",
                format!("{s:?} is not a boot file path: parts of [A-Za-z0-9._-] joined by /"),
            ))
        }
    }
}

impl fmt::Display for BootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The boot files that belong together under one name: those of a machine, or the loaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootBundle {
    /// Its name among our objects.
    pub id: ResourceId,
    /// Its files. Two bundles never share a path.
    pub files: BTreeMap<BootPath, Bytes>,
}

impl BootBundle {
    /// The digest of the spec: every path and every byte.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let parts = self.files.iter().flat_map(|(path, bytes)| [path.as_str().as_bytes(), bytes.as_ref()]);
        SpecDigest::of(std::iter::once(self.id.as_str().as_bytes()).chain(parts))
    }
}

/// Boot files. See [`crate::ports`] for the contract of `ensure`, `remove` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait BootFileStore: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Sets the observer that is notified of files sent. Called once, before the first `ensure`.
    fn attach(&self, observer: Arc<dyn Observer>);

    /// Makes exactly these files exist under this bundle: changed files are replaced atomically, and files no longer in the bundle are
    /// removed. `Conflict` when another bundle has one of the paths.
    async fn ensure(&self, bundle: &BootBundle) -> Result<()>;

    /// Removes the bundle's files. Transfers in progress are finished, so this is never `Busy`.
    async fn remove(&self, id: &ResourceId) -> Result<()>;

    /// One of our bundles, as `list` shows it; `None` if nothing of it exists.
    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == *id))
    }

    /// Our bundles.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// A file's bytes; `NotFound` when there is none.
    async fn read(&self, path: &BootPath) -> Result<Bytes>;

    /// The store's health.
    async fn health(&self) -> Health;

    /// Stops serving; transfers in progress are cut off.
    async fn shutdown(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_path_cannot_leave_the_root() {
        assert_eq!(
            "machines/52-54-00-12-34-56.ipxe".parse::<BootPath>().unwrap().as_str(),
            "machines/52-54-00-12-34-56.ipxe"
        );
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "a/../b",
            "..",
            "a//b",
            "a/",
            ".hidden",
            "a\0b",
            "a b",
            "a\\b",
            "a/b/c/d/e/f/g/h/i",
        ] {
            assert_eq!(bad.parse::<BootPath>().unwrap_err().field(), Some("path"), "{bad:?}");
        }
    }
}
