//! [`Diagnosis`]: the explanation that an event gives for a boot, as a code that never changes, with the arguments of its text.
//!
//! As for errors (`error::code`): the text that comes with it is for people and may change, and the functions' parameters are the
//! arguments, so that no call site can leave one out.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// The explanation and its arguments. An event of an older version has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The code, as docs/errors.md lists it.
    pub code: String,
    /// The arguments of its text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
}

/// A row of the list of diagnoses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// The code.
    pub code: &'static str,
    /// The names of its arguments.
    pub args: &'static [&'static str],
    /// When it is given.
    pub meaning: &'static str,
}

macro_rules! diagnoses {
    ($(#[doc = $meaning:literal] $code:ident($($arg:ident),*);)*) => {
        impl Diagnosis {
            $(
                #[doc = $meaning]
                #[must_use]
                pub fn $code($($arg: impl fmt::Display),*) -> Self {
                    let args = [$((stringify!($arg).to_owned(), $arg.to_string())),*];
                    Self { code: stringify!($code).to_owned(), args: BTreeMap::from(args) }
                }
            )*
        }

        /// Every diagnosis.
        pub const ALL: &[Described] = &[$(Described {
            code: stringify!($code),
            args: &[$(stringify!($arg)),*],
            meaning: $meaning.trim_ascii(),
        }),*];
    };
}

diagnoses! {
    // Of `boot_diagnosis`.
    /// The DHCP backend could not offer this machine anything to boot.
    not_answered(reason);
    /// The UEFI loader was fetched but did not start: Secure Boot is probably on.
    secure_boot_likely(mac, seconds);
    /// The loader started but does not reach the HTTP server.
    http_not_reached(mac, seconds);
    /// A running machine connected to its disk again and stopped in the middle of its login: it probably lacks the guest kit.
    login_stalled();
    /// The same, for a login without CHAP.
    login_stalled_without_chap();
    /// Two machines probably boot with the same MAC address, and the one at `address` has lost its disk.
    disk_taken_over(address, boot, current);
    /// The machine still runs, but its session was stopped.
    session_was_stopped(address);

    // Of `boot_declined`.
    /// The machine's state is not `active`.
    set_to(state);
    /// No image is assigned to the machine.
    no_image();
    /// The machine has no session, and auto start is off.
    no_auto_start();
    /// What the machine should boot cannot be booted now.
    not_ready(reason);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_errors_has_every_diagnosis_with_its_arguments_and_no_other() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let page = std::fs::read_to_string(page).unwrap();
        let row = |row: &Described| {
            let args = row.args.iter().map(|arg| format!("`{arg}`")).collect::<Vec<_>>().join(", ");
            format!("| `{}` | {args} | {} |", row.code, row.meaning)
        };
        let table: Vec<_> = ALL.iter().map(row).collect();
        let of_table = |row: &&str| row.starts_with("| `") && row.split(" | ").count() == 3;
        let found: Vec<_> = page.lines().filter(of_table).collect();
        assert_eq!(found, table, "docs/errors.md should have this table:\n{}", table.join("\n"));
        let codes: std::collections::BTreeSet<_> = ALL.iter().map(|row| row.code).collect();
        assert_eq!(codes.len(), ALL.len(), "one is there twice");
    }

    #[test]
    fn a_diagnosis_has_its_arguments() {
        let diagnosis = Diagnosis::secure_boot_likely("52:54:00:aa:00:01", 60);
        assert_eq!(diagnosis.code, "secure_boot_likely");
        assert_eq!(diagnosis.args.values().collect::<Vec<_>>(), ["52:54:00:aa:00:01", "60"]);
    }
}
