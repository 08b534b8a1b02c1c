//! [`Causes`]: a chain of errors as text. It can be cloned and sent, and [`StdError::source`] still walks it.

use std::{error::Error as StdError, fmt};

use serde::{Deserialize, Serialize};

/// Longer than any real chain. A chain that was received is cut at this length.
const LONGEST: usize = 32;

/// The texts of a chain of causes, nearest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub(super) struct Causes(Option<Box<Cause>>);

/// One cause with its own causes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cause {
    text: String,
    behind: Causes,
}

impl Causes {
    /// The nearest cause, as an error whose sources are the others.
    pub(super) fn first(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The same chain with `more` at its far end.
    pub(super) fn and(self, more: impl IntoIterator<Item = String>) -> Self {
        let mut texts = Vec::from(self);
        texts.extend(more);
        texts.into()
    }
}

/// The texts of an error and of all its sources. Many wrappers repeat the text of their source: the repetition is left out.
pub(super) fn texts(error: &(dyn StdError + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if texts.last().is_none_or(|before| !before.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts
}

impl From<Vec<String>> for Causes {
    fn from(texts: Vec<String>) -> Self {
        let cut = texts.into_iter().take(LONGEST).collect::<Vec<_>>();
        let add = |behind, text| Self(Some(Box::new(Cause { text, behind })));
        cut.into_iter().rev().fold(Self::default(), add)
    }
}

impl From<Causes> for Vec<String> {
    fn from(causes: Causes) -> Self {
        let mut texts = Self::new();
        let mut next = causes.0;
        while let Some(cause) = next {
            texts.push(cause.text);
            next = cause.behind.0;
        }
        texts
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.behind.first()
    }
}
