//! Changes of access rules and of disks.

use super::*;

/// The writes when `new` follows `old`, with an initiator logged in or not.
fn change(lab: &Lab, old: Access, new: Access, live: Option<u32>) -> Vec<String> {
    let spec = lab.spec(old);
    lab.ensure(&spec);
    if let Some(n) = live {
        lab.log_in(&lab.want(&spec), &initiator(n));
    }
    let want = lab.want(&lab.spec(new));
    lines(&lab.ensure(&lab.spec(want_access(&want))), &want)
}

/// Converts a wanted state back to a spec that requests it.
fn want_access(want: &Want) -> Access {
    match &want.who {
        super::super::want::Who::All => Access::Shared,
        super::super::want::Who::One { name, chap, mutual } => {
            Access::Initiator { name: name.parse().unwrap(), chap: chap.clone(), mutual: mutual.clone() }
        }
    }
}

#[test]
fn another_initiator_replaces_one_that_is_not_there() {
    let lab = Lab::new();
    // Disabled first, because a login may be in progress: the kernel would wait for the end of its session, and block all targets.
    let expected = [
        "write TPG/enable \"0\"",
        "unlink TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0/ggnet",
        "rmdir TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0",
        "rmdir TPG/acls/iqn.2026-11.local.ggnet:pc-1",
        "mkdir TPG/acls/iqn.2026-11.local.ggnet:pc-2",
        "mkdir TPG/acls/iqn.2026-11.local.ggnet:pc-2/lun_0",
        "link TPG/acls/iqn.2026-11.local.ggnet:pc-2/lun_0/ggnet → TPG/lun/lun_0",
        "write TPG/enable \"1\"",
    ];
    assert_eq!(change(&lab, only(1), only(2), None), expected);
}

#[test]
fn an_initiator_that_is_logged_in_is_locked_out_of_its_next_login_only() {
    let lab = Lab::new();
    let ops = change(&lab, chap(1, "TopSecret1234567"), chap(2, "Other12345678901"), Some(1));
    let expected = [
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/attrib/authentication \"1\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid \"NULL\"",
    ];
    assert_eq!(ops[..3], expected);
    assert!(!ops.iter().any(|o| o.starts_with("rmdir") || o.contains("TPG/enable")), "{ops:?}");
}

#[test]
fn a_new_secret_is_two_writes_and_no_secret_is_open_again() {
    let lab = Lab::new();
    let ops = change(&lab, chap(1, "TopSecret1234567"), chap(1, "Other12345678901"), Some(1));
    assert_eq!(ops, ["write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password Secret(…)"]);
    let lab = Lab::new();
    let ops = change(&lab, chap(1, "TopSecret1234567"), only(1), Some(1));
    let expected = [
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid \"NULL\"",
        "write TPG/attrib/authentication \"0\"",
    ];
    assert_eq!(ops, expected);
}

#[test]
fn what_the_target_proves_comes_last_and_goes_first() {
    let lab = Lab::new();
    let mutual = |secret: &str| Some(ChapPair { user: "disk".into(), secret: Secret::new(secret) });
    let with = |mutual| match chap(1, "TopSecret1234567") {
        Access::Initiator { name, chap, .. } => Access::Initiator { name, chap, mutual },
        Access::Shared => unreachable!(),
    };
    let at = "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth";
    let come = [format!("{at}/userid_mutual \"disk\""), format!("{at}/password_mutual Secret(…)")];
    assert_eq!(change(&lab, with(None), with(mutual("TargetSecret1234")), None), come);
    assert_eq!(
        change(&lab, with(mutual("TargetSecret1234")), with(mutual("OtherSecret12345")), None),
        come[1..]
    );
    let gone: Vec<String> = ["password_mutual", "userid_mutual", "password", "userid"]
        .map(|name| format!("{at}/{name} \"NULL\""))
        .into();
    assert_eq!(change(&lab, with(mutual("OtherSecret12345")), only(1), None)[..4], gone);
}

#[test]
fn changed_disks_are_busy_under_a_session_and_made_anew_without_one() {
    let lab = Lab::new();
    let mut spec = lab.spec(only(1));
    lab.ensure(&spec);
    spec.luns[0].serial = "07he2".into();
    let want = lab.want(&spec);
    lab.log_in(&want, &initiator(1));
    assert_eq!(plan::converge(&want, &lab.have(&want)), Err(plan::Busy));
    fs::remove_file(lab.tree.root().join(want.names.group()).join("acls").join(initiator(1)).join(INFO))
        .unwrap();
    let ops = lines(&lab.ensure(&spec), &want);
    assert_eq!(ops.first().unwrap(), "write TPG/enable \"0\"");
    assert_eq!(ops.last().unwrap(), "write TPG/enable \"1\"");
    assert!(ops.iter().any(|o| o.ends_with("vpd_unit_serial \"07he2\"")), "{ops:?}");
}

#[test]
fn a_portal_that_was_configured_away_is_removed() {
    let mut lab = Lab::new();
    let spec = lab.spec(only(1));
    lab.ensure(&spec);
    lab.config.listen = vec!["[::1]:3261".parse().unwrap()];
    let ops = lines(&lab.ensure(&spec), &lab.want(&spec));
    assert_eq!(ops, ["mkdir TPG/np/[::1]:3261", "rmdir TPG/np/127.0.0.1:3260"]);
}

#[test]
fn what_cannot_be_read_is_written_again_and_a_lock_is_one_all_the_same() {
    let mut lab = Lab::new();
    let spec = lab.spec(chap(1, "TopSecret1234567"));
    lab.ensure(&spec);
    lab.shown = Shown::WithoutSecrets;
    let want = lab.want(&spec);
    let again = [
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password_mutual \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid_mutual \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid \"user-1\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password Secret(…)",
    ];
    assert_eq!(lines(&lab.plan(&want), &want), again);
    let away = [
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password_mutual \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid_mutual \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password \"NULL\"",
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid \"NULL\"",
    ];
    let open = lab.want(&lab.spec(only(1)));
    assert_eq!(lines(&lab.plan(&open), &open)[..4], away);
    lab.log_in(&want, &initiator(1));
    let other = lab.want(&lab.spec(only(2)));
    let ops = lines(&lab.plan(&other), &other);
    assert_eq!(ops[0], "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/attrib/authentication \"1\"");
    assert_eq!(ops[1..5], away);
}
