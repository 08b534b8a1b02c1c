//! Runs one case in a runtime of its own, and reports what was not run.

use std::{collections::BTreeSet, future::Future, io::Write as _, time::Duration};

/// Runs a case. A case that hangs is ended after five minutes, so that the others are reported.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the operating system gives threads to a test");
    runtime.block_on(async {
        let ended = tokio::time::timeout(Duration::from_secs(300), case).await;
        assert!(ended.is_ok(), "The case hangs: a call of the backend has not returned for five minutes");
    });
    // A call that the backend left on a blocking thread must not delay the other tests.
    runtime.shutdown_background();
}

/// Writes which cases were not run directly to standard error, because libtest hides the output of a passing test. With `expected`, fails
/// unless exactly these were not run.
pub fn report(module: &str, not_run: &[(&'static str, String)], expected: Option<&[&'static str]>) {
    let mut text = String::new();
    for (case, reason) in not_run {
        text.push_str(&format!("behaviour of {module}: not run: {case} ({reason})\n"));
    }
    // Nothing to do about a closed standard error.
    let _ = std::io::stderr().write_all(text.as_bytes());
    if let Some(expected) = expected {
        let have: BTreeSet<&str> = not_run.iter().map(|(case, _)| *case).collect();
        let want: BTreeSet<&str> = expected.iter().copied().collect();
        assert_eq!(have, want, "other cases than the expected ones (right) were not run (left):\n{text}");
    }
}

/// Makes a module with one test per case, and the report.
#[doc(hidden)]
#[macro_export]
macro_rules! __behaviour {
    ($module:ident, $fixture:expr, $port:ident, $expected:expr, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "the fixture's expression names what the file around it can name")]
            use super::*;

            $(
                #[test]
                fn $case() {
                    $crate::testkit::suite::run(async {
                        let fixture = $fixture;
                        if $crate::testkit::suite::$port::not_run(&fixture, stringify!($case)).await.is_none() {
                            $crate::testkit::suite::$port::$case(&fixture).await;
                        }
                    });
                }
            )*

            #[test]
            fn undeclared_capabilities() {
                $crate::testkit::suite::run(async {
                    let fixture = $fixture;
                    let mut cases: Vec<(&'static str, String)> = Vec::new();
                    $(
                        if let Some(reason) =
                            $crate::testkit::suite::$port::not_run(&fixture, stringify!($case)).await
                        {
                            cases.push((stringify!($case), reason));
                        }
                    )*
                    $crate::testkit::suite::report(stringify!($module), &cases, $expected);
                });
            }
        }
    };
}
