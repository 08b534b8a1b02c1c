//! The DHCP backend "proxy". What needs no network runs without one; the machines that ask stand on a link of their own.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use ggnet_backends::dhcp::proxy::{ProxyDhcp, ProxyDhcpConfig};
use ggnet_core::{
    nouns::{DeviceType, MacAddr},
    ports::{DhcpBackend, DhcpHost, Removal},
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, dhcp, run},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
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
        port.remove(&last.id, Removal::IfIdle).await.unwrap();
        asked
    }
}

/// What `mac` is told before `LAST` is.
fn answer(mac: MacAddr) -> DhcpAnswer {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let socket: UdpSocket = socket.into();
    for (xid, mac) in [(1, mac), (2, LAST.parse().unwrap())] {
        socket.send_to(&discover(xid, mac), "255.255.255.255:67").unwrap();
    }
    let mut told = DhcpAnswer::default();
    loop {
        let mut buffer = [0; 2048];
        let (length, _) = socket.recv_from(&mut buffer).expect("no answer");
        let packet = &buffer[..length];
        match u32::from_be_bytes(packet[4..8].try_into().unwrap()) {
            1 => {
                let file: Vec<u8> = packet[108..236].iter().copied().take_while(|b| *b != 0).collect();
                told.boot_file = (!file.is_empty()).then(|| String::from_utf8(file).unwrap());
                let address = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
                told.address = (!address.is_unspecified()).then(|| address.into());
            }
            2 => return told,
            other => panic!("an answer to question {other}"),
        }
    }
}

/// DHCPDISCOVER of a PC with UEFI.
fn discover(xid: u32, mac: MacAddr) -> Vec<u8> {
    let mut b = vec![0; 240];
    b[..3].copy_from_slice(&[1, 1, 6]);
    b[4..8].copy_from_slice(&xid.to_be_bytes());
    // Answered by broadcast.
    b[10] = 0x80;
    b[28..34].copy_from_slice(&mac.octets());
    b[236..240].copy_from_slice(&[99, 130, 83, 99]);
    b.extend([53, 1, 1, 55, 7, 1, 3, 6, 43, 60, 66, 67]);
    let class = b"PXEClient:Arch:00007:UNDI:003016";
    b.extend([60, u8::try_from(class.len()).unwrap()]);
    b.extend(class);
    b.extend([93, 2, 0, 7, 94, 3, 1, 3, 16, 97, 17]);
    b.extend([5; 17]);
    b.push(255);
    b.resize(b.len().max(300), 0);
    b
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
