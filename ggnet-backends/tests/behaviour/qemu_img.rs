//! The image converter "qemu-img", over images that qemu-img itself made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_backends::{
    image::qemu_img::{QemuImg, QemuImgConfig},
    run::SystemRunner,
};
use ggnet_core::{
    nouns::ImageFormat,
    ports::ImageConverter,
    testkit::suite::{ConverterFixture, Fixture},
};
use tempfile::TempDir;

use crate::iscsi_support::tool;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

#[async_trait]
impl Fixture<dyn ImageConverter> for Images {
    async fn fresh(&self) -> Arc<dyn ImageConverter> {
        Arc::new(QemuImg::new(QemuImgConfig::default(), Arc::new(SystemRunner::new().unwrap())))
    }

    /// Dropping the old runner killed the programs that it was running.
    async fn reopen(&self) -> Arc<dyn ImageConverter> {
        self.fresh().await
    }
}

#[async_trait]
impl ConverterFixture for Images {
    fn folder(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn has_samples(&self) -> bool {
        true
    }

    async fn samples(&self, dir: &Path, raw: &Path) -> Vec<(ImageFormat, PathBuf)> {
        let mut samples = Vec::new();
        for format in
            [ImageFormat::Qcow2, ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Vmdk, ImageFormat::Vdi]
        {
            let name = format.qemu_name();
            let path = dir.join(format!("sample.{name}"));
            let argv = [
                "qemu-img",
                "convert",
                "-f",
                "raw",
                "-O",
                name,
                raw.to_str().unwrap(),
                path.to_str().unwrap(),
            ];
            let said = tool("qemu-utils", &argv).await;
            assert!(said.ok, "{name}: {}", said.text);
            samples.push((format, path));
        }
        samples
    }
}

ggnet_core::converter_behaviour!(behaviour, Images::new(), not_run: []);
