//! `ggnet-server helper`: a small process that runs as root for an unprivileged server.
//!
//! It reads the server's configuration, which the operator controls, for the limits of the server: the IQN prefix, the folders of disks,
//! and whether the kernel's target is used at all. Units and user come from its own command line.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_backends::{
    helper_server::{Duties, TargetDuty, serve},
    owner::Owner,
    run::SystemRunner,
    service::{Daemon, Manager, Service, ServiceConfig},
    target::tree_of_helper,
};
use ggnet_core::{Error, ErrorKind, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, log, options::HelperOptions, signals::Stop};

/// Serves until SIGTERM or Ctrl-C, then finishes the requests in flight.
pub async fn helper(config: &Config, options: &HelperOptions) -> Result<()> {
    let _logging = log::start(&config.log)?;
    let mut ends = Stop::catch()?;
    let owner = user(&options.user)?;
    let duties = Duties { owner, target: target(config, &options.disks)?, units: units(&options.units)? };
    let listener = listener(options.socket.as_deref(), &owner)?;
    tracing::info!(
        user = options.user,
        units = ?options.units,
        target = duties.target.is_some(),
        "helper ready"
    );
    let stop = CancellationToken::new();
    let mut serving = std::pin::pin!(serve(listener, duties, stop.clone()));
    // Not started by systemd: no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        () = ends.wait() => {}
        // systemd restarts it.
        () = serving.as_mut() => return Err(Error::internal("The helper ended unexpectedly")),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    serving.await;
    Ok(())
}

fn user(name: &str) -> Result<Owner> {
    let failed = |e| Error::io(format!("looking for user {name}"), std::io::Error::from(e));
    match nix::unistd::User::from_name(name).map_err(failed)? {
        Some(user) => Ok(Owner::new(user.uid.as_raw(), user.gid.as_raw())),
        None => Err(Error::not_found("user", name)
            .with_hint("Run systemd-sysusers to create the user ggnet, or name another one with --user")),
    }
}

/// What the helper may change in the kernel's target; none if the configuration does not use the kernel's target through the helper.
fn target(config: &Config, more: &[PathBuf]) -> Result<Option<TargetDuty>> {
    let Some(root) = tree_of_helper(&config.target.backend, config.target.settings.clone())? else {
        return Ok(None);
    };
    // The server uses canonical paths.
    let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let data = real(&config.data_dir);
    if !data.is_absolute() {
        let message = format!(
            "data_dir {} is not an absolute path, and the helper has another working directory",
            data.display()
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let chosen = config.writeback.settings.get("dir").and_then(serde_json::Value::as_str);
    let disks = chosen.map_or_else(|| data.join("disks"), |dir| real(Path::new(dir)));
    let mut folders = vec![data.join("images"), disks];
    folders.extend(more.iter().map(|dir| real(dir)));
    Ok(Some(TargetDuty::new(root, config.iqn_prefix()?, data.join("instance"), folders)))
}

fn units(names: &[String]) -> Result<BTreeMap<String, Service>> {
    let runner = Arc::new(SystemRunner::new()?);
    let unit = |name: &String| {
        // systemd needs only the name of the unit.
        let daemon = Daemon { program: "", install: "", unit: "", pid_file: "", command: None };
        let config =
            ServiceConfig { manager: Manager::Systemd, unit: Some(name.clone()), ..ServiceConfig::default() };
        Ok((name.clone(), Service::new(&config, &daemon, runner.clone())?))
    };
    names.iter().map(unit).collect()
}

/// The socket passed by systemd, or a new one at `path` for root and the owner's group.
fn listener(path: Option<&Path>, owner: &Owner) -> Result<UnixListener> {
    let Some(path) = path else {
        let handed = listenfd::ListenFd::from_env().take_unix_listener(0);
        let handed =
            handed.map_err(|e| Error::io("taking the socket from systemd", e))?.ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "systemd passed no socket, and --socket is not set")
                    .with_hint(
                        "Run `systemctl start ggnet-helper.socket`; without systemd use --socket /run/ggnet/helper.sock",
                    )
            })?;
        handed.set_nonblocking(true).map_err(|e| Error::io("preparing the socket", e))?;
        return UnixListener::from_std(handed).map_err(|e| Error::io("listening", e));
    };
    let failed = |e| Error::io(format!("listening on {}", path.display()), e);
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("Another helper already listens on {}", path.display());
            return Err(Error::new(ErrorKind::Busy, message).retryable(false));
        }
        // Left behind by a helper that has exited.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // A client that connects before these calls is still checked for its user.
    std::os::unix::fs::chown(path, None, Some(owner.gid.as_raw())).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}
