//! The DHCP backend "proxy". What needs no network runs without one; the machines that ask stand on a link of their own.

use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use ggnet_backends::dhcp::proxy::{ProxyDhcp, ProxyDhcpConfig};
use ggnet_core::{
    nouns::{DeviceType, MacAddr},
    ports::{DhcpBackend, DhcpBackendExt as _, DhcpHost},
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, dhcp, run},
};

use crate::{
    machine::{self, Asks},
    netns::{Link, inside, with_namespaces},
    process::Process,
};

/// A machine of the fixture's own; its answer tells that all before it were given.
const LAST: &str = "52:54:00:ff:ff:ff";

/// On no network.
struct Nowhere;

#[async_trait]
impl Fixture<dyn DhcpBackend> for Nowhere {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        Arc::new(ProxyDhcp::start(ProxyDhcpConfig::default()).await.unwrap())
    }

    /// Without a network it has no tasks.
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        self.fresh().await
    }
}

impl DhcpFixture for Nowhere {}

ggnet_core::dhcp_behaviour!(behaviour, Nowhere, not_run: [
    what_is_not_ours_is_left_alone,
    a_reserved_address_is_given,
    // In `machines_on_a_link`.
    an_ensured_machine_is_answered,
    a_removed_machine_is_answered_no_more,
    every_card_of_a_machine_is_answered,
    a_replaced_card_is_answered_no_more,
    what_is_answered_is_observed,
]);

/// On a link with a machine.
struct OnLink {
    link: Link,
    running: Mutex<Option<(Process, Weak<dyn DhcpBackend>)>>,
}

impl OnLink {
    fn new() -> Self {
        Self { link: Link::new(), running: Mutex::default() }
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for OnLink {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        let old = self.running.lock().unwrap().take();
        if let Some((old, _)) = old {
            old.kill().await;
        }
        let config = ProxyDhcpConfig { interfaces: vec!["br0".into()], ..ProxyDhcpConfig::default() };
        let process = Process::start_in(&self.link.server);
        let started = process.handle().spawn(ProxyDhcp::start(config)).await.unwrap();
        let port: Arc<dyn DhcpBackend> = Arc::new(started.unwrap());
        *self.running.lock().unwrap() = Some((process, Arc::downgrade(&port)));
        port
    }

    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        self.fresh().await
    }
}

#[async_trait]
impl DhcpFixture for OnLink {
    fn can_ask(&self) -> bool {
        true
    }

    /// No answer means: none before the answer to a later question. Requests to one socket are answered in their order.
    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        let port = self.running.lock().unwrap().as_ref().and_then(|(_, port)| port.upgrade());
        let port = port.expect("fresh() came before");
        let last = DhcpHost {
            id: "the-last-to-ask".parse().unwrap(),
            name: "last".parse().unwrap(),
            macs: vec![LAST.parse().unwrap()],
            fixed_address: None,
            device_type: DeviceType::X64,
        };
        port.ensure(&last).await.unwrap();
        let ns = self.link.client.clone();
        let asked = tokio::task::spawn_blocking(move || inside(&ns, move || answer(mac))).await.unwrap();
        port.remove(&last.id).await.unwrap();
        asked
    }
}

/// What `mac` is told before `LAST` is.
fn answer(mac: MacAddr) -> DhcpAnswer {
    let socket = machine::socket();
    for attempt in 0..machine::TIMES {
        // Both again where an answer is lost, and by other numbers: a late answer to an earlier attempt says nothing of this one.
        let (first, last) = (2 * attempt, 2 * attempt + 1);
        for (xid, mac) in [(first, mac), (last, LAST.parse().unwrap())] {
            let question = machine::discover(xid, mac, Asks::Firmware(7));
            socket.send_to(&question, "255.255.255.255:67").unwrap();
        }
        let mut answer = DhcpAnswer::default();
        while let Some(offer) = machine::receive(&socket) {
            if offer.xid == first {
                answer.boot_file = offer.boot_file();
                answer.address = (!offer.address.is_unspecified()).then(|| offer.address.into());
            } else if offer.xid == last {
                return answer;
            } else {
                assert!(offer.xid < first, "an answer to request {}, which nobody sent", offer.xid);
            }
        }
    }
    panic!("no answer to {} requests", machine::TIMES);
}

/// The cases that need a machine. Together in one test, because a test without root enters its namespaces by its own name.
#[test]
fn machines_on_a_link() {
    with_namespaces("proxy_dhcp::machines_on_a_link", || {
        run(async {
            dhcp::an_ensured_machine_is_answered(&OnLink::new()).await;
            dhcp::a_removed_machine_is_answered_no_more(&OnLink::new()).await;
            dhcp::every_card_of_a_machine_is_answered(&OnLink::new()).await;
            dhcp::a_replaced_card_is_answered_no_more(&OnLink::new()).await;
            dhcp::what_is_answered_is_observed(&OnLink::new()).await;
        });
    });
}
