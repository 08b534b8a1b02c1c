//! [`Owner`]: lets root do work with the rights of another user.
//!
//! Linux keeps user, groups and capabilities per thread. So the work runs in a new thread that drops its rights permanently and then ends:
//! nothing has to be restored, so restoring cannot fail.

use std::io;

use rustix::{
    process::geteuid,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

pub use rustix::fs::{Gid, Uid};

/// A user whose rights are sufficient for some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user ID.
    pub uid: Uid,
    /// Its only group.
    pub gid: Gid,
}

impl Owner {
    /// The user and group with these IDs.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Self {
        Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }
    }

    /// Runs `work` with this user's rights and without capabilities; runs it unchanged if this process already runs as that user. Blocking.
    ///
    /// # Errors
    /// Those of the work; `PermissionDenied` if this process cannot change to that user.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if geteuid() == self.uid {
            return work();
        }
        let Self { uid, gid } = *self;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("owner".to_owned());
            let running = thread.spawn_scoped(scope, move || {
                set_thread_groups(&[])?;
                set_thread_res_gid(gid, gid, gid)?;
                set_thread_res_uid(uid, uid, uid)?;
                work()
            })?;
            running
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that runs as another user panicked")))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn work_has_the_users_rights_and_ours_stay() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::File::create(&secret).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let me = dir.path().metadata().unwrap();
        // Root can no longer read the file as another user; a user other than root can only be itself.
        let (owner, expected) = if me.uid() == 0 {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            (Owner::new(65_534, 65_534), Some(io::ErrorKind::PermissionDenied))
        } else {
            (Owner::new(me.uid(), me.gid()), None)
        };
        let opened = owner.run(|| std::fs::File::open(&secret));
        assert_eq!(opened.err().map(|e| e.kind()), expected);
        std::fs::File::open(&secret).unwrap();
        if me.uid() != 0 {
            let other = Owner::new(me.uid() + 1, me.gid());
            let refused = other.run(|| Ok(())).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
