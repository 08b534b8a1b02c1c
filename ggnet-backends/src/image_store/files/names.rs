//! The names in the folder of the versions, and what exists of one version.
//!
//! ```text
//!   <dir>/<version>.raw             a raw version, sparse; this name is unchanged since the first data folders
//!         <version>/                a version that is a layer over another: `data` and `durable` of a writeback in layers
//!         .draft-<version>.raw      a raw version that is not sealed
//!         .removed-<version>/       a layer that is being removed
//! ```
//! `<version>` is the id in its usual form, with hyphens. All other names are not ours: never listed, never changed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ggnet_core::nouns::ImageVersionId;

const RAW: &str = ".raw";
const DRAFT: &str = ".draft-";
const REMOVED: &str = ".removed-";
/// Files that the converters of earlier versions left in the folder when they were killed: `.<version>.raw.partial-<16 hexadecimal
/// digits>`.
const PARTIAL: &str = ".raw.partial-";

/// The paths of the parts of versions.
pub(super) struct Names(pub(super) PathBuf);

impl Names {
    /// The file of a raw version.
    pub(super) fn raw(&self, id: ImageVersionId) -> PathBuf {
        self.0.join(format!("{id}{RAW}"))
    }

    /// The file of a version that is not sealed.
    pub(super) fn draft(&self, id: ImageVersionId) -> PathBuf {
        self.0.join(format!("{DRAFT}{id}{RAW}"))
    }

    /// The folder of a version that is a layer.
    pub(super) fn layer(&self, id: ImageVersionId) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// That folder while it is being removed.
    pub(super) fn removed(&self, id: ImageVersionId) -> PathBuf {
        self.0.join(format!("{REMOVED}{id}"))
    }

    /// The folder of all versions.
    pub(super) fn dir(&self) -> &Path {
        &self.0
    }
}

/// What exists of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) raw: bool,
    pub(super) layer: bool,
    pub(super) draft: bool,
    pub(super) removed: bool,
    /// Leftovers of earlier versions of GGnet.
    pub(super) partial: Vec<String>,
}

impl Found {
    /// Whether a version was completed here, even if it is damaged now.
    pub(super) const fn is_sealed(&self) -> bool {
        self.raw || self.layer
    }
}

/// What exists according to the names in the folder.
pub(super) fn found(names: &[String]) -> BTreeMap<ImageVersionId, Found> {
    let mut all = BTreeMap::<_, Found>::new();
    for name in names {
        if let Some(id) = version(name) {
            all.entry(id).or_default().layer = true;
        } else if let Some(id) = name.strip_suffix(RAW).and_then(version) {
            all.entry(id).or_default().raw = true;
        } else if let Some(id) = name.strip_prefix(DRAFT).and_then(|n| n.strip_suffix(RAW)).and_then(version)
        {
            all.entry(id).or_default().draft = true;
        } else if let Some(id) = name.strip_prefix(REMOVED).and_then(version) {
            all.entry(id).or_default().removed = true;
        } else if let Some(id) = partial(name) {
            all.entry(id).or_default().partial.push(name.clone());
        }
    }
    all
}

/// An id in the exact form of names, because `open` must find what `list` shows.
fn version(text: &str) -> Option<ImageVersionId> {
    text.parse::<ImageVersionId>().ok().filter(|id| id.to_string() == text)
}

fn partial(name: &str) -> Option<ImageVersionId> {
    let (id, random) = name.strip_prefix('.')?.split_once(PARTIAL)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    version(id).filter(|_| random.len() == 16 && random.bytes().all(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours_are_read_back_and_no_others_are() {
        let (names, id) = (Names("/i".into()), ImageVersionId::generate());
        let text = id.to_string();
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let partial = format!(".{text}.raw.partial-0123456789abcdef");
        let ours = [names.raw(id), names.layer(id), names.draft(id), names.removed(id)].map(name);
        let ours = [&ours[..], std::slice::from_ref(&partial)].concat();
        let all = found(&ours);
        assert_eq!(all.len(), 1);
        let whole = Found { raw: true, layer: true, draft: true, removed: true, partial: vec![partial] };
        assert_eq!(all[&id], whole);
        let upper = format!("{}.raw", text.to_uppercase());
        let foreign = [
            format!("{}.raw", id.simple()),
            upper,
            format!("{text}.qcow2"),
            format!("x{text}.raw"),
            format!(".{text}.raw.partial-0123456789ABCDEF"),
            format!(".{text}.raw.partial-0123"),
            format!(".draft-{text}"),
            "lost+found".to_owned(),
            ".probe".to_owned(),
        ];
        // An id of digits only has no upper case.
        let expected = usize::from(text.to_uppercase() == text);
        assert_eq!(found(&foreign).len(), expected);
    }

    #[test]
    fn a_file_of_the_first_data_folders_is_the_version_that_it_was() {
        let name = "01a21e2a-bde6-710d-9930-62a51938deb1.raw";
        let all = found(&[name.to_owned()]);
        let (id, what) = all.first_key_value().unwrap();
        assert_eq!(*what, Found { raw: true, ..Found::default() });
        assert_eq!(Names("/i".into()).raw(*id), Path::new("/i").join(name));
    }
}
