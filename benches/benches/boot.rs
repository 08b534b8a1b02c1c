//! What a booting machine asks for: its script's text, and its loader by TFTP on the loopback.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a bench fails by panicking; criterion's macros"
)]

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use ggnet_backends::bootfile::{
    builtin::{BuiltinBootFiles, TftpConfig},
    loaders::read_loaders,
};
use ggnet_core::boot_text::{
    san::SanUri,
    templates::{BootTemplates, MachineScript},
};
use ggnet_core::nouns::ChapPair;
use ggnet_core::ports::BootFileStore as _;
use tokio::net::UdpSocket;

fn script(c: &mut Criterion) {
    let templates = BootTemplates::load(None).unwrap();
    let iqn = |text: &str| text.parse().unwrap();
    let script = MachineScript {
        machine: "pc-1".parse().unwrap(),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        image: "golden".parse().unwrap(),
        version: 3,
        san: SanUri {
            server: "192.0.2.1".parse().unwrap(),
            port: 3260,
            lun: 0,
            target: iqn("iqn.2024-01.org.example:pc-1.1"),
        },
        initiator: iqn("iqn.2024-01.org.example:client"),
        chap: Some(ChapPair::random("pc-1").unwrap()),
        report_url: "http://192.0.2.1:8080/boot/52-54-00-00-00-01/report".parse().unwrap(),
    };
    c.bench_function("script (floor: 1 s)", |b| b.iter(|| templates.machine(black_box(&script)).unwrap()));
}

/// A whole transfer with blocks of 1,432 bytes, one in flight, as firmware does it.
async fn fetch(server: SocketAddr) -> usize {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let request = b"\0\x01ipxe.efi\0octet\0blksize\x001432\0";
    socket.send_to(request, server).await.unwrap();
    let mut buf = [0; 2048];
    let mut all = 0;
    loop {
        let (len, from) = socket.recv_from(&mut buf).await.unwrap();
        match (buf[1], len) {
            // The options are granted.
            (6, _) => drop(socket.send_to(&[0, 4, 0, 0], from).await.unwrap()),
            (3, len) => {
                all += len - 4;
                socket.send_to(&[0, 4, buf[2], buf[3]], from).await.unwrap();
                if len - 4 < 1432 {
                    return all;
                }
            }
            other => panic!("TFTP said {other:?}"),
        }
    }
}

fn tftp(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (store, address, size) = runtime.block_on(async {
        let loaders = read_loaders(Path::new("/usr/lib/ipxe")).await.unwrap();
        assert!(loaders.missing.is_empty(), "{:?}", loaders.hint);
        let size = loaders.bundle.files[&"ipxe.efi".parse().unwrap()].len();
        let store = BuiltinBootFiles::new();
        store.ensure(&loaders.bundle).await.unwrap();
        let config = TftpConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], ..TftpConfig::default() };
        let address = store.serve_tftp(config).await.unwrap()[0];
        (store, address, size)
    });
    c.bench_function(&format!("ipxe.efi by TFTP, {} KiB (floor: 1 s)", size / 1024), |b| {
        b.to_async(&runtime).iter(|| async { assert_eq!(fetch(address).await, size) });
    });
    drop(store);
}

criterion_group! {
    name = boot;
    config = Criterion::default().sample_size(20);
    targets = script, tftp
}
criterion_main!(boot);
