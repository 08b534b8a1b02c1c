//! A daemon through the helper: the real dnsmasq, which the backend can only manage through the helper.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use ggnet_backends::{
    dhcp::dnsmasq::{Dnsmasq, DnsmasqConfig},
    helper::{Action, Helper},
    helper_server::{Duties, serve},
    owner::Owner,
    service::{Manager, Service, ServiceConfig},
};
use ggnet_core::{
    ErrorKind, Result,
    ports::{DhcpBackend as _, DhcpBackendExt as _, Health},
    testkit::suite::run,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{
    dnsmasq::OnLink,
    native_dhcp::{self, InProcess, assert_boots, assert_does_not_boot, host},
    netns::with_namespaces,
    process::Process,
};

const UNIT: &str = "dnsmasq.service";

/// A helper that manages one daemon, in its own process.
async fn helper(on_link: &OnLink, socket: &Path) -> Process {
    let root = Process::start_in(&on_link.link.server);
    let service = on_link.config().service(native_dhcp::runner(&root).await).unwrap();
    let me = socket.parent().unwrap().metadata().unwrap();
    let units = [(UNIT.to_owned(), service)].into();
    let duties = Duties { owner: Owner::new(me.uid(), me.gid()), target: None, units };
    let socket = socket.to_owned();
    let listener = root.handle().spawn(async move { UnixListener::bind(socket).unwrap() }).await.unwrap();
    root.handle().spawn(serve(listener, duties, CancellationToken::new()));
    root
}

/// The backend of a server that is not root.
async fn open(on_link: &OnLink, socket: &Path) -> InProcess<Dnsmasq> {
    let service = ServiceConfig {
        manager: Manager::Helper,
        helper: Some(socket.to_owned()),
        ..ServiceConfig::default()
    };
    on_link.open(DnsmasqConfig { service, ..on_link.config() }).await.unwrap()
}

async fn change(socket: &Path, action: Action) -> Result<()> {
    let helper = Helper::at(socket);
    tokio::task::spawn_blocking(move || helper.change(UNIT, action)).await.unwrap()
}

#[test]
fn dnsmasq_is_watched_started_and_restarted_by_the_helper() {
    with_namespaces("helper::dnsmasq_is_watched_started_and_restarted_by_the_helper", || {
        run(async {
            let on_link = OnLink::new();
            let socket = on_link.at("helper.sock");
            let root = helper(&on_link, &socket).await;
            let backend = open(&on_link, &socket).await;
            let (one, two) = (host(11), host(12));
            // It does not run: the check reports that with the unit's name.
            assert!(matches!(backend.health().await, Health::Down(why) if why.contains("not running")));
            let e = backend.ensure(&one).await.unwrap_err();
            assert_eq!(
                (e.kind(), e.subject()),
                (ErrorKind::Unavailable, Some("unit dnsmasq.service")),
                "{e}"
            );
            assert!(e.hint().unwrap().contains("systemctl start dnsmasq.service"), "{e}");

            change(&socket, Action::Start).await.unwrap();
            assert_eq!(backend.health().await, Health::Up);
            backend.ensure(&one).await.unwrap();
            backend.ensure(&two).await.unwrap();
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &one));
            let starts = || on_link.log().matches(": started, version").count();
            assert_eq!(starts(), 1);
            backend.remove(&one.id).await.unwrap();
            assert_eq!(starts(), 2, "restarted once: {}", on_link.log());
            tokio::task::block_in_place(|| {
                assert_does_not_boot(&on_link.link, one.macs[0]);
                assert_boots(&on_link.link, &two);
            });

            // Without the helper nothing is lost, and the error names the helper.
            root.kill().await;
            assert!(matches!(backend.health().await, Health::Down(why) if why.contains("helper.sock")));
            let e = backend.ensure(&host(13)).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unavailable);
            assert!(e.hint().unwrap().contains("ggnet-helper.socket"), "{e}");
            std::fs::remove_file(&socket).unwrap();
            let _root = helper(&on_link, &socket).await;
            backend.ensure(&host(13)).await.unwrap();
            on_link.kill_daemon();
        });
    });
}

#[test]
fn the_helper_is_named_when_it_is_not_there() {
    run(async {
        let runner = std::sync::Arc::new(ggnet_backends::run::SystemRunner::new().unwrap());
        let config = ServiceConfig {
            manager: Manager::Helper,
            helper: Some("/nonexistent/helper.sock".into()),
            ..ServiceConfig::default()
        };
        let service: Service =
            DnsmasqConfig { service: config, ..DnsmasqConfig::default() }.service(runner).unwrap();
        assert_eq!(service.label(), "unit dnsmasq.service");
        let e = service.state().await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable);
        assert!(e.message().contains("/nonexistent/helper.sock"), "{e}");
    });
}
