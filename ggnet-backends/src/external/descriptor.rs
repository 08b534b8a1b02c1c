//! The descriptors of the backends "external", one for each port that a program can implement.

use std::{net::Ipv4Addr, sync::Arc};

use ggnet_core::{
    Result,
    ports::{BootFileStore, DhcpBackend, WritebackStore},
    registry::{BoundBy, Descriptor, Finding, Key, Level, PortName, Settings, Socket, Wiring, settings},
};

use super::{
    ExternalBootFiles, ExternalConfig, ExternalDhcp, ExternalWritebacks, NAME, boot_file_settings, look,
};
use crate::bootfile::loaders;

const SUMMARY: &str = "A program in any language that GGnet starts";

const KEYS: &[Key] = &[
    ("command", "The program and its arguments; every user of the host can read them; required"),
    ("config", "A table that is passed to the program; put secrets here"),
    ("deadline_s", "Time limit for a response, in seconds; default: 30"),
    ("shutdown_s", "Time limit for its shutdown before it is killed, in seconds; default: 10"),
    ("max_line", "The maximum length of a line in either direction, in bytes; default: 32 MiB"),
];

/// The DHCP backend "external".
#[must_use]
pub fn dhcp() -> Descriptor<dyn DhcpBackend> {
    Descriptor::new(NAME, make_dhcp)
        .summary(SUMMARY)
        .keys(KEYS)
        .check(check_dhcp)
        .listens(|_, _| Ok(serves(67, "DHCP")))
}

/// The boot file store "external".
#[must_use]
pub fn boot_files() -> Descriptor<dyn BootFileStore> {
    Descriptor::new(NAME, make_boot_files)
        .summary(SUMMARY)
        .keys(KEYS)
        .keys(&[loaders::DIR_KEY])
        .check(check_boot_files)
        .listens(|_, _| Ok(serves(69, "TFTP")))
}

/// The writeback store "external".
#[must_use]
pub fn writebacks() -> Descriptor<dyn WritebackStore> {
    Descriptor::new(NAME, make_writebacks).summary(SUMMARY).keys(KEYS).check(check_writebacks)
}

async fn make_dhcp(wiring: Wiring, table: Settings) -> Result<Arc<dyn DhcpBackend>> {
    Ok(Arc::new(ExternalDhcp::open(settings(NAME, table)?, wiring.instance).await?))
}

async fn make_boot_files(wiring: Wiring, table: Settings) -> Result<Arc<dyn BootFileStore>> {
    let (config, loaders) = boot_file_settings(table)?;
    let store = ExternalBootFiles::open(config, wiring.instance).await?;
    loaders::ensure_in(&store, &loaders).await?;
    Ok(Arc::new(store))
}

async fn make_writebacks(wiring: Wiring, table: Settings) -> Result<Arc<dyn WritebackStore>> {
    Ok(Arc::new(ExternalWritebacks::open(settings(NAME, table)?, wiring.instance).await?))
}

async fn check_dhcp(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    Ok(vec![ask(PortName::Dhcp, settings(NAME, table)?, wiring).await])
}

async fn check_writebacks(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    Ok(vec![ask(PortName::Writeback, settings(NAME, table)?, wiring).await])
}

async fn check_boot_files(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let (config, loaders) = boot_file_settings(table)?;
    let mut findings = loaders::look(&loaders).await;
    findings.push(ask(PortName::BootFiles, config, wiring).await);
    Ok(findings)
}

/// The ports on which machines send requests, whatever program serves them.
fn serves(port: u16, why: &'static str) -> Vec<Socket> {
    vec![Socket::udp((Ipv4Addr::UNSPECIFIED, port).into(), why).bound_by(BoundBy::Other)]
}

/// Starts the program only for its hello.
async fn ask(port: PortName, config: ExternalConfig, wiring: Wiring) -> Finding {
    let what = format!("program of [{port}]");
    let program = config.command.first().cloned().unwrap_or_default();
    match look(config, port.as_str(), wiring.instance).await {
        Ok(can) if can.is_null() => Finding::ok(what, format!("{program} answers")),
        Ok(can) => Finding::ok(what, format!("{program} responds, with the capabilities {can}")),
        Err(e) => Finding::failed(Level::Fail, what, &e),
    }
}

#[cfg(test)]
mod tests {
    use ggnet_core::{nouns::InstanceId, registry::Registry};
    use serde_json::json;

    use super::*;

    const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/examples/external");

    #[tokio::test]
    async fn a_program_that_answers_is_ok_and_another_fails_with_what_to_do() {
        let mut registry = Registry::new();
        registry.dhcp.add(dhcp());
        registry.boot_files.add(boot_files());
        registry.writebacks.add(writebacks());
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        let check = async |port, program: &str, config: Settings| {
            let prefix = "iqn.2026-11.local.test".parse().unwrap();
            let wiring = Wiring::new(InstanceId::generate(), prefix, dir.path().join("none"));
            let table = json!({ "command": [format!("{EXAMPLES}/{program}")], "config": config });
            registry.about(port, NAME).unwrap().check(port, wiring, table).await.pop().unwrap()
        };
        let ethers = json!({ "path": format!("{root}/ethers") });
        let right = check(PortName::Dhcp, "ethers.py", ethers.clone()).await;
        assert!(right.why.contains("ethers.py responds, with the capabilities"), "{right}");
        for (port, program) in [(PortName::Writeback, "copies.py"), (PortName::BootFiles, "boot_files.py")] {
            let right = check(port, program, json!({ "root": root })).await;
            assert_eq!(right.level, Level::Ok, "{right}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it looks and changes nothing");

        let wrong = check(PortName::Dhcp, "absent.py", ethers).await;
        assert_eq!(wrong.level, Level::Fail, "{wrong}");
        assert!(wrong.why.contains("absent.py") && wrong.mend.is_some(), "{wrong}");
    }
}
