//! What the converter "qemu-img" registers.

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
            ("program", "A path, or a name that is looked up in the system's folders; left out: qemu-img"),
            ("rate_limit", "Bytes per second that a conversion may write; left out: no limit"),
            ("max_virtual_size", "The largest disk in bytes that is imported; left out: 16 TiB"),
            ("probe_timeout_secs", "Seconds until a probe is given up; left out: 600"),
            ("convert_timeout_secs", "Seconds until a conversion is given up; left out: 86400"),
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
