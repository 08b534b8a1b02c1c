//! The target backend "lio-configfs" on a real kernel: the port's whole behaviour suite on files, on block devices and, for a server that
//! is not root, through the helper; many targets at once, a process that is killed between any two changes, and what the kernel reports
//! about sessions.
//!
//! `--test native` of the package `ggnet-tests` runs this program in virtual machines whose kernel has LIO: as root, with nothing else
//! using LIO, and one test at a time, because all tests share the kernel's only tree. Tests with "targetcli" in their names, which need
//! that program, run in a Debian; the others in a machine that has nothing else.

#![allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "../iscsi_support/mod.rs"]
mod iscsi_support;

mod beside_targetcli;
mod crash;
mod helped;
mod kernel;
mod room;
mod sessions;

use kernel::Kernel;

/// The port's suite on each of them.
macro_rules! behaviour {
    ($($module:ident: $fixture:expr;)*) => {$(
        ggnet_core::target_behaviour!($module, $fixture, not_run: [
            // The capabilities of the backend: CHAP, and as many LUNs as a spec can have.
            chap_it_cannot_demand_is_unsupported,
            mutual_chap_it_cannot_do_is_unsupported,
            too_many_luns_are_refused,
            // It accepts no disk of our process.
            remove_lets_go_of_the_disks,
            // The kernel keeps the size that a file had when its backstore was created.
            a_disk_that_grew_is_served_to_its_end,
            // The kernel does not call us at a login, and continues to serve when our process ends.
            the_newest_login_of_a_name_wins,
            the_gate_is_asked_after_authentication,
            the_gate_can_put_off_and_refuse,
            no_login_is_served_before_the_gate_serves,
            logins_and_first_accesses_are_observed,
            shutdown_closes_connections,
        ]);
    )*};
}

behaviour! {
    on_files: Kernel::with_files();
    on_devices: Kernel::with_devices();
    by_the_helper: Kernel::by_the_helper();
    by_targetcli: Kernel::by_targetcli();
}
