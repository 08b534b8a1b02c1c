//! The descriptor of the converter "qemu-img".

use std::sync::Arc;

use ggnet_core::{
    Result,
    ports::ImageConverter,
    registry::{Descriptor, Finding, Level, Settings, Wiring, settings},
};

use super::{NAME, QemuImg, QemuImgConfig};
use crate::{host, run::SystemRunner};

/// The converter "qemu-img".
#[must_use]
pub fn descriptor() -> Descriptor<dyn ImageConverter> {
    Descriptor::new(NAME, make)
        .summary("Converts disk images with the program qemu-img")
        .keys(&[
            (
                "program",
                "The path, or a name that is looked up in the system's program folders; default: qemu-img",
            ),
            ("rate_limit", "Write limit of a conversion, in bytes per second; default: no limit"),
            ("max_virtual_size", "The largest disk that can be imported, in bytes; default: 16 TiB"),
            ("probe_timeout_secs", "Time limit for a probe, in seconds; default: 600"),
            ("convert_timeout_secs", "Time limit for a conversion, in seconds; default: 86400"),
        ])
        .check(check)
}

async fn make(_: Wiring, table: Settings) -> Result<Arc<dyn ImageConverter>> {
    let config = settings(NAME, table)?;
    Ok(Arc::new(QemuImg::new(config, Arc::new(SystemRunner::new()?))))
}

async fn check(_: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: QemuImgConfig = settings(NAME, table)?;
    host::look(move || {
        let mut findings = vec![host::program(&config.program, "qemu-utils", Level::Fail)];
        findings.extend(host::starters());
        findings
    })
    .await
}
