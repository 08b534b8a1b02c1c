//! Values on the command line: parsers of the nouns, and references to machines, images and versions.

use std::{fmt, str::FromStr};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ggnet_core::{
    Error,
    nouns::{ImageId, ImageVersionId, MachineId, Name},
};
use reqwest::Url;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::failure::{Failure, Result};

/// Parses a noun.
pub fn noun<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| e.message().to_owned())
}

/// Parses one of a noun's values by its name in the API; hyphens stand for underscores.
pub fn one_of<T>(values: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values)
        .try_map(|s| serde_json::from_value::<T>(serde_json::Value::String(s.replace('-', "_"))))
}

/// A value, or `none` to unset it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrNone<T> {
    /// Unset.
    None,
    /// This value.
    Some(T),
}

impl<T> OrNone<T> {
    /// The form of the API: `null` unsets.
    pub fn into_option(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::Some(value) => Some(value),
        }
    }
}

/// Parses a value or `none`.
pub fn or_none<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<OrNone<T>, String> {
    if text == "none" { Ok(OrNone::None) } else { parse(text).map(OrNone::Some) }
}

fn reference<Id: FromStr<Err = Error>>(text: &str, what: &str) -> Result<String, String> {
    if text.parse::<Id>().is_ok() || text.parse::<Name>().is_ok() {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{text:?} is neither a {what}'s name (letters, digits, hyphens) nor its id (a UUID)"))
}

/// Parses a reference to a machine: name or id.
pub fn machine(text: &str) -> Result<String, String> {
    reference::<MachineId>(text, "machine")
}

/// Parses a reference to an image: name or id.
pub fn image(text: &str) -> Result<String, String> {
    reference::<ImageId>(text, "image")
}

/// Parses an image or `none`.
pub fn image_or_none(text: &str) -> Result<OrNone<String>, String> {
    or_none(text, image)
}

/// A reference to a version: `debian:3`, its id, or `debian` alone where the command implies one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionRef {
    /// By its id.
    Id(ImageVersionId),
    /// By its image and its number.
    Of {
        /// The image's name.
        image: Name,
        /// The number; none: the one that the command implies.
        number: Option<u32>,
    },
}

/// Parses a reference to a version.
pub fn version(text: &str) -> Result<VersionRef, String> {
    if let Ok(id) = text.parse() {
        return Ok(VersionRef::Id(id));
    }
    let bad = || {
        format!(
            "{text:?} is not an image version: expected IMAGE:NUMBER such as debian:3, or the id of a version"
        )
    };
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (name, Some(number.parse().map_err(|_| bad())?)),
        None => (text, None),
    };
    Ok(VersionRef::Of { image: name.parse().map_err(|_| bad())?, number })
}

/// Parses a version or `none`.
pub fn version_or_none(text: &str) -> Result<OrNone<VersionRef>, String> {
    or_none(text, version)
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Of { image, number: Some(number) } => write!(f, "{image}:{number}"),
            Self::Of { image, number: None } => write!(f, "{image}"),
        }
    }
}

/// A server's URL: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl(Url);

/// Parses a server's URL.
pub fn server_url(text: &str) -> Result<ServerUrl, String> {
    // People type "10.0.0.1:8080".
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&full).map_err(|e| format!("{text:?} is not a URL: {e}"))?;
    if url.scheme() != "http" {
        return Err(format!("{text:?}: only http:// is supported"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL contains a user or a password, but GGnet uses a token: `ggnet login`".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?}: give only a host and a port, such as http://10.0.0.1:8080"));
    }
    Ok(ServerUrl(url))
}

impl ServerUrl {
    /// The URL of a path; its segments are escaped.
    pub fn join(&self, path: &[&str]) -> Result<Url> {
        let mut url = self.0.clone();
        let segments = url.path_segments_mut();
        segments.map_err(|()| Failure::input("server", "The server's URL has no host"))?.clear().extend(path);
        Ok(url)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        server_url(&text)
    }
}

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_by_image_and_number() {
        let of = |image: &str, number| VersionRef::Of { image: image.parse().unwrap(), number };
        assert_eq!(version("debian:3"), Ok(of("debian", Some(3))));
        assert_eq!(version("Debian"), Ok(of("debian", None)));
        let id = ImageVersionId::generate();
        assert_eq!(version(&id.to_string()), Ok(VersionRef::Id(id)));
        for bad in ["", "debian:", "debian:x", "debian:-1", "de bian:1", ":1", "a:1:2"] {
            assert!(version(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn none_unsets() {
        assert_eq!(image_or_none("none"), Ok(OrNone::None));
        assert_eq!(image_or_none("debian"), Ok(OrNone::Some("debian".to_owned())));
        assert!(image_or_none("no ne").is_err());
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        assert_eq!(server_url("10.0.0.1:8080").unwrap().to_string(), "http://10.0.0.1:8080");
        assert_eq!(server_url("http://[::1]:8080/").unwrap().to_string(), "http://[::1]:8080");
        assert_eq!(server_url("localhost:80").unwrap(), server_url("http://localhost").unwrap());
        for bad in
            ["https://h:1", "ftp://h", "http://h/api", "http://u:p@h", "http://", "http://h?x=1", "h:99999"]
        {
            assert!(server_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_escaped() {
        let url = server_url("h:1").unwrap().join(&["api", "a/b", "c d?"]).unwrap();
        assert_eq!(url.as_str(), "http://h:1/api/a%2Fb/c%20d%3F");
    }
}
