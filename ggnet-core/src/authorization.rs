//! Who may do what: one table of [`Command`]s, each with the lowest [`Role`] that may run it.
//!
//! The orchestrator checks it before each command. A frontend checks [`Command::Read`] when a request arrives, because reads change nothing
//! and show nothing that a viewer may not see. Roles belong to people and programs; a machine may only boot, and GGnet itself may only do
//! what its reconciler does without a request.

use crate::{
    error::{Error, Result, code},
    nouns::{Principal, PrincipalKind, Role, SystemPart},
};

macro_rules! commands {
    ($(#[doc = $doc:literal] $variant:ident $name:literal $least:ident;)*) => {
        /// A command that a caller can ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Command {
            $(#[doc = $doc] $variant,)*
        }

        impl Command {
            /// Every command.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, dotted. A command that changes something has the same name in the audit log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The lowest role that may run it.
            #[must_use]
            pub const fn least(self) -> Role {
                match self {
                    $(Self::$variant => Role::$least,)*
                }
            }
        }
    };
}

commands! {
    /// Sees machines, images, sessions, targets, events and the audit.
    Read "read" Viewer;
    /// Asks for a boot script; machines may.
    Boot "boot" Operator;
    /// Sees a session's boot script, with its credentials.
    SessionScript "session.script" Operator;
    /// Starts a session.
    SessionStart "session.start" Operator;
    /// Stops a session; the reconciler may.
    SessionStop "session.stop" Operator;
    /// Registers a machine.
    MachineCreate "machine.create" Operator;
    /// Changes a machine.
    MachineUpdate "machine.update" Operator;
    /// Deletes a machine with its kept writes.
    MachineDelete "machine.delete" Operator;
    /// Discards the kept writes of a machine.
    MachineDiscardWriteback "machine.discard_writeback" Operator;
    /// Forgets an unknown machine.
    SeenForget "seen.forget" Operator;
    /// Imports a version of an image.
    ImageImport "image.import" Admin;
    /// Publishes the kept writes of a machine as a version of its image.
    ImagePublish "image.publish" Admin;
    /// Cancels a job.
    JobCancel "job.cancel" Admin;
    /// Retries a job that failed or was cancelled.
    JobRetry "job.retry" Admin;
    /// Makes another version of an image current.
    ImageSetCurrent "image.set_current" Admin;
    /// Deletes an image with its versions.
    ImageDelete "image.delete" Admin;
    /// Deletes a version.
    VersionDelete "version.delete" Admin;
    /// Exports a version to every initiator that reaches the target.
    TargetCreate "target.create" Admin;
    /// Ends such an export.
    TargetDelete "target.delete" Admin;
}

/// Checks that `by` may run this command.
///
/// # Errors
/// `Permission` if not.
pub fn authorize(by: &Principal, command: Command) -> Result<()> {
    let allowed = match &by.kind {
        PrincipalKind::Token { .. } | PrincipalKind::Host | PrincipalKind::Embedder => true,
        PrincipalKind::User { role, .. } => *role >= command.least(),
        PrincipalKind::Machine { .. } => command == Command::Boot,
        PrincipalKind::System { what: SystemPart::Reconciler } => command == Command::SessionStop,
        PrincipalKind::System { what: SystemPart::Upkeep } => false,
    };
    if allowed {
        return Ok(());
    }
    let (name, least) = (command.as_str(), command.least());
    let error = Error::new(
        code::command_not_permitted(name, least),
        format!("{by} may not run {name}: the command needs the role {least}"),
    );
    Err(error.with_hint("Ask someone who has that role, or ask an administrator for it"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{ErrorKind, nouns::AuditAction};

    fn allowed(by: &Principal) -> Vec<Command> {
        Command::ALL.iter().copied().filter(|command| authorize(by, *command).is_ok()).collect()
    }

    #[test]
    fn each_role_may_what_the_ones_before_it_may_and_something_more() {
        let of = |role| allowed(&Principal::user("ann".to_owned(), role));
        let [viewer, operator, admin] = Role::ALL.map(of);
        assert_eq!(viewer, [Command::Read]);
        assert!(viewer.iter().all(|command| operator.contains(command)) && operator.len() > viewer.len());
        assert!(operator.iter().all(|command| admin.contains(command)) && admin.len() > operator.len());
        assert_eq!(admin, Command::ALL);
        for by in [Principal::administrator(), Principal::host(), Principal::embedder()] {
            assert_eq!(allowed(&by), Command::ALL, "{by}");
        }
    }

    #[test]
    fn a_machine_may_only_boot_and_ggnet_only_what_it_does_by_itself() {
        let machine = Principal::machine("52:54:00:00:00:01".parse().unwrap());
        assert_eq!(allowed(&machine), [Command::Boot]);
        assert_eq!(allowed(&Principal::system(SystemPart::Reconciler)), [Command::SessionStop]);
        assert!(allowed(&Principal::system(SystemPart::Upkeep)).is_empty());
    }

    #[test]
    fn a_refusal_says_who_what_and_what_it_takes() {
        let by = Principal::user("ann".to_owned(), Role::Operator).at(Some("192.0.2.7".to_owned()));
        let e = authorize(&by, Command::ImageDelete).unwrap_err();
        assert_eq!(
            (e.kind(), e.code()),
            (ErrorKind::Permission, &code::command_not_permitted("image.delete", "admin"))
        );
        assert!(e.message().contains("user ann at 192.0.2.7") && e.hint().is_some(), "{e}");
    }

    #[test]
    fn a_command_has_one_name_here_and_in_the_audit() {
        let names: BTreeSet<_> = Command::ALL.iter().map(|command| command.as_str()).collect();
        assert_eq!(names.len(), Command::ALL.len());
        let seen_only = [Command::Read, Command::Boot, Command::SessionScript];
        for command in Command::ALL.iter().filter(|command| !seen_only.contains(command)) {
            let name = command.as_str();
            assert!(name.parse::<AuditAction>().is_ok(), "{name} is no action of the audit");
        }
    }
}
