//! Whom a machine's boot script says to log in to, and an initiator that is as patient as an operating system.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ggnet_core::boot_text::san::{Host, SanUri};
use ggnet_iscsi::initiator::{Account, Initiator};
use ggnet_iscsi::{ChapPair, Secret};

/// The size of a logical block, in bytes.
pub const SECTOR: usize = 512;
/// The most sectors that tests move by one command.
pub const MAX_SECTORS: u16 = 16;
/// How long a lost session is tried for: open-iscsi's `replacement_timeout`.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a machine's boot script tells its initiator.
///
/// # Errors
/// It is no script of a machine with a disk.
pub fn from_script(script: &str, isid: [u8; 6]) -> Result<Account> {
    let word = |key: &str| word_after(script, key).with_context(|| format!("no {key:?} in {script}"));
    let san: SanUri = word("sanhook ")?.parse()?;
    let Host::Ip(server) = san.server else { bail!("the disk is at {}, which is no address", san.server) };
    Ok(Account {
        isid,
        lun: san.lun,
        chap: chap_in(script)
            .map(|(user, secret)| ChapPair { user: user.to_owned(), secret: Secret::new(secret) }),
        ..Account::new((server, san.port).into(), san.target.to_string(), word("set initiator-iqn ")?)
    })
}

/// The name and the secret that a boot script gives its initiator, if it gives any.
#[must_use]
pub fn chap_in(script: &str) -> Option<(&str, &str)> {
    word_after(script, "set username ").zip(word_after(script, "set password "))
}

fn word_after<'a>(script: &'a str, key: &str) -> Option<&'a str> {
    script.lines().find_map(|line| line.trim().strip_prefix(key)?.split(' ').next())
}

/// Logs in. What an operating system would report as an I/O error is an error of the session: a login that is refused for good, a SCSI
/// status other than GOOD, a malformed answer, or no session for as long as [`PATIENCE`].
///
/// # Errors
/// Such a one.
pub async fn log_in(account: Account) -> Result<Initiator> {
    let name = account.initiator.clone();
    Initiator::login_within(account, PATIENCE).await.with_context(|| format!("initiator {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_tells_whom_to_log_in_to() {
        let script = "#!ipxe\nset initiator-iqn iqn.2026-11.local.ggnet:pc\nset username u\nset password p\n\
                      sanhook iscsi:192.0.2.1::3261:0:iqn.2026-11.local.ggnet:disk && goto boot || set failure ${errno}\n";
        let account = from_script(script, [0; 6]).unwrap();
        assert_eq!((account.portal.to_string().as_str(), account.lun), ("192.0.2.1:3261", 0));
        let user = account.chap.as_ref().map(|pair| pair.user.as_str());
        assert_eq!((account.target.as_deref(), user), (Some("iqn.2026-11.local.ggnet:disk"), Some("u")));
        assert_eq!(account.initiator, "iqn.2026-11.local.ggnet:pc");
        assert!(from_script("#!ipxe\nexit 1\n", [0; 6]).is_err());
    }
}
