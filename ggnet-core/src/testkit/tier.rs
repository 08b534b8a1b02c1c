//! How long tests may take: the quick tier, which runs before every change lands, or the long tier.
//!
//! A test that repeats something asks [`rounds`] how often. The repetitions of the quick tier must find the same defects, only with less
//! certainty. The variable `GGNET_TEST_TIER=long` selects the long tier; `make test-long` sets it.

/// Returns `quick` in the quick tier, which is the default, and `long` in the long one.
///
/// # Panics
/// `GGNET_TEST_TIER` is neither `quick` nor `long`.
#[must_use]
pub fn rounds<N>(quick: N, long: N) -> N {
    let tier = std::env::var("GGNET_TEST_TIER").unwrap_or_default();
    match tier.as_str() {
        "" | "quick" => quick,
        "long" => long,
        other => panic!("GGNET_TEST_TIER={other}: quick or long"),
    }
}
