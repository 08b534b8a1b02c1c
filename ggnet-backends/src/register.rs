//! Hands the factory of every backend that was compiled in to core's registry.
//!
//! A backend's settings are its section of the configuration; what is decided once for all of them comes as [`Wiring`].

use ggnet_core::registry::Registry;
#[cfg(any(
    feature = "bootfile-builtin",
    feature = "bootfile-tftpd-hpa",
    feature = "dhcp-dnsmasq",
    feature = "dhcp-isc-dhcpd",
    feature = "dhcp-proxy",
    feature = "external",
    feature = "image-qemu-img",
    feature = "store-sqlite",
    feature = "target-builtin",
    feature = "target-lio-configfs",
    feature = "writeback-layers",
    feature = "writeback-reflink"
))]
use {
    ggnet_core::{
        error::Result,
        registry::{Settings, Wiring, settings},
    },
    std::sync::Arc,
};

/// Registers our backends.
pub fn register(registry: &mut Registry) {
    // Without any backend feature there is nothing to register.
    let _ = &registry;
    #[cfg(feature = "store-sqlite")]
    registry.stores.add("sqlite", sqlite);
    #[cfg(feature = "target-builtin")]
    registry.targets.add("builtin", builtin_target);
    #[cfg(feature = "target-lio-configfs")]
    registry.targets.add(crate::target::lio_configfs::NAME, lio_configfs);
    #[cfg(feature = "target-lio-targetcli")]
    registry.targets.add(crate::target::lio_targetcli::NAME, lio_targetcli);
    #[cfg(feature = "writeback-layers")]
    registry.writebacks.add("layers", layers);
    #[cfg(feature = "writeback-reflink")]
    registry.writebacks.add(crate::writeback::reflink::NAME, reflink);
    #[cfg(feature = "dhcp-proxy")]
    registry.dhcp.add("proxy", proxy);
    #[cfg(feature = "dhcp-dnsmasq")]
    registry.dhcp.add(crate::dhcp::dnsmasq::NAME, dnsmasq);
    #[cfg(feature = "dhcp-isc-dhcpd")]
    registry.dhcp.add(crate::dhcp::isc_dhcpd::NAME, isc_dhcpd);
    #[cfg(feature = "bootfile-builtin")]
    registry.boot_files.add("builtin", builtin_boot_files);
    #[cfg(feature = "bootfile-tftpd-hpa")]
    registry.boot_files.add(crate::bootfile::tftpd_hpa::NAME, tftpd_hpa);
    #[cfg(feature = "external")]
    {
        registry.dhcp.add(crate::external::NAME, external_dhcp);
        registry.boot_files.add(crate::external::NAME, external_boot_files);
        registry.writebacks.add(crate::external::NAME, external_writebacks);
    }
    #[cfg(feature = "image-qemu-img")]
    registry.converters.add("qemu-img", qemu_img);
}

/// A factory that takes no settings still refuses unknown ones.
#[cfg(feature = "writeback-layers")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

#[cfg(feature = "store-sqlite")]
async fn sqlite(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::Store>> {
    use ggnet_core::ports::Store as _;

    use crate::store::sqlite::{SqliteConfig, SqliteStore};

    let config = SqliteConfig::from_settings(&wiring.data_dir, table)?;
    let store = SqliteStore::open(config).await?;
    // One damaged record must not keep the others from being served.
    if let Err(e) = store.end_unreadable_sessions(wiring.clock.now(), None).await {
        store.shutdown().await;
        return Err(e);
    }
    Ok(Arc::new(store))
}

#[cfg(feature = "target-builtin")]
async fn builtin_target(
    wiring: Wiring,
    table: Settings,
) -> Result<Arc<dyn ggnet_core::ports::TargetBackend>> {
    let config = settings("builtin", table)?;
    let (prefix, instance) = (wiring.iqn_prefix, wiring.instance);
    Ok(Arc::new(crate::target::builtin::BuiltinTargets::start(config, prefix, instance, wiring.clock)?))
}

#[cfg(feature = "target-lio-configfs")]
async fn lio_configfs(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::TargetBackend>> {
    use crate::target::lio_configfs::{LioConfigfs, NAME};
    let config = settings(NAME, table)?;
    let start = move || LioConfigfs::start(config, wiring.iqn_prefix, wiring.instance);
    let started = tokio::task::spawn_blocking(start).await;
    Ok(Arc::new(started.map_err(|e| ggnet_core::Error::internal("Starting LIO died").with_source(e))??))
}

#[cfg(feature = "target-lio-targetcli")]
async fn lio_targetcli(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::TargetBackend>> {
    use crate::target::lio_targetcli::{NAME, start};
    let config = settings(NAME, table)?;
    let home = wiring.data_dir.join("targetcli");
    let start = move || start(config, wiring.iqn_prefix, wiring.instance, &home);
    let started = tokio::task::spawn_blocking(start).await;
    Ok(Arc::new(started.map_err(|e| ggnet_core::Error::internal("Starting LIO died").with_source(e))??))
}

#[cfg(feature = "writeback-layers")]
async fn layers(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::WritebackStore>> {
    let NoSettings {} = settings("layers", table)?;
    let config = crate::writeback::layers::LayersConfig {
        dir: wiring.data_dir.join("writebacks"),
        instance: wiring.instance,
    };
    Ok(Arc::new(opened(move || crate::writeback::layers::Layers::open(config)).await?))
}

#[cfg(feature = "writeback-reflink")]
async fn reflink(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::WritebackStore>> {
    use crate::writeback::reflink::{CopyMode, NAME, Reflink, ReflinkConfig};

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        /// Where the raw files stand.
        dir: Option<std::path::PathBuf>,
        /// What to do where the file system cannot share blocks.
        #[serde(default)]
        copy: CopyMode,
    }
    let table: Table = settings(NAME, table)?;
    let config = ReflinkConfig {
        dir: table.dir.unwrap_or_else(|| wiring.data_dir.join("disks")),
        images: Some(wiring.data_dir.join("images")),
        instance: wiring.instance,
        copy: table.copy,
    };
    Ok(Arc::new(opened(move || Reflink::open(config)).await?))
}

/// Opens a store on a blocking thread.
#[cfg(any(feature = "writeback-layers", feature = "writeback-reflink"))]
async fn opened<T: Send + 'static>(open: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| ggnet_core::Error::internal("Opening the writebacks died").with_source(e))?
}

#[cfg(feature = "dhcp-proxy")]
async fn proxy(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::DhcpBackend>> {
    let names_port = table.get("http_port").is_some();
    let mut config: crate::dhcp::proxy::ProxyDhcpConfig = settings("proxy", table)?;
    if config.interfaces.is_empty() {
        config.interfaces = wiring.interfaces;
    }
    if !names_port {
        config.http_port = wiring.http_port;
    }
    if let (true, Some(std::net::IpAddr::V4(address))) = (config.advertise.is_empty(), wiring.advertise) {
        config.advertise = config.interfaces.iter().map(|name| (name.clone(), address)).collect();
    }
    Ok(Arc::new(crate::dhcp::proxy::ProxyDhcp::start(config).await?))
}

/// The address that machines are told by a backend of which we know no interface's own.
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd"))]
fn advertised(wiring: &Wiring) -> Option<std::net::Ipv4Addr> {
    match wiring.advertise {
        Some(std::net::IpAddr::V4(address)) => Some(address),
        _ => None,
    }
}

#[cfg(feature = "dhcp-dnsmasq")]
async fn dnsmasq(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::DhcpBackend>> {
    use crate::dhcp::dnsmasq::{Dnsmasq, DnsmasqConfig, NAME};

    let names_port = table.get("http_port").is_some();
    let mut config: DnsmasqConfig = settings(NAME, table)?;
    if !names_port {
        config.http_port = wiring.http_port;
    }
    config.advertise = config.advertise.or_else(|| advertised(&wiring));
    let runner = Arc::new(crate::run::SystemRunner::new()?);
    Ok(Arc::new(Dnsmasq::open(config, &wiring.instance, runner).await?))
}

#[cfg(feature = "dhcp-isc-dhcpd")]
async fn isc_dhcpd(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::DhcpBackend>> {
    use crate::dhcp::isc_dhcpd::{IscDhcpd, IscDhcpdConfig, NAME};

    let names_port = table.get("http_port").is_some();
    let mut config: IscDhcpdConfig = settings(NAME, table)?;
    if !names_port {
        config.http_port = wiring.http_port;
    }
    config.advertise = config.advertise.or_else(|| advertised(&wiring));
    let runner = Arc::new(crate::run::SystemRunner::new()?);
    Ok(Arc::new(IscDhcpd::open(config, &wiring.instance, runner).await?))
}

#[cfg(feature = "bootfile-builtin")]
async fn builtin_boot_files(
    wiring: Wiring,
    table: Settings,
) -> Result<Arc<dyn ggnet_core::ports::BootFileStore>> {
    use crate::bootfile::builtin::{BuiltinBootFiles, TftpConfig};

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        /// Served by TFTP when given, or when an interface is named.
        tftp: Option<TftpConfig>,
        /// Where Debian's package `ipxe` puts its loaders.
        #[serde(default = "debian")]
        loaders_dir: std::path::PathBuf,
    }
    fn debian() -> std::path::PathBuf {
        crate::bootfile::loaders::DEBIAN_IPXE_DIR.into()
    }
    let table: Table = settings("builtin", table)?;
    let store = BuiltinBootFiles::new();
    let loaders = ensure_loaders(&store, &table.loaders_dir).await?;
    let tftp = table.tftp.or_else(|| (!wiring.interfaces.is_empty()).then(TftpConfig::default));
    if let Some(tftp) = tftp {
        // Firmware asks us for them.
        store.loaders_are(loaders.health());
        let bound = store.serve_tftp(tftp).await?;
        tracing::info!(?bound, "TFTP is served");
    }
    Ok(Arc::new(store))
}

#[cfg(feature = "bootfile-tftpd-hpa")]
async fn tftpd_hpa(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::BootFileStore>> {
    use crate::bootfile::tftpd_hpa::{NAME, TftpdHpa, TftpdHpaConfig};

    let config: TftpdHpaConfig = settings(NAME, table)?;
    let loaders = config.loaders_dir.clone();
    let store = TftpdHpa::open(config, wiring.instance).await?;
    ensure_loaders(&store, &loaders).await?;
    Ok(Arc::new(store))
}

#[cfg(feature = "external")]
async fn external_dhcp(wiring: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::DhcpBackend>> {
    let config = settings(crate::external::NAME, table)?;
    Ok(Arc::new(crate::external::ExternalDhcp::open(config, wiring.instance).await?))
}

#[cfg(feature = "external")]
async fn external_boot_files(
    wiring: Wiring,
    table: Settings,
) -> Result<Arc<dyn ggnet_core::ports::BootFileStore>> {
    let (config, loaders) = crate::external::boot_file_settings(table)?;
    let store = crate::external::ExternalBootFiles::open(config, wiring.instance).await?;
    ensure_loaders(&store, &loaders).await?;
    Ok(Arc::new(store))
}

#[cfg(feature = "external")]
async fn external_writebacks(
    wiring: Wiring,
    table: Settings,
) -> Result<Arc<dyn ggnet_core::ports::WritebackStore>> {
    let config = settings(crate::external::NAME, table)?;
    Ok(Arc::new(crate::external::ExternalWritebacks::open(config, wiring.instance).await?))
}

/// Puts the host's loaders into a store: Debian's package `ipxe`, or another folder.
#[cfg(any(feature = "bootfile-builtin", feature = "bootfile-tftpd-hpa", feature = "external"))]
async fn ensure_loaders(
    store: &dyn ggnet_core::ports::BootFileStore,
    dir: &std::path::Path,
) -> Result<crate::bootfile::loaders::Loaders> {
    let found = crate::bootfile::loaders::read_loaders(dir).await?;
    if let Some(hint) = &found.hint {
        tracing::warn!(dir = %dir.display(), missing = ?found.missing, %hint, "boot loaders are missing");
    }
    store.ensure(&found.bundle).await?;
    Ok(found)
}

#[cfg(feature = "image-qemu-img")]
async fn qemu_img(_: Wiring, table: Settings) -> Result<Arc<dyn ggnet_core::ports::ImageConverter>> {
    let config = settings(crate::image::qemu_img::NAME, table)?;
    let runner = Arc::new(crate::run::SystemRunner::new()?);
    Ok(Arc::new(crate::image::qemu_img::QemuImg::new(config, runner)))
}
