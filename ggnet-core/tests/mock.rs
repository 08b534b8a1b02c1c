//! The mocks of the ports, as a program that embeds the library would use them.

use ggnet_core::{
    Error, ErrorKind,
    nouns::{MachineId, ResourceId},
    ports::{
        Removal, TargetBackend, boot_file::MockBootFileStore, clock::MockClock, dhcp::MockDhcpBackend,
        image_converter::MockImageConverter, image_store::MockImageStore, observer::MockObserver,
        store::MockStore, target::MockTargetBackend, writeback::MockWritebackStore,
    },
};

#[tokio::test]
async fn a_mocked_target_answers_as_it_is_told() {
    let id = ResourceId::generation(MachineId::generate(), 1);
    let mut targets = MockTargetBackend::new();
    let wanted = id.clone();
    targets
        .expect_remove()
        .withf(move |id, how| *id == wanted && *how == Removal::IfIdle)
        .times(1)
        .returning(|id, _| Err(Error::new(ErrorKind::Busy, format!("{id} has a live initiator"))));
    targets.expect_list().returning(|| Ok(Vec::new()));
    let targets: Box<dyn TargetBackend> = Box::new(targets);
    let e = targets.remove(&id, Removal::IfIdle).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(targets.list().await.unwrap().is_empty());
}

#[test]
fn every_port_has_a_mock() {
    let _ = (
        MockTargetBackend::new(),
        MockWritebackStore::new(),
        MockDhcpBackend::new(),
        MockBootFileStore::new(),
    );
    let _ = MockImageStore::new();
    let _ = (MockImageConverter::new(), MockStore::new(), MockClock::new(), MockObserver::new());
}
