//! The behaviour of every [`Store`]: what the port's documentation promises, one case a promise.
//!
//! ```text
//! ggnet_core::store_behaviour!(behaviour, MyFixture::new());
//! ```
//! makes one test of every case; the expression makes a [`Fixture`] for each. A case fails by panicking. Cases never look at a clock
//! and never sleep; they run on a runtime with two threads.
//!
//! The functions `machine`, `image`, `version`, `session`, `job` … make whole records, for tests of a backend's own.
#![expect(clippy::unwrap_used, reason = "a case fails by panicking, as a test does")]

mod batches;
mod constraints;
mod jobs;
mod lists;
mod logs;
mod records;
mod support;

pub use batches::*;
pub use constraints::*;
pub use jobs::*;
pub use lists::*;
pub use logs::*;
pub use records::{
    at, audit, event, generation, image, mac, machine, seen, session, target, version, with_data,
};

use super::Fixture;
use crate::ports::Store;

type Fresh<'a> = &'a dyn Fixture<dyn Store>;

/// One `#[tokio::test]` for every case of the behaviour of a [`Store`], in a module of the given name. The expression makes a
/// [`Fixture<dyn Store>`](Fixture) and is evaluated once per case; the caller's crate needs tokio with `macros` and
/// `rt-multi-thread`.
#[macro_export]
macro_rules! store_behaviour {
    ($module:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::store_behaviour!(@cases $fixture;
                an_empty_store_has_nothing
                everything_is_there_after_a_crash
                a_batch_is_applied_whole_or_not_at_all
                a_batch_is_applied_in_order
                of_many_commits_at_once_each_is_whole_or_refused_alone
                names_are_unique
                mac_addresses_are_unique
                a_machine_without_cards_is_refused
                a_record_changes_only_over_the_revision_it_was_read_with
                of_two_operators_exactly_one_wins
                a_stale_fence_changes_nothing
                a_machine_has_at_most_one_live_session
                a_job_changes_only_over_the_revision_it_was_read_with
                a_subject_has_at_most_one_live_job
                jobs_are_listed_by_page_and_filtered
                pruning_forgets_ended_jobs
                a_machine_with_a_live_session_is_not_deleted
                a_version_in_use_is_not_deleted
                a_version_of_a_data_disk_is_in_use
                an_image_in_use_is_not_deleted
                references_must_exist
                versions_are_replaced_and_numbered
                deleting_nothing_is_not_found
                lists_are_ordered_and_paged
                machines_are_filtered
                sessions_are_filtered_newest_first
                names_are_read_for_a_page
                versions_are_read_for_a_page
                session_counters_never_drift
                events_are_read_by_cursor
                a_cursor_outside_of_what_is_kept_is_refused
                audit_rows_come_newest_first
                seen_machines_are_counted
                only_the_latest_unknown_machines_are_kept
                settings_are_replaced
                pruning_keeps_what_is_needed
                a_dropped_commit_is_whole_or_absent
                a_store_that_was_shut_down_says_so
            );
        }
    };
    (@cases $fixture:expr; $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = $fixture;
                $crate::testkit::suite::store::$case(&fixture).await;
            }
        )+
    };
}
