//! What a start, a boot and a script ask of the ports: each thing once.

use std::collections::BTreeMap;

use ggnet_core::nouns::{BootStage, EventKind, Principal, WritebackPolicy};

use crate::house::{House, Process, advertised, until};

/// The calls since `from`, with how often each was made.
fn calls(p: &Process, from: usize) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for op in &p.plan.log()[from..] {
        *counted.entry(format!("{}.{}", op.port, op.name)).or_default() += 1;
    }
    counted
}

fn expected(calls: &[(&str, usize)]) -> BTreeMap<String, usize> {
    calls.iter().map(|(call, count)| ((*call).to_owned(), *count)).collect()
}

/// What every start asks, whoever wants it.
const START: [(&str, usize); 10] = [
    ("store.machine", 1),
    ("store.live_session", 1),
    ("store.last_session", 1),
    ("store.image", 1),
    ("store.version", 1),
    ("image.open", 1),
    ("writeback.ensure", 1),
    ("target.ensure", 1),
    ("boot_file.ensure", 1),
    ("dhcp.apply", 1),
];

#[tokio::test]
async fn a_start_reads_and_ensures_each_thing_once() {
    let p = House::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.auto_start = false).await;
    let from = p.plan.log().len();
    p.start(&machine).await.unwrap();
    let mut once = expected(&START);
    once.insert("store.commit".to_owned(), 2);
    assert_eq!(calls(&p, from), once);
}

#[tokio::test]
async fn a_start_over_what_was_kept_looks_for_it_once_and_lists_nothing() {
    let p = House::new().open().await;
    let (image, _) = p.image("debian").await;
    let keeps = |m: &mut ggnet_core::nouns::Machine| {
        (m.auto_start, m.writeback) = (false, WritebackPolicy::Keep);
    };
    let machine = p.machine(1, image, keeps).await;
    let session = p.start(&machine).await.unwrap().session;
    p.stop(&session, true).await.unwrap();
    let from = p.plan.log().len();
    p.start(&machine).await.unwrap();
    let mut once = expected(&START);
    once.extend(expected(&[("store.commit", 2), ("writeback.get", 1)]));
    assert_eq!(calls(&p, from), once);
}

#[tokio::test]
async fn a_boot_that_starts_a_session_asks_for_the_machine_by_its_address_besides() {
    let p = House::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let from = p.plan.log().len();
    p.script(&machine).await;
    let mut once = expected(&START);
    // The second one says that the session is active and that the script was read.
    once.extend(expected(&[("store.machine_by_mac", 1), ("store.commit", 2)]));
    assert_eq!(calls(&p, from), once);
}

/// Of a machine that runs: the next generation is made once; asked again, nothing is made, only its address is read.
#[tokio::test]
async fn a_script_asked_for_again_ensures_nothing() {
    let p = House::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _running = p.power_on(&machine).await;
    // What was observed of it is written by and by.
    let login = |kind: &EventKind| matches!(kind, EventKind::BootStage { stage: BootStage::IscsiLogin, .. });
    until("the login is recorded", async || p.events(machine.id).await.iter().any(login)).await;
    let reads = [("store.machine_by_mac", 1), ("store.machine", 1), ("store.live_session", 1)];
    let from = p.plan.log().len();
    p.script(&machine).await;
    let mut first = expected(&reads);
    // The version to boot is chosen, and its generation made under the image lock; then what the script says of both.
    first.extend(expected(&[
        ("store.image", 2),
        ("store.version", 3),
        ("store.commit", 2),
        ("image.open", 1),
        ("writeback.ensure", 1),
        ("target.ensure", 1),
    ]));
    assert_eq!(calls(&p, from), first);

    let from = p.plan.log().len();
    p.script(&machine).await;
    let mut again = expected(&reads);
    again.extend(expected(&[
        ("store.image", 2),
        ("store.version", 2),
        ("store.commit", 1),
        ("target.endpoint", 1),
    ]));
    assert_eq!(calls(&p, from), again);

    let session = p.session(&machine).await;
    let from = p.plan.log().len();
    p.o.sessions().current_script(&session, &advertised(), &Principal::embedder()).await.unwrap();
    let made: Vec<_> = calls(&p, from)
        .into_keys()
        .filter(|call| call.ends_with("ensure") || call.ends_with("apply"))
        .collect();
    assert!(made.is_empty(), "a look makes nothing: {made:?}");
}
