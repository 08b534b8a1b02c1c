//! The writeback store "external": its disks are files or block devices, for a target that accepts these.

use std::path::PathBuf;

use async_trait::async_trait;
use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageFormat, InstanceId, ResourceId},
    ports::{
        Health, OpenImage, Removal, WritebackCapabilities, WritebackListed, WritebackSpec, WritebackStore,
    },
};
use serde::Deserialize;

use super::{
    ExternalConfig, NAME,
    connection::Connection,
    wire::{Base, EnsureWriteback, Named, Nothing, Remove},
};

/// Private writable disks that an external program creates. See the module above.
pub struct ExternalWritebacks {
    connection: Connection,
    capabilities: WritebackCapabilities,
}

/// The capabilities that a program declares.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Abilities {
    provides: DiskForm,
    kill_safe: bool,
    power_safe: bool,
    discard: bool,
}

impl From<Abilities> for WritebackCapabilities {
    /// Every program gets the version as a file, and no program can hand over the changes: the protocol has no message for that.
    fn from(said: Abilities) -> Self {
        let Abilities { provides, kill_safe, power_safe, discard } = said;
        Self { provides, base: DiskForm::File, freezes: None, kill_safe, power_safe, discard }
    }
}

/// The location of a disk, as a program reports it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(serde::Serialize))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Place {
    /// A plain file.
    File {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: ImageFormat,
    },
    /// A block device of the kernel.
    Device {
        /// Its path.
        path: PathBuf,
    },
}

impl Place {
    /// Converts it to a disk; `Internal` for a relative path, because each process would resolve it differently.
    pub(super) fn into_disk(self) -> Result<Disk> {
        let disk = match self {
            Self::File { path, format } => Disk::File { path, format },
            Self::Device { path } => Disk::Device { path },
        };
        match &disk {
            Disk::File { path, .. } | Disk::Device { path } if path.is_absolute() => Ok(disk),
            _ => Err(Error::internal("The path of the program's disk is not absolute")),
        }
    }
}

impl ExternalWritebacks {
    /// Starts the program and reads its capabilities. If the future is dropped, the program is killed.
    ///
    /// # Errors
    /// As [`ExternalDhcp::open`](super::ExternalDhcp::open).
    pub async fn open(config: ExternalConfig, instance: InstanceId) -> Result<Self> {
        let connection = Connection::open(config, "writeback", instance).await?;
        let capabilities = WritebackCapabilities::from(connection.capabilities::<Abilities>()?);
        if capabilities.provides == DiskForm::Blocks {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "The program declares that it provides blocks, but a program can provide only a file or a device",
            )
            .with_backend(NAME)
            .with_operation("hello"));
        }
        Ok(Self { connection, capabilities })
    }

    /// Checks that a disk has the declared form, because the target was selected by it.
    fn handed_out(&self, place: Place) -> Result<Disk> {
        let disk = place.into_disk()?;
        let promised = self.capabilities.provides;
        if disk.form() == promised {
            Ok(disk)
        } else {
            Err(Error::internal(format!(
                "The program declares that it provides a {promised:?}, but returned {disk:?}"
            )))
        }
    }
}

/// An opened version in the form that a program gets.
fn raw_file(base: &OpenImage) -> Result<Base<'_>> {
    match &base.disk {
        Disk::File { path, format: ImageFormat::Raw } => {
            Ok(Base { version: base.id, path, size_bytes: base.size_bytes })
        }
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "A program needs the image version as a raw file, but version {} is open as {other:?}",
                base.id
            ),
        )),
    }
}

#[async_trait]
impl WritebackStore for ExternalWritebacks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> WritebackCapabilities {
        self.capabilities.clone()
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        let in_context = |e: Error| e.with_backend(NAME).with_operation("ensure");
        spec.check_base(base).map_err(in_context)?;
        let base = raw_file(base).map_err(in_context)?;
        let wanted = EnsureWriteback { digest: spec.digest(), id: &spec.id, base };
        let place = self.connection.call("ensure", spec.id.as_str(), wanted).await?;
        self.handed_out(place).map_err(in_context)
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.connection.tell("remove", id.as_str(), Remove { id, how }).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.connection.call("get", id.as_str(), Named { id }).await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.connection.call("list", "", Nothing {}).await
    }

    async fn health(&self) -> Health {
        self.connection.health().await
    }

    async fn shutdown(&self) {
        self.connection.shut_down().await;
    }
}
