//! What `ggnet-server check` says about backends that are programs of somebody else's: each is started for its hello alone.

use ggnet_backends::{
    external::{self, ExternalConfig, NAME, boot_file_settings},
    host::{Finding, Level},
};
use ggnet_core::{Error, Result, nouns::InstanceId, registry::settings};

use crate::config::Config;

/// Asks the program of each section whose backend is external.
pub async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.dhcp.backend == NAME {
        findings.push(ask(config, "dhcp", settings(NAME, config.dhcp.settings.clone())).await);
    }
    if config.boot_files.backend == NAME {
        let program = boot_file_settings(config.boot_files.settings.clone()).map(|(program, _)| program);
        findings.push(ask(config, "boot_files", program).await);
    }
    if config.writeback.backend == NAME {
        findings.push(ask(config, "writeback", settings(NAME, config.writeback.settings.clone())).await);
    }
    findings
}

async fn ask(config: &Config, port: &'static str, program: Result<ExternalConfig>) -> Finding {
    let what = format!("program of [{port}]");
    let asked = async {
        let program = program?;
        let shown = program.command.first().cloned().unwrap_or_default();
        let can = external::look(program, port, instance(config).await?).await?;
        Ok::<_, Error>(if can.is_null() {
            format!("{shown} answers")
        } else {
            format!("{shown} answers, with the capabilities {can}")
        })
    };
    match asked.await {
        Ok(said) => Finding::ok(what, said),
        Err(e) => {
            let mend = e.hint().unwrap_or("see docs/configuration.md").to_owned();
            Finding::bad(Level::Fail, what, e.report(), mend)
        }
    }
}

/// The installation's id; before its first start any other.
async fn instance(config: &Config) -> Result<InstanceId> {
    let path = config.data_dir.join("instance");
    match tokio::fs::read_to_string(&path).await {
        Ok(text) => text.trim().parse(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(InstanceId::generate()),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/examples/external");

    #[tokio::test]
    async fn a_program_that_answers_is_ok_and_another_fails_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let text = format!(
            "data_dir = \"{root}/none\"\n\
             [dhcp]\nbackend = \"external\"\ncommand = [\"{EXAMPLES}/ethers.py\"]\nconfig = {{ path = \"{root}/ethers\" }}\n\
             [writeback]\nbackend = \"external\"\ncommand = [\"{EXAMPLES}/copies.py\"]\nconfig = {{ root = \"{root}\" }}\n\
             [boot_files]\nbackend = \"external\"\ncommand = [\"{EXAMPLES}/boot_files.py\"]\nconfig = {{ root = \"{root}\" }}\n"
        );
        let right = look(&Config::parse(&text, "x").unwrap()).await;
        assert!(right.len() == 3 && right.iter().all(|f| f.level == Level::Ok), "{right:?}");
        assert!(right[0].why.contains("ethers.py answers, with the capabilities"), "{}", right[0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it looks and changes nothing");

        let wrong = look(&Config::parse(&text.replace("ethers.py", "absent.py"), "x").unwrap()).await;
        assert_eq!((wrong[0].level, wrong[1].level), (Level::Fail, Level::Ok), "{wrong:?}");
        assert!(wrong[0].why.contains("absent.py") && wrong[0].mend.is_some(), "{}", wrong[0]);
        assert!(look(&Config::default()).await.is_empty());
    }
}
