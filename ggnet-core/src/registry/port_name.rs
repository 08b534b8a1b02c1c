//! [`PortName`]: the ports whose backends are chosen by name, each with a section of the configuration.

use std::fmt;

/// One of the ports that the configuration has a section for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortName {
    /// [`Store`](crate::ports::Store).
    Store,
    /// [`TargetBackend`](crate::ports::TargetBackend).
    Target,
    /// [`ImageStore`](crate::ports::ImageStore).
    Images,
    /// [`WritebackStore`](crate::ports::WritebackStore).
    Writeback,
    /// [`DhcpBackend`](crate::ports::DhcpBackend).
    Dhcp,
    /// [`BootFileStore`](crate::ports::BootFileStore).
    BootFiles,
    /// [`ImageConverter`](crate::ports::ImageConverter).
    Converter,
}

impl PortName {
    /// All of them, in the order in which their backends are made.
    pub const ALL: [Self; 7] = [
        Self::Store,
        Self::Target,
        Self::Images,
        Self::Writeback,
        Self::Dhcp,
        Self::BootFiles,
        Self::Converter,
    ];

    /// The name of its section.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Target => "target",
            Self::Images => "images",
            Self::Writeback => "writeback",
            Self::Dhcp => "dhcp",
            Self::BootFiles => "boot_files",
            Self::Converter => "converter",
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
