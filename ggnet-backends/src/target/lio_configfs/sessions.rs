//! Reads the logged-in initiators from the tree. An initiator that is allowed by name is visible in its `info` and its counters; an
//! initiator of a shared target only by its name in `dynamic_sessions`.
//!
//! The bytes read are exactly those of the session. The session's counter of written bytes excludes immediate data, which is most of it;
//! the counter of the mapped LUN includes everything, but for all sessions of that name on this target, and in whole MiB. The larger one is
//! reported.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use ggnet_core::{error::Result, nouns::ResourceId, ports::Connection};

use super::have::{folders_in, is_logged_in, read};

/// The sessions of a portal group.
pub fn of_group(group: &Path, target: &ResourceId) -> Result<Vec<Connection>> {
    let mut found = Vec::new();
    for initiator in folders_in(&group.join("acls"))? {
        let at = group.join("acls").join(&initiator);
        let info = read(&at.join("info"));
        if !is_logged_in(&info) {
            continue;
        }
        let counter =
            |name: &str| read(&at.join("fabric_statistics/iscsi_sess_stats").join(name)).parse().unwrap_or(0);
        found.push(Connection {
            target: target.clone(),
            initiator,
            peer: peer(&info),
            since: None,
            // Named from the target's point of view.
            bytes_read: counter("txdata_octs"),
            bytes_written: counter("rxdata_octs").max(mapped_written(&at)?),
            commands: counter("cmd_pdus"),
            io: None,
        });
    }
    for initiator in read(&group.join("dynamic_sessions")).split(['\n', '\0']).filter(|n| !n.is_empty()) {
        found.push(Connection {
            target: target.clone(),
            initiator: initiator.to_owned(),
            peer: None,
            since: None,
            bytes_read: 0,
            bytes_written: 0,
            commands: 0,
            io: None,
        });
    }
    Ok(found)
}

/// The bytes written to an initiator's LUNs.
fn mapped_written(acl: &Path) -> Result<u64> {
    let mut mib = 0;
    for lun in folders_in(acl)?.iter().filter(|name| name.starts_with("lun_")) {
        let counter = acl.join(lun).join("statistics/scsi_auth_intr/write_mbytes");
        mib += read(&counter).parse::<u64>().unwrap_or(0);
    }
    Ok(mib << 20)
}

/// The address in `Address 192.0.2.7 TCP  StatSN: …`. The kernel does not report the port, so it is 0.
fn peer(info: &str) -> Option<SocketAddr> {
    let word = info.split_once("Address ")?.1.split_whitespace().next()?;
    let address: IpAddr = word.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(address, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = "InitiatorName: iqn.2026-11.local.ggnet:pc\nInitiatorAlias: \n\
        LIO Session ID: 3   ISID: 0x80 00 00 00 00 01  TSIH: 3  SessionType: Normal\n\
        Session State: TARG_SESS_STATE_LOGGED_IN\n\
        ----------------------[iSCSI Connections]-------------------------\n\
        CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN\n   Address 192.0.2.7 TCP  StatSN: 0x00000004\n";

    #[test]
    fn a_session_and_its_address_are_read_from_the_kernels_text() {
        assert!(is_logged_in(LIVE));
        assert_eq!(peer(LIVE), Some("192.0.2.7:0".parse().unwrap()));
        assert_eq!(peer(&LIVE.replace("192.0.2.7", "2001:db8::7")), Some("[2001:db8::7]:0".parse().unwrap()));
        assert!(!is_logged_in("No active iSCSI Session for Initiator Endpoint: iqn.2026-11.local.ggnet:pc"));
        assert!(!is_logged_in(&LIVE.replace("TARG_SESS_STATE_LOGGED_IN", "TARG_SESS_STATE_FAILED")));
        assert_eq!(peer("nothing"), None);
    }
}
