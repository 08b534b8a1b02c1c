//! A member of the crowd on a test's LAN ([`ggnet_tests::crowd`]): hostile in one way, or machines that boot again and again.
//!
//! ```text
//! ggnet-crowd KIND FLOODED-MAC GUEST-MAC OPEN-TARGET     hostile in this way until it is killed
//! ggnet-crowd boots FILE MAC…                            boots these machines while the file is there
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ggnet_tests::Machine;
use ggnet_tests::hostile::{Aims, KINDS};
use ggnet_tests::lan::SERVER;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

fn main() -> Result<()> {
    // Thousands of connections in one process.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(member(&words.iter().map(String::as_str).collect::<Vec<_>>()))
}

async fn member(words: &[&str]) -> Result<()> {
    match words {
        ["boots", file, macs @ ..] => boots(Path::new(file), macs).await,
        [name, flooded, guest, open_target] => {
            let kind = KINDS.iter().find(|k| k.name == *name).with_context(|| format!("no kind {name}"))?;
            let [flooded, guest, open_target] = [flooded, guest, open_target].map(|w| (*w).to_owned());
            kind.run(&Aims { flooded, guest, open_target }).await
        }
        _ => bail!("usage: ggnet-crowd KIND FLOODED-MAC GUEST-MAC OPEN-TARGET | boots FILE MAC..."),
    }
}

/// Each machine by itself; the first error ends all.
async fn boots(file: &Path, macs: &[&str]) -> Result<()> {
    let mut machines = JoinSet::new();
    for mac in macs {
        let (machine, file) = (Machine::new(&format!("http://{SERVER}:8080"), mac)?, file.to_owned());
        machines.spawn(again_and_again(machine, file, (*mac).to_owned()));
    }
    while let Some(ended) = machines.join_next().await {
        ended??;
    }
    Ok(())
}

async fn again_and_again(mut machine: Machine, file: PathBuf, mac: String) -> Result<()> {
    while file.exists() {
        let begun = Instant::now();
        machine.boot().await?;
        println!("{mac} booted in {:?}", begun.elapsed());
    }
    Ok(())
}
