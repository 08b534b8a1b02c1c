//! Compares the protocol's documentation with the code: every message in it is one that GGnet writes or can parse.

use std::collections::BTreeMap;

use bytes::Bytes;
use ggnet_core::ports::{
    BootBundle, DhcpCapabilities, DhcpChange, DhcpHost, Health, Listed, Removal, WritebackListed,
    WritebackSpec,
};
use serde_json::Value;

use super::{
    wire::{
        Applied, Apply, Base, Content, EnsureFiles, EnsureWriteback, Hello, HelloAnswer, Named, Nothing,
        PROTOCOL, Read, Remove, Said, cancel, decode, request, shutdown,
    },
    writeback::{Abilities, Place},
};

/// The lines of the fenced blocks that start with this text.
fn blocks(fence: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/backend-authors.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == fence;
        } else if inside {
            lines.push(line.to_owned());
        }
    }
    assert!(!lines.is_empty(), "{path} has no {fence}");
    lines
}

/// The messages that GGnet writes about the objects in the document.
fn written() -> Vec<Vec<u8>> {
    let id = "01935bd28c7e7b3a8f0de1b2c3d4e5f6".parse().unwrap();
    let host = DhcpHost {
        id,
        name: "pc-17".parse().unwrap(),
        macs: vec!["52:54:00:12:34:56".parse().unwrap()],
        fixed_address: Some("192.0.2.17".parse().unwrap()),
        device_type: ggnet_core::nouns::DeviceType::X64,
    };
    let gone = "01935bd28c7e7b3a8f0de1b2c3d4e5f5".parse().unwrap();
    let changes = [DhcpChange::Ensure(host.clone()), DhcpChange::Remove(gone)];
    let path: ggnet_core::ports::BootPath = "machines/52-54-00-12-34-56.ipxe".parse().unwrap();
    let files = [(path.clone(), Bytes::from_static(b"#!ipxe\n"))].into();
    let bundle = BootBundle { id: host.id.clone(), files };
    let disk = WritebackSpec {
        id: "01935bd28c7e7b3a8f0de1b2c3d4e5f6.3".parse().unwrap(),
        version: "01935bd2-8c7e-7b3a-8f0d-e1b2c3d4e5f7".parse().unwrap(),
        size_bytes: 34_359_738_368,
    };
    let base = Base {
        version: disk.version,
        path: "/var/lib/ggnet/images/01935bd28c7e7b3a8f0de1b2c3d4e5f7.raw".as_ref(),
        size_bytes: disk.size_bytes,
    };
    let config = [("path".to_owned(), Value::from("/etc/ethers"))].into_iter().collect();
    let instance = "0ddba11e".parse().unwrap();
    let hello =
        Hello { protocol: PROTOCOL, port: "dhcp", instance: &instance, config: &config, check: false };
    vec![
        request(0, "hello", hello).unwrap(),
        request(1, "apply", Apply::new(&changes)).unwrap(),
        request(2, "get", Named { id: &host.id }).unwrap(),
        request(3, "ensure", EnsureFiles::new(&bundle)).unwrap(),
        request(4, "read", Read::new(&path)).unwrap(),
        request(5, "list", Nothing {}).unwrap(),
        request(6, "health", Nothing {}).unwrap(),
        request(7, "read", Read::new(&"nothing/here.ipxe".parse().unwrap())).unwrap(),
        request(12, "remove", Named { id: &host.id }).unwrap(),
        request(8, "ensure", EnsureWriteback { digest: disk.digest(), id: &disk.id, base }).unwrap(),
        request(10, "list", Nothing {}).unwrap(),
        request(11, "remove", Remove { id: &disk.id, how: Removal::Force }).unwrap(),
        cancel(3),
        shutdown(),
    ]
}

#[test]
fn the_document_shows_what_we_write() {
    let shown: Vec<Value> =
        blocks("```json ggnet-says").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let written: Vec<Value> = written()
        .iter()
        .map(|line| {
            let (end, message) = line.split_last().unwrap();
            assert!(*end == b'\n' && !message.contains(&b'\n'), "one line");
            serde_json::from_slice(message).unwrap()
        })
        .collect();
    for (shown, written) in shown.iter().zip(&written) {
        assert_eq!(shown, written);
    }
    assert_eq!(shown.len(), written.len());
}

#[test]
fn what_the_document_has_backends_say_is_understood() {
    let asked: BTreeMap<u64, String> = blocks("```json ggnet-says")
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|m| Some((m.get("id")?.as_u64()?, m["method"].as_str()?.to_owned())))
        .collect();
    let mut observed = 0;
    for line in blocks("```json backend-says") {
        match decode(line.as_bytes()).unwrap() {
            Said::Answer(id, Ok(result)) => understood(id, &asked[&id], result),
            Said::Answer(id, Err(refusal)) => {
                assert!(asked.contains_key(&id), "{line}");
                assert!(!refusal.into_error().message().is_empty());
            }
            Said::Observed(_) => observed += 1,
        }
    }
    assert_eq!(observed, 4);
}

fn understood(id: u64, method: &str, result: Value) {
    fn form<T: serde::de::DeserializeOwned>(result: Value) -> T {
        serde_json::from_value(result).unwrap()
    }
    match method {
        "hello" => {
            let hello: HelloAnswer = form(result);
            assert_eq!(hello.protocol, PROTOCOL);
            match hello.port.as_str() {
                "dhcp" => drop(form::<DhcpCapabilities>(hello.capabilities)),
                "boot_files" => assert_eq!(hello.capabilities, Value::Null),
                "writeback" => drop(form::<Abilities>(hello.capabilities)),
                other => panic!("no port {other} is known"),
            }
        }
        // Those of the writeback store.
        "list" if id >= 8 => assert!(form::<Vec<WritebackListed>>(result)[0].base.is_some()),
        "ensure" if id >= 8 => {
            form::<Place>(result).into_disk().unwrap();
        }
        "list" => assert!(form::<Vec<Listed>>(result)[0].digest.is_some()),
        "read" => assert_eq!(form::<Content>(result).content, "#!ipxe\n"),
        "health" => assert!(matches!(form(result), Health::Down(_))),
        "apply" => assert_eq!(form::<Applied>(result).failed.len(), 1),
        "get" => assert!(form::<Option<Listed>>(result).is_some()),
        "ensure" | "remove" => {}
        other => panic!("no answer to {other} is known"),
    }
}
