//! What is hostile to an iSCSI target: sessions that ask for nothing, logins that never end, and a guest's commands that copy or compare
//! gigabytes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ggnet_iscsi::initiator::{Account, Connection, Error, Initiator, Transfer, cdb};
use tokio::io::AsyncWriteExt as _;

use super::{HEARD, Round, SERVER, UNHEARD, all, connect, source};
use crate::boots::Machine;

const PORT: u16 = 3260;
/// From each of four sources.
const FROM_EACH: u32 = 1024;
/// Long commands that a session sends at once.
const COMMANDS: usize = 128;
/// After a login that was put off or cut short because places are few, which is as it should be.
const AGAIN: Duration = Duration::from_secs(1);

/// A stranger's login to a target, or to none, with nothing said beyond names and these keys.
fn stranger(target: Option<&str>, keys: &[(&str, &str)]) -> Account {
    let account = Account::new((SERVER, PORT).into(), "", "iqn.2024-01.org.example:stranger");
    Account { target: target.map(str::to_owned), ..account }.say(keys)
}

/// Four sources with 1,024 each.
fn crowd() -> impl Iterator<Item = (u8, u32)> {
    (11..15).flat_map(|from| (0..FROM_EACH).map(move |n| (from, n)))
}

/// 4,096 discovery sessions, for which nobody needs a credential.
pub(super) async fn discovery_sessions() -> Result<Round> {
    let open = all(
        HEARD,
        crowd().map(|(from, n)| async move {
            let mut connection = Connection::over(connect(source(from), PORT).await.ok()?);
            let [_, a, b, c] = n.to_be_bytes();
            let account = Account { isid: [0x80, 0, 0, a, b, c], ..stranger(None, &[]) };
            connection.log_in(&account).await.ok()?;
            Some(connection)
        }),
    )
    .await;
    Ok(Round::new(format!("4096 discovery sessions, {} of them were let in", open.len()), open))
}

/// 4,096 connections with the header of a login that announces 8 KiB, and nothing behind it.
pub(super) async fn half_logins() -> Result<Round> {
    let mut header = [0; 48];
    (header[0], header[1], header[6]) = (0x43, 0x87, 0x20);
    let open = all(
        UNHEARD,
        crowd().map(move |(from, _)| async move {
            let mut stream = connect(source(from + 10), PORT).await.ok()?;
            stream.write_all(&header).await.ok()?;
            Some(stream)
        }),
    )
    .await;
    Ok(Round::new(format!("4096 half logins, {} of them were taken", open.len()), open))
}

/// 128 EXTENDED COPY by a guest on its own disk, each of as much as one may copy.
pub(super) async fn copies(mac: &str) -> Result<Round> {
    let account = Machine::new(&format!("http://{SERVER}:8080"), mac)?.account().await?;
    let mut guest = loop {
        match Initiator::login(account.clone()).await {
            Err(e) if e.is_lost() => tokio::time::sleep(AGAIN).await,
            other => break other?,
        }
    };
    // INQUIRY, page 83: whom a copy names is said there.
    let page = guest.execute(&[0x12, 1, 0x83, 0, 255, 0], Transfer::In(255)).await?;
    let naa = naa_of(&page).context("the disk has no NAA name")?;
    let list = copy_list(naa);
    let length = u32::try_from(list.len())?;
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    let mut connection = guest.into_connection();
    send_all(&mut connection, &cdb, &list).await?;
    Ok(Round::new(format!("{COMMANDS} EXTENDED COPY of 64 MiB"), vec![connection]))
}

/// 128 VERIFY(16) of a whole disk, by a stranger on a target that asks for no credential.
pub(super) async fn verifies(target: &str) -> Result<Round> {
    let mut connection = loop {
        match log_in_to(target).await {
            Err(e) if e.is_lost() => tokio::time::sleep(AGAIN).await,
            other => break other?,
        }
    };
    connection.command(0xc1, &cdb::READ_CAPACITY, 8, &[]).await?;
    let (capacity, end) = connection.collect().await?;
    ensure!(end.status() == 0, "READ CAPACITY: {end:02x?}");
    // The last block's address is the number of those behind the first, which alone is not zero.
    let blocks = capacity.get(..4).context("a capacity")?;
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[9]) = (0x8f, 6, 1);
    cdb[10..14].copy_from_slice(blocks);
    send_all(&mut connection, &cdb, &[0; 512]).await?;
    Ok(Round::new(format!("{COMMANDS} VERIFY of a whole disk"), vec![connection]))
}

/// A login to a target that asks for no credential.
async fn log_in_to(target: &str) -> Result<Connection, Error> {
    let mut connection = Connection::over(connect(source(31), PORT).await?);
    connection.log_in(&stranger(Some(target), &[("ImmediateData", "Yes")])).await?;
    Ok(connection)
}

/// Sends the command with its data as often as the window has room for, and reads no answer.
async fn send_all(connection: &mut Connection, cdb: &[u8; 16], data: &[u8]) -> Result<()> {
    for _ in 0..COMMANDS {
        connection.command(0xa1, cdb, u32::try_from(data.len())?, data).await?;
    }
    Ok(())
}

/// The NAA designator of page 83 (SPC-4 section 7.8.6), with its header.
fn naa_of(page: &[u8]) -> Option<&[u8]> {
    let mut rest = page.get(4..)?;
    loop {
        let length = 4 + usize::from(*rest.get(3)?);
        if rest[1] & 0xf == 3 {
            return rest.get(..length);
        }
        rest = rest.get(length..)?;
    }
}

/// A parameter list (SPC-4 sections 6.3, 6.3.6.3 and 6.3.7.5): one disk, and four segments of 16 MiB from its start to what is behind.
fn copy_list(naa: &[u8]) -> Vec<u8> {
    let mut target = vec![0; 32];
    target[0] = 0xe4;
    target[4..6].copy_from_slice(&naa[..2]);
    target[7..4 + naa.len()].copy_from_slice(&naa[3..]);
    target[30] = 2;
    let mut segment = vec![2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0x80, 0];
    segment.extend(0_u64.to_be_bytes());
    segment.extend(0x8000_u64.to_be_bytes());
    let segments = segment.repeat(4);
    let mut list = vec![0; 16];
    list[3] = 32;
    list[10..12].copy_from_slice(&u16::try_from(segments.len()).unwrap_or(u16::MAX).to_be_bytes());
    list.extend(target);
    list.extend(segments);
    list
}
