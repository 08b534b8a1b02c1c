//! A wrong clock loses nothing: neither records, nor a generation that a machine is about to use.

use std::time::Duration;

use ggnet_core::{
    nouns::{EventKind, Timestamp},
    ports::{Batch, Clock as _, Store as _, Write},
};

use crate::site::{Site, all, until};

const HOUR: Duration = Duration::from_secs(3600);
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Time is paused: it jumps when all tasks wait.
#[tokio::test(start_paused = true)]
async fn a_clock_far_ahead_forgets_nothing_until_it_has_gone_on_for_a_day() {
    let mut site = Site::new();
    site.config.reconcile_interval = Duration::from_secs(60);
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _disk = p.power_on(&machine).await;
    p.script(&machine).await;
    let (told, rows) = (p.events(machine.id).await, p.store.audit(all()).await.unwrap().total);
    let right = site.clock.now();

    site.clock.advance(TEN_YEARS);
    let p = site.open().await;
    let doubt = p.o.degraded().unwrap();
    assert!(doubt.contains("clock shows 2036") && doubt.contains("timedatectl"), "{doubt}");
    p.reconcile().await;
    assert!(p.session(&machine).await.next.is_some(), "the machine may still be about to log in to it");
    let all_is_there = async || {
        assert!(p.events(machine.id).await.starts_with(&told));
        assert!(p.store.audit(all()).await.unwrap().total >= rows);
    };
    all_is_there().await;
    // The operator sets it.
    site.clock.set(right);
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(p.o.degraded(), None);
    all_is_there().await;
    // It jumps while the server runs.
    site.clock.advance(TEN_YEARS);
    tokio::time::sleep(2 * HOUR).await;
    assert!(p.o.degraded().is_some());
    all_is_there().await;
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!(p.o.degraded(), None, "it is believed");
    assert!(!p.events(machine.id).await.contains(&EventKind::MachineCreated), "so what is old goes");
}

#[tokio::test]
async fn a_clock_that_goes_on_while_the_server_is_off_is_trusted_and_what_is_old_goes() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.auto_start = false).await;
    for days in [40, 40, 11] {
        site.clock.advance(24 * days * HOUR);
        let p = site.open().await;
        assert_eq!(p.o.degraded(), None);
        let kept = async || p.events(machine.id).await.contains(&EventKind::MachineCreated);
        if days == 40 {
            p.reconcile().await;
            assert!(kept().await);
        } else {
            until("90 days are over", async || !kept().await).await;
        }
    }
}

#[tokio::test]
async fn without_a_note_of_the_last_trusted_time_the_newest_audit_row_tells() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let unreadable = Write::Setting { key: "clock".to_owned(), value: "some time ago".to_owned() };
    p.store.commit(Batch::new().write(unreadable)).await.unwrap();
    site.clock.set("2036-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
    let p = site.open().await;
    assert!(p.o.degraded().is_some());
    assert!(p.events(machine.id).await.contains(&EventKind::MachineCreated));
}
