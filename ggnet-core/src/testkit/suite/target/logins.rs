//! The cases about who may log in, what the observer is notified of, and which connections are closed.

use super::*;

/// New rules do not break a running machine.
pub async fn changed_access_holds_for_new_logins(f: &impl TargetFixture) {
    let served = serve(f).await;
    let mut spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    spec.access = only(2);
    served.ensure(&spec).await.expect("access can change under a live initiator");
    assert_whole::<Targets>(served.port.as_ref(), std::slice::from_ref(&spec)).await;
    client.read(0, 512).await.expect("the connection lives on");
    assert_eq!(refused(f, &endpoint, &only(1)).await, ErrorKind::Permission);
    client.logout().await.expect("logout");
    connect(f, &endpoint, &only(2)).await.logout().await.expect("logout");
}

/// Only the named initiator.
pub async fn another_initiator_is_refused(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    assert_eq!(refused(f, &endpoint, &only(2)).await, ErrorKind::Permission);
    let client = connect(f, &endpoint, &spec.access).await;
    assert_eq!(refused(f, &endpoint, &only(2)).await, ErrorKind::Permission);
    client.read(0, 512).await.expect("a refused login disturbs nobody");
}

/// Only with the secret.
pub async fn a_wrong_secret_is_refused(f: &impl TargetFixture) {
    let served = serve(f).await;
    let with = |chap| Access::Initiator { name: initiator(1), chap, mutual: None };
    let spec = spec(f, &id(), with(Some(chap(false)))).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    assert_eq!(refused(f, &endpoint, &with(Some(chap(true)))).await, ErrorKind::Permission);
    assert_eq!(refused(f, &endpoint, &with(None)).await, ErrorKind::Permission);
    connect(f, &endpoint, &spec.access).await.logout().await.expect("logout");
}

/// By mutual CHAP, to an initiator that asks for it and holds it to the secret; and no more when the spec says so no more.
pub async fn the_target_proves_itself(f: &impl TargetFixture) {
    let served = serve(f).await;
    let with = |mutual| Access::Initiator { name: initiator(1), chap: Some(chap(false)), mutual };
    let pair = |secret: &str| ChapPair { user: "disk-1".into(), secret: Secret::new(secret) };
    let (right, wrong) = (pair("TargetSecret1234"), pair("OtherSecret12345"));
    let id = id();
    let proving = spec(f, &id, with(Some(right.clone()))).await;
    let endpoint = served.ensure(&proving).await.expect("ensure");
    connect(f, &endpoint, &proving.access).await.logout().await.expect("logout");
    refused(f, &endpoint, &with(Some(wrong.clone()))).await;

    served.ensure(&spec(f, &id, with(Some(wrong.clone()))).await).await.expect("another secret");
    connect(f, &endpoint, &with(Some(wrong))).await.logout().await.expect("logout");
    refused(f, &endpoint, &proving.access).await;

    served.ensure(&spec(f, &id, with(None)).await).await.expect("one-way again");
    connect(f, &endpoint, &with(None)).await.logout().await.expect("logout");
    refused(f, &endpoint, &proving.access).await;

    let none = Access::Initiator { name: initiator(1), chap: None, mutual: Some(right) };
    let e = served.ensure(&spec(f, &id, none).await).await.expect_err("without one-way CHAP");
    assert_eq!(e.kind(), ErrorKind::Invalid, "{}", e.report());
    let same = with(Some(ChapPair { user: "disk-1".into(), ..chap(false) }));
    let e = served.ensure(&spec(f, &id, same).await).await.expect_err("the initiator's own secret");
    assert_eq!(e.kind(), ErrorKind::Invalid, "{}", e.report());
}

/// The kernel takes over from iPXE, which never logs out.
pub async fn the_newest_login_of_a_name_wins(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let first = connect(f, &endpoint, &spec.access).await;
    first.write(0, &pattern(5, 512)).await.expect("write");
    let second = connect(f, &endpoint, &spec.access).await;
    assert_eq!(second.read(0, 512).await.expect("read"), pattern(5, 512));
    first.read(0, 512).await.expect_err("the older connection is closed");
    until_connected(served.port.as_ref(), &spec.id, 1).await;
    second.read(0, 512).await.expect("the newer one stays");
}

/// A read-only disk for every initiator.
pub async fn a_shared_target_serves_many_and_refuses_writes(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), Access::Shared).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let mut clients = Vec::new();
    for n in 1..=3 {
        clients.push(connect(f, &endpoint, &only(n)).await);
    }
    for client in &clients {
        assert_eq!(client.read(0, 512).await.expect("read"), vec![0; 512]);
        client.write(0, &pattern(1, 512)).await.expect_err("the LUN is read-only");
        assert_eq!(client.read(0, 512).await.expect("read"), vec![0; 512]);
    }
    until_connected(served.port.as_ref(), &spec.id, 3).await;
}

/// Who is logged in, as long as it is.
pub async fn connections_are_listed_while_they_live(f: &impl TargetFixture) {
    let served = serve(f).await;
    let (a, b) = (spec(f, &id(), only(1)).await, spec(f, &id(), only(2)).await);
    let endpoint = served.ensure(&a).await.expect("ensure");
    served.ensure(&b).await.expect("ensure");
    assert!(served.port.connections().await.expect("connections").is_empty());
    let client = connect(f, &endpoint, &a.access).await;
    client.read(0, 4096).await.expect("read");
    until_connected(served.port.as_ref(), &a.id, 1).await;
    let connections = served.port.connections().await.expect("connections");
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert_eq!(connections[0].initiator, initiator(1).to_string());
    client.logout().await.expect("logout");
    until_connected(served.port.as_ref(), &a.id, 0).await;
    // A connection that breaks is noticed too.
    drop(connect(f, &endpoint, &a.access).await);
    until_connected(served.port.as_ref(), &a.id, 0).await;
    assert_whole::<Targets>(served.port.as_ref(), &[a, b]).await;
}

/// An initiator without the secret cannot make a generation commit.
pub async fn the_gate_is_asked_after_authentication(f: &impl TargetFixture) {
    let served = serve(f).await;
    let with = |chap| Access::Initiator { name: initiator(1), chap, mutual: None };
    let spec = spec(f, &id(), with(Some(chap(false)))).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    refused(f, &endpoint, &with(Some(chap(true)))).await;
    assert!(served.gate.asked().is_empty(), "{:?}", served.gate.asked());
    let client = connect(f, &endpoint, &spec.access).await;
    let asked = served.gate.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].target, spec.id);
    assert_eq!(asked[0].initiator, initiator(1).to_string());
    client.logout().await.expect("logout");
}

/// Its verdict is what the initiator gets.
pub async fn the_gate_can_put_off_and_refuse(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    served.gate.answer(LoginVerdict::Retry);
    assert_eq!(refused(f, &endpoint, &spec.access).await, ErrorKind::Unavailable);
    served.gate.answer(LoginVerdict::Refuse);
    assert_eq!(refused(f, &endpoint, &spec.access).await, ErrorKind::Permission);
    until_connected(served.port.as_ref(), &spec.id, 0).await;
    served.gate.answer(LoginVerdict::Accept);
    connect(f, &endpoint, &spec.access).await.logout().await.expect("logout");
}

/// Until the first reconcile has ended every initiator must retry, also at targets that do not exist yet.
pub async fn no_login_is_served_before_the_gate_serves(f: &impl TargetFixture) {
    let served = serve(f).await;
    served.gate.serve(false);
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    assert_eq!(refused(f, &endpoint, &spec.access).await, ErrorKind::Unavailable);
    assert_eq!(refused(f, &endpoint, &only(2)).await, ErrorKind::Unavailable);
    let iqn = Iqn::target(&iqn_prefix(), &instance(), &id()).expect("a valid IQN");
    let unknown = TargetEndpoint { iqn, ..endpoint.clone() };
    assert_eq!(refused(f, &unknown, &spec.access).await, ErrorKind::Unavailable);
    assert!(served.gate.asked().is_empty(), "{:?}", served.gate.asked());
    served.gate.serve(true);
    connect(f, &endpoint, &spec.access).await.logout().await.expect("logout");
    assert_eq!(refused(f, &unknown, &spec.access).await, ErrorKind::NotFound);
}

/// The stages of a boot that only the target sees.
pub async fn logins_and_first_accesses_are_observed(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    let (id, witness) = (&spec.id, &served.witness);
    let login = |o: &Observation| matches!(o, Observation::LoggedIn { target, initiator: who, .. } if target == id && *who == initiator(1));
    witness.sees("the login", login).await;
    for _ in 0..2 {
        client.read(0, 512).await.expect("read");
    }
    witness.sees("the first read", |o| matches!(o, Observation::FirstRead { target } if target == id)).await;
    for _ in 0..2 {
        client.write(0, &pattern(1, 512)).await.expect("write");
    }
    witness
        .sees("the first write", |o| matches!(o, Observation::FirstWrite { target } if target == id))
        .await;
    client.logout().await.expect("logout");
    witness.sees("the end", |o| matches!(o, Observation::Disconnected { target, .. } if target == id)).await;
    let seen = witness.seen();
    let count = |like: fn(&Observation) -> bool| seen.iter().filter(|o| like(o)).count();
    assert_eq!(count(|o| matches!(o, Observation::FirstRead { .. })), 1, "{seen:?}");
    assert_eq!(count(|o| matches!(o, Observation::FirstWrite { .. })), 1, "{seen:?}");
}

/// No initiator is served after it.
pub async fn shutdown_closes_connections(f: &impl TargetFixture) {
    let served = serve(f).await;
    let spec = spec(f, &id(), only(1)).await;
    let endpoint = served.ensure(&spec).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    client.write(0, &pattern(4, 512)).await.expect("write");
    served.port.shutdown().await;
    client.read(0, 512).await.expect_err("the connection is closed");
    // What was written is on the disk, also for the next backend that serves it.
    let port = common::reopen::<Targets>(f, served.port).await;
    let endpoint = port.ensure(&spec, &spec.disks).await.expect("ensure");
    let client = connect(f, &endpoint, &spec.access).await;
    assert_eq!(client.read(0, 512).await.expect("read"), pattern(4, 512));
}
