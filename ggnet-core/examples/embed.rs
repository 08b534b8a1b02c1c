//! A program that embeds GGnet: it registers a machine, starts a session, lets the machine boot, write and reboot, and stops the session.
//!
//! All backends are in memory here, so it runs anywhere and changes nothing; a real program names real backends in [`Backends`], and its
//! machines log in by themselves. Run it with `cargo run -p ggnet-core --example embed --features testkit`.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use ggnet_core::{
    boot_text::templates::BootTemplates,
    metrics::Registry,
    nouns::{
        InstanceId, Machine, MachineId, MachineState, Principal, StopReason, VersionState, WritebackPolicy,
    },
    orchestrator::{
        Advertised, Backends, BootAnswer, BootRequest, ImportRequest, Orchestrator, OrchestratorConfig,
        Ports, StartRequest, StopRequest,
    },
    ports::{Clock, SystemClock},
    testkit::memory::{
        MemoryBootFiles, MemoryConverter, MemoryDhcp, MemoryImages, MemoryStore, MemoryTargets,
        MemoryWritebacks,
    },
    wrap::PortLimits,
};

#[tokio::main(flavor = "current_thread")]
/// The whole sequence, from the image to the end of the session.
pub async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;

    // The backends of the orchestrator. We keep the targets, because we act as the machine below.
    let targets = Arc::new(MemoryTargets::new());
    let backends = Backends {
        store: Arc::new(MemoryStore::new()),
        target: targets.clone(),
        writeback: Arc::new(MemoryWritebacks::new()),
        images: Arc::new(MemoryImages::new()),
        dhcp: Arc::new(MemoryDhcp::new()),
        boot_files: Arc::new(MemoryBootFiles::new()),
        converter: Arc::new(MemoryConverter::new()),
        clock: Arc::new(SystemClock),
    };
    // Around each of them: time limits, a limit of calls in flight, metrics. The metrics are not used here.
    let ports = Ports::new(backends, &PortLimits::default(), &mut Registry::default())?;
    ports.check_store().await?;
    let config = OrchestratorConfig::new(InstanceId::generate())?;
    let ggnet = Orchestrator::new(ports, config, BootTemplates::load(None)?)?;
    let mut events = ggnet.subscribe();
    while !ggnet.is_serving() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    // An image: imported in the background.
    let source = folder.path().join("golden.raw");
    std::fs::File::create(&source)?.set_len(8 << 20)?;
    let import = ImportRequest {
        image: "golden".parse()?,
        path: source,
        format: None,
        expected_sha256: None,
        comment: "the first one".to_owned(),
        make_current: true,
        by: Principal::embedder(),
    };
    let (image, version) = ggnet.images().import(import).await?;
    let version = loop {
        let now = ggnet.read().version(version.id).await?.version;
        if now.state != VersionState::Importing {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    println!(
        "image {} version {} is {:?}, {} MiB",
        image.name,
        version.number,
        version.state,
        version.size_bytes >> 20
    );

    // A machine that boots it.
    let machine = ggnet.machines().create(pc(image.id)?, &Principal::embedder()).await?;
    let start =
        StartRequest { machine: machine.id, image: None, data_disks: vec![], by: Principal::embedder() };
    let started = ggnet.sessions().start(start).await?;
    println!("session of {} is {}: {}", machine.name, started.session.state.as_str(), started.endpoint.iqn);

    // It boots: asks for its script, logs in, writes. Then it reboots.
    let peer: SocketAddr = "192.0.2.17:50000".parse()?;
    for boot in 1..=2 {
        let request = BootRequest {
            mac: machine.primary_mac()?,
            firmware: machine.firmware,
            peer: Some(peer.ip().to_string()),
            request_id: None,
            advertised: Advertised {
                portal: "192.0.2.1".parse()?,
                http_url: "http://192.0.2.1:8080".parse()?,
            },
            prepare: true,
        };
        let BootAnswer::Script(script) = ggnet.sessions().boot(request).await? else {
            return Err("the server answered: retry later".into());
        };
        let session = ggnet.read().live_session(&machine).await?;
        let generation = session.next.as_ref().unwrap_or(&session.current);
        let disk = targets.login(&session.target(generation), &session.initiator, peer).await?;
        let found = disk.read(0, 0, 512).await?;
        println!(
            "boot {boot}: a script of {} lines, generation {}, the disk is {}",
            script.lines().count(),
            generation.number,
            if found.iter().all(|b| *b == 0) { "clean" } else { "written" },
        );
        disk.write(0, 0, &[0xaa; 512]).await?;
        disk.logout().await;
    }

    let stop = StopRequest {
        session: started.session.id,
        force: false,
        reason: StopReason::Operator,
        by: Principal::embedder(),
    };
    let stopped = ggnet.sessions().stop(stop).await?;
    println!(
        "session is {}; left over: {} targets",
        stopped.state.as_str(),
        ggnet.read().targets().await?.len()
    );

    ggnet.shutdown().await;
    println!("what happened:");
    while let Ok(event) = events.try_recv() {
        println!("  {:>5} {:?}", event.cursor, event.event.kind);
    }
    Ok(())
}

fn pc(image: ggnet_core::nouns::ImageId) -> Result<Machine, Box<dyn Error>> {
    let now = SystemClock.now();
    Ok(Machine {
        id: MachineId::generate(),
        name: "pc-17".parse()?,
        description: String::new(),
        macs: vec!["52:54:00:00:00:17".parse()?],
        device_type: ggnet_core::nouns::DeviceType::X64,
        firmware: ggnet_core::nouns::Firmware::Uefi,
        fixed_address: None,
        groups: vec![],
        state: MachineState::Active,
        image: Some(image),
        pinned_version: None,
        auto_start: true,
        writeback: WritebackPolicy::Discard,
        created_at: now,
        updated_at: now,
        revision: 0,
    })
}
