//! A machine that has its disk, connects again and stops in its login: its timeline says what that most often is.

use ggnet_core::nouns::{EventKind, Machine, WritebackPolicy};
use ggnet_iscsi::initiator::{Connection, Error};
use ggnet_tests::account::log_in;
use ggnet_tests::{Account, GgnetServer, ServerOptions, wait};

use crate::load::account;

/// Begins a login, and waits after the target's challenge, or before its own first word, until the target closes the connection.
async fn stall(account: &Account, after_challenge: bool) {
    let mut connection = Connection::connect(account.portal).await.unwrap();
    if after_challenge {
        let (initiator, target) = (&account.initiator, account.target.as_ref().unwrap());
        let names =
            format!("InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0AuthMethod=CHAP\0");
        connection.login_request(account.isid, 0x81, names.as_bytes()).await.unwrap();
        connection.login_request(account.isid, 0x00, b"CHAP_A=5\0").await.unwrap();
    }
    let end = connection.receive().await;
    assert!(matches!(end, Err(Error::Closed | Error::Io(_))), "to a login that waits: {end:?}");
}

#[test]
fn a_login_that_stalls_before_its_first_word_or_after_the_challenge_is_explained_once() {
    let dir = tempfile::Builder::new().prefix("ggnet-stalls-").tempdir().unwrap();
    let file = dir.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    let options =
        ServerOptions { import_dirs: vec![file.parent().unwrap().into()], ..ServerOptions::default() };
    let server = GgnetServer::start(options).unwrap();
    let api = server.api().unwrap();
    let image = api.import_and_wait("disk", &file, |_| {}).unwrap().version.image;
    let [silent, speaks, idle] = [1, 2, 3].map(|n| {
        let mac = format!("52:54:00:bb:00:5{n}");
        api.add_machine(&format!("pc-{n}"), &mac, image, WritebackPolicy::Discard).unwrap()
    });
    let [of_silent, of_speaks, _] =
        [&silent, &speaks, &idle].map(|machine| account(&api.start_session(machine.id).unwrap(), 1));
    let explained = |machine: &Machine| {
        let hint = |kind: &EventKind| match kind {
            EventKind::BootDiagnosis { message, .. } => message.contains("ggnet guest-kit debian"),
            _ => false,
        };
        api.events(None, Some(machine.id)).unwrap().iter().filter(|e| hint(&e.event.kind)).count()
    };

    let runtime = tokio::runtime::Runtime::new().unwrap();
    // One after the other: each is the only machine at this address that lost its disk, and has no other connection.
    for (machine, account, after_challenge) in [(&silent, &of_silent, false), (&speaks, &of_speaks, true)] {
        runtime.block_on(async {
            let mut lost = log_in(account.clone()).await.unwrap();
            lost.read(0, 1).await.unwrap();
            lost.logout().await.unwrap();
            tokio::join!(stall(account, after_challenge), stall(account, after_challenge));
        });
        wait::until("its timeline to explain it", wait::SHORT, || Ok((explained(machine) > 0).then_some(())))
            .unwrap();
    }
    assert_eq!([&silent, &speaks, &idle].map(explained), [1, 1, 0]);
}
