//! What the tests of the backends that write for a daemon have in common: a link with a daemon's network, and the suite's cases on it.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_backends::run::SystemRunner;
use ggnet_core::{
    Result,
    nouns::{DeviceType, MacAddr, ResourceId},
    ports::{DhcpBackend, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, Health, Listed, Observer},
    testkit::suite::{DhcpAnswer, Foreign},
};
use tokio::runtime::Handle;

use crate::{
    machine::{self, Asks, Offer},
    netns::{Link, inside, run},
    process::{Process, within},
};

/// The server's address in the examples of `infra/examples`.
pub const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A link whose server has the address of the examples.
pub fn link() -> Link {
    let link = Link::new();
    for arguments in ["addr flush dev br0", "addr add 192.0.2.1/24 dev br0"] {
        let line = format!("-n {} {arguments}", link.server);
        run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
    }
    link
}

/// Where an example of `infra/examples` is.
pub fn example_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples").join(name).canonicalize().unwrap()
}

/// An example of `infra/examples` with the interface and the folder of a test in it; nothing else of it is changed.
pub fn example(name: &str, folder: &str, dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(example_path(name)).unwrap();
    assert!(text.contains(folder), "{name} names {folder}");
    let text = text.replace(folder, dir.to_str().unwrap()).replace("interface=eth0", "interface=br0");
    write(&dir.join(name), &text)
}

/// A file of a test.
pub fn write(path: &Path, text: &str) -> PathBuf {
    std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
    path.to_owned()
}

/// Something that starts programs in the namespace that `process` stands in.
pub async fn runner(process: &Process) -> Arc<SystemRunner> {
    // Programs inherit the namespace of the thread that asks for the first one.
    Arc::new(process.handle().spawn(async { SystemRunner::new() }).await.unwrap().unwrap())
}

/// A backend with its work in a process that can be killed, and that stands in a namespace.
pub struct InProcess<B> {
    pub backend: Arc<B>,
    pub process: Handle,
}

#[async_trait]
impl<B: DhcpBackend> DhcpBackend for InProcess<B> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn capabilities(&self) -> DhcpCapabilities {
        self.backend.capabilities()
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        self.backend.attach(observer);
    }

    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        within(&self.process, self.backend.apply(changes)).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        within(&self.process, self.backend.get(id)).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        within(&self.process, self.backend.list()).await
    }

    /// On a thread of the process: health asks the network by itself.
    async fn health(&self) -> Health {
        let backend = Arc::clone(&self.backend);
        self.process.spawn(async move { backend.health().await }).await.unwrap()
    }

    async fn shutdown(&self) {
        within(&self.process, self.backend.shutdown()).await;
    }
}

/// Files that are not ours, with their texts.
pub struct Theirs(pub Vec<(PathBuf, String)>);

#[async_trait]
impl Foreign for Theirs {
    async fn check(&self) -> Result<(), String> {
        for (path, text) in &self.0 {
            let now = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            if now != *text {
                return Err(format!("{}: {now}", path.display()));
            }
        }
        Ok(())
    }
}

/// What a UEFI machine is answered by a daemon that gives out addresses.
pub fn answer(link: &Link, mac: MacAddr) -> DhcpAnswer {
    let offer = tokio::task::block_in_place(|| ask(link, mac, Asks::Firmware(7)));
    let address = (!offer.address.is_unspecified()).then(|| offer.address.into());
    DhcpAnswer { boot_file: offer.boot_file(), address }
}

/// A machine's answer on the link's client.
pub fn ask(link: &Link, mac: MacAddr, asks: Asks) -> Offer {
    let xid = rand::random();
    inside(&link.client, move || machine::offered(xid, mac, asks))
}

/// A machine by its number.
pub fn host(n: u8) -> DhcpHost {
    DhcpHost {
        id: format!("m{n}").parse().unwrap(),
        name: format!("pc-{n}").parse().unwrap(),
        macs: vec![MacAddr::new([0x52, 0x54, 0, 0xaa, 0, n]).unwrap()],
        fixed_address: Some(Ipv4Addr::new(192, 0, 2, n).into()),
        device_type: DeviceType::X64,
    }
}

/// Kills the daemon of a pid file, if it runs, and waits for its end.
pub fn kill_daemon(pid_file: &Path) {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let runs =
        || std::fs::read_to_string(&stat).is_ok_and(|s| s.contains("(dnsmasq)") || s.contains("(dhcpd)"));
    if runs() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    while runs() && std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z")) {
        std::thread::yield_now();
    }
}

/// The text of an option.
pub fn text(offer: &Offer, option: u8) -> String {
    String::from_utf8(offer.options.get(&option).cloned().unwrap_or_default()).unwrap()
}

/// What each kind of firmware is told, of a machine that is registered: address, host name, next-server and boot file.
pub fn assert_boots(link: &Link, host: &DhcpHost) {
    let mac = host.macs[0];
    let dashed = mac.hyphenated();
    for (asks, file) in [
        (Asks::Firmware(0), format!("{dashed}/undionly.kpxe")),
        (Asks::Firmware(7), format!("{dashed}/ipxe.efi")),
        (Asks::Http(16), format!("http://{US}:8080/files/{dashed}/ipxe.efi")),
        (Asks::Ipxe(0), format!("http://{US}:8080/boot/{dashed}.ipxe")),
        (Asks::Ipxe(7), format!("http://{US}:8080/boot/{dashed}.ipxe")),
    ] {
        let offer = ask(link, mac, asks);
        assert_eq!(offer.boot_file(), Some(file), "{asks:?}: {offer:?}");
        assert_eq!(Some(offer.address.into()), host.fixed_address, "{asks:?}");
        assert_eq!(offer.next_server, US, "{asks:?}");
        assert_eq!(text(&offer, 12), host.name.as_str(), "{asks:?}");
        if let Asks::Http(_) = asks {
            assert_eq!(text(&offer, 60), "HTTPClient");
        }
    }
    // A wrong loader would hang it.
    assert_eq!(ask(link, mac, Asks::Firmware(11)).boot_file(), None);
}

/// A machine that is not registered gets an address and nothing to boot.
pub fn assert_does_not_boot(link: &Link, mac: MacAddr) {
    for asks in [Asks::Firmware(0), Asks::Firmware(7), Asks::Ipxe(7)] {
        let offer = ask(link, mac, asks);
        assert_eq!(offer.boot_file(), None, "{asks:?}");
        assert!(!offer.address.is_unspecified());
    }
}

/// The suite's cases, each as a test of its own in namespaces of its own, and none left out but the named ones.
macro_rules! suite_on_a_link {
    ($module:literal, $fixture:expr, not_run: [$($left_out:ident),*]) => {
        ggnet_core::dhcp_cases!([crate::native_dhcp::cases_on_a_link] $module, $fixture, [$($left_out),*],);
    };
}
pub(crate) use suite_on_a_link;

/// What [`suite_on_a_link`] makes of the cases.
macro_rules! cases_on_a_link {
    ($module:literal, $fixture:expr, $left_out:tt, [$($case:ident),* $(,)?]) => {
        $(
            #[test]
            fn $case() {
                if crate::native_dhcp::left_out!($left_out).contains(&stringify!($case)) {
                    return;
                }
                crate::netns::with_namespaces(concat!($module, "::", stringify!($case)), || {
                    ggnet_core::testkit::suite::run(async {
                        ggnet_core::testkit::suite::dhcp::$case(&$fixture).await;
                    });
                });
            }
        )*

        #[test]
        fn undeclared_capabilities() {
            crate::netns::with_namespaces(concat!($module, "::undeclared_capabilities"), || {
                ggnet_core::testkit::suite::run(async {
                    let fixture = $fixture;
                    let mut not_run: Vec<(&'static str, String)> = Vec::new();
                    for case in [$(stringify!($case)),*] {
                        let why = ggnet_core::testkit::suite::dhcp::not_run(&fixture, case).await;
                        not_run.extend(why.map(|why| (case, why)));
                    }
                    let expected = crate::native_dhcp::left_out!($left_out);
                    ggnet_core::testkit::suite::report($module, &not_run, Some(expected));
                });
            });
        }
    };
}
pub(crate) use cases_on_a_link;

/// Names as texts.
macro_rules! left_out {
    ([$($case:ident),*]) => {
        &[$(stringify!($case)),*]
    };
}
pub(crate) use left_out;

/// Every answer to one question, once there are `count` of them.
pub fn offers(link: &Link, mac: MacAddr, asks: Asks, count: usize) -> Vec<Offer> {
    let xid = rand::random();
    inside(&link.client, move || {
        let socket = machine::socket();
        let mut offers: Vec<Offer> = Vec::new();
        // A server that has only just started may have missed the first request.
        for _ in 0..machine::TIMES {
            socket.send_to(&machine::discover(xid, mac, asks), "255.255.255.255:67").unwrap();
            while offers.len() < count {
                let Some(offer) = machine::receive(&socket) else { break };
                if offer.xid == xid && !offers.iter().any(|o| o.address == offer.address) {
                    offers.push(offer);
                }
            }
        }
        assert_eq!(offers.len(), count, "answers to {} requests", machine::TIMES);
        offers
    })
}

/// The address that udhcpc gets with this hardware address.
pub fn lease(link: &Link, mac: MacAddr, dir: &Path) -> Ipv4Addr {
    use std::os::unix::fs::PermissionsExt as _;

    let script = write(
        &dir.join("udhcpc.sh"),
        "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip\" >\"${0%.sh}.ip\"\nexit 0\n",
    );
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = script.to_str().unwrap().to_owned();
    let set = format!("-n {} link set eth0 address {mac}", link.client);
    run("iproute2", "ip", &set.split(' ').collect::<Vec<_>>());
    inside(&link.client, move || {
        run("udhcpc", "udhcpc", &["-i", "eth0", "-f", "-q", "-n", "-t", "20", "-T", "1", "-s", &path]);
    });
    std::fs::read_to_string(dir.join("udhcpc.ip")).unwrap().trim().parse().unwrap()
}
