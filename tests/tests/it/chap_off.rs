//! `session.chap = "off"`: a boot script has no CHAP pair in it, and who logs in as it says has the disk without one.

use ggnet_core::nouns::WritebackPolicy;
use ggnet_tests::account::log_in;
use ggnet_tests::{GgnetServer, ServerOptions};

use crate::load::account;

#[test]
fn with_chap_off_a_boot_script_has_no_pair_and_an_initiator_logs_in_without_one() {
    let dir = tempfile::Builder::new().prefix("ggnet-chap-").tempdir().unwrap();
    let file = dir.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    let server = GgnetServer::start(ServerOptions {
        config: "[session]\nchap = \"off\"\n".to_owned(),
        import_dirs: vec![file.parent().unwrap().into()],
        ..ServerOptions::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    let image = api.import_and_wait("disk", &file, |_| {}).unwrap().version.image;
    let machine = api.add_machine("pc", "52:54:00:bb:00:57", image, WritebackPolicy::Discard).unwrap();
    let started = api.start_session(machine.id).unwrap();
    let script = &started.boot_script;
    assert!(!script.contains("set username") && !script.contains("set password"), "{script}");
    let account = account(&started, 1);
    assert!(account.chap.is_none());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut disk = log_in(account.clone()).await.unwrap();
        disk.write(8, &[7; 512]).await.unwrap();
        disk.logout().await.unwrap();
        let mut disk = log_in(account).await.unwrap();
        assert_eq!(disk.read(7, 2).await.unwrap(), [[1; 512], [7; 512]].concat());
        disk.logout().await.unwrap();
    });
}
