//! A backend that never answers, at each call of each port: the call ends, the others go on, health names the port, a shutdown ends, and
//! what was given up changes nothing later.

use std::{path::Path, sync::Arc, time::Duration};

use ggnet_core::{
    Error, ErrorKind, Result,
    block::{Disk, DiskForm},
    metrics::Registry,
    nouns::{
        DeviceType, ImageFormat, ImageId, ImageVersionId, JobId, MachineId, Principal, ResourceId, SessionId,
        SessionState, TargetId,
    },
    orchestrator::{Backends, Ports, StartRequest},
    ports::{
        Batch, BootBundle, BootFileStore as _, Clock as _, Completeness, ConvertSpec, Converted,
        DhcpBackendExt as _, DhcpChange, DhcpHost, Frozen, Health, Hold, ImageConverter, ImageProbe,
        ImageSpec, LunDisks, Native, OpenImage, Progress, Removal, Sink, SinkForm, Store as _, SystemClock,
        WritebackSpec,
    },
    testkit::{
        flaky::{Fault, FaultPlan, Flaky, Matching},
        memory::{
            MemoryBootFiles, MemoryConverter, MemoryDhcp, MemoryImages, MemoryStore, MemoryTargets,
            MemoryWritebacks, RamDisk,
        },
    },
    wrap::{OVERDUE_WAIT, PortLimits},
};
use tokio_util::sync::CancellationToken;

use crate::house::{House, every, until};

/// Longer than any limit below: who waits so long waits for ever.
const FOR_EVER: Duration = Duration::from_secs(7200);

struct Made {
    ports: Ports,
    plan: FaultPlan,
    registry: Registry,
}

fn made(limits: &PortLimits) -> Made {
    made_with(limits, Arc::new(MemoryConverter::new()))
}

fn made_with(limits: &PortLimits, converter: Arc<dyn ImageConverter>) -> Made {
    let (plan, mut registry) = (FaultPlan::new(), Registry::default());
    let backends = Backends {
        store: Arc::new(Flaky::new(Arc::new(MemoryStore::new()), &plan)),
        target: Arc::new(Flaky::new(Arc::new(MemoryTargets::new()), &plan)),
        writeback: Arc::new(Flaky::new(Arc::new(MemoryWritebacks::new()), &plan)),
        images: Arc::new(Flaky::new(Arc::new(MemoryImages::new()), &plan)),
        dhcp: Arc::new(Flaky::new(Arc::new(MemoryDhcp::new()), &plan)),
        boot_files: Arc::new(Flaky::new(Arc::new(MemoryBootFiles::new()), &plan)),
        converter: Arc::new(Flaky::new(converter, &plan)),
        clock: Arc::new(SystemClock),
    };
    let ports = Ports::new(backends, limits, &mut registry).unwrap();
    Made { ports, plan, registry }
}

impl Made {
    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn counted(&self, line: &str) {
        let text = self.metrics();
        assert!(text.lines().any(|l| l == line), "no {line}\n{text}");
    }
}

fn id(n: u64) -> ResourceId {
    ResourceId::machine(format!("00000000-0000-7000-8000-{n:012}").parse().unwrap())
}

fn host(n: u64) -> DhcpHost {
    DhcpHost {
        id: id(n),
        name: "pc-1".parse().unwrap(),
        macs: vec!["52:54:00:00:00:01".parse().unwrap()],
        fixed_address: None,
        device_type: DeviceType::X64,
    }
}

fn base() -> OpenImage {
    let disk = Disk::Blocks(Arc::new(RamDisk::zeros(1 << 20)));
    OpenImage { id: ImageVersionId::generate(), size_bytes: 1 << 20, disk, hold: Hold::nothing() }
}

fn version() -> ImageSpec {
    ImageSpec::new(ImageVersionId::generate(), 1 << 20)
}

fn frozen() -> Frozen {
    Frozen {
        writeback: id(1),
        base: ImageVersionId::generate(),
        size_bytes: 1 << 20,
        whole: false,
        native: Native { family: "memory".to_owned(), locator: id(1).to_string() },
        hold: Hold::nothing(),
    }
}

fn failed<T>(result: Result<T>) -> Option<Error> {
    result.err()
}

/// Calls this method of this port.
async fn call(p: &Ports, port: &str, method: &str) -> Option<Error> {
    let (name, page, mac) = ("a".parse().unwrap(), crate::house::all(), "52:54:00:00:00:01".parse().unwrap());
    let dead = |health| match health {
        Health::Down(why) => Some(Error::new(ErrorKind::Timeout, why)),
        _ => None,
    };
    match (port, method) {
        ("target", "ensure") => failed(p.target().ensure(&target(), &LunDisks::new()).await),
        ("target", "remove") => failed(p.target().remove(&id(1), Removal::Force).await),
        ("target", "endpoint") => failed(p.target().endpoint(&id(1)).await),
        ("target", "get") => failed(p.target().get(&id(1)).await),
        ("target", "list") => failed(p.target().list().await),
        ("target", "connections") => failed(p.target().connections().await),
        ("target", "health") => dead(p.target().health().await),
        ("writeback", "ensure") => {
            let base = base();
            let spec = WritebackSpec { id: id(1), version: base.id, size_bytes: base.size_bytes };
            failed(p.writeback().ensure(&spec, &base).await)
        }
        ("writeback", "freeze") => failed(p.writeback().freeze(&id(1)).await),
        ("writeback", "remove") => failed(p.writeback().remove(&id(1), Removal::Force).await),
        ("writeback", "list") => failed(p.writeback().list().await),
        ("writeback", "get") => failed(p.writeback().get(&id(1)).await),
        ("writeback", "health") => dead(p.writeback().health().await),
        ("image", "draft") => failed(p.images().draft(&version()).await),
        ("image", "seal") => failed(p.images().seal(&version()).await),
        ("image", "adopt") => failed(p.images().adopt(&version(), &frozen()).await),
        ("image", "open") => failed(p.images().open(ImageVersionId::generate(), DiskForm::Blocks).await),
        ("image", "get") => failed(p.images().get(ImageVersionId::generate()).await),
        ("image", "list") => failed(p.images().list().await),
        ("image", "remove") => failed(p.images().remove(ImageVersionId::generate(), Removal::Force).await),
        ("image", "health") => dead(p.images().health().await),
        ("dhcp", "apply") => failed(p.dhcp().apply(&[DhcpChange::Ensure(host(1))]).await),
        ("dhcp", "get") => failed(p.dhcp().get(&id(1)).await),
        ("dhcp", "list") => failed(p.dhcp().list().await),
        ("dhcp", "health") => dead(p.dhcp().health().await),
        ("boot_file", "ensure") => {
            failed(p.boot_files().ensure(&BootBundle { id: id(1), files: Default::default() }).await)
        }
        ("boot_file", "remove") => failed(p.boot_files().remove(&id(1)).await),
        ("boot_file", "get") => failed(p.boot_files().get(&id(1)).await),
        ("boot_file", "list") => failed(p.boot_files().list().await),
        ("boot_file", "read") => failed(p.boot_files().read(&"a".parse().unwrap()).await),
        ("boot_file", "health") => dead(p.boot_files().health().await),
        ("image_converter", "probe") => failed(p.converter().probe(Path::new("/a")).await),
        ("image_converter", "convert") => failed(
            p.converter().convert(&spec(Path::new("/nowhere")), quiet(), CancellationToken::new()).await,
        ),
        ("image_converter", "health") => dead(p.converter().health().await),
        ("store", "commit") => failed(p.store().commit(Batch::new()).await),
        ("store", "machine") => failed(p.store().machine(MachineId::generate()).await),
        ("store", "machine_by_mac") => failed(p.store().machine_by_mac(mac).await),
        ("store", "machine_by_name") => failed(p.store().machine_by_name(&name).await),
        ("store", "machines") => failed(p.store().machines(&Default::default(), page).await),
        ("store", "image") => failed(p.store().image(ImageId::generate()).await),
        ("store", "image_by_name") => failed(p.store().image_by_name(&name).await),
        ("store", "images") => failed(p.store().images(page).await),
        ("store", "version") => failed(p.store().version(ImageVersionId::generate()).await),
        ("store", "versions") => failed(p.store().versions(ImageId::generate()).await),
        ("store", "versions_of") => failed(p.store().versions_of(&[]).await),
        ("store", "importing_versions") => failed(p.store().importing_versions().await),
        ("store", "session") => failed(p.store().session(SessionId::generate()).await),
        ("store", "live_session") => failed(p.store().live_session(MachineId::generate()).await),
        ("store", "last_session") => failed(p.store().last_session(MachineId::generate()).await),
        ("store", "live_sessions") => failed(p.store().live_sessions().await),
        ("store", "sessions") => failed(p.store().sessions(&Default::default(), page).await),
        ("store", "session_counts") => failed(p.store().session_counts().await),
        ("store", "names") => failed(p.store().names(&[], &[]).await),
        ("store", "job") => failed(p.store().job(JobId::generate()).await),
        ("store", "live_jobs") => failed(p.store().live_jobs().await),
        ("store", "jobs") => failed(p.store().jobs(&Default::default(), page).await),
        ("store", "target") => failed(p.store().target(TargetId::generate()).await),
        ("store", "targets") => failed(p.store().targets().await),
        ("store", "seen_machine") => failed(p.store().seen_machine(mac).await),
        ("store", "seen") => failed(p.store().seen(page).await),
        ("store", "events") => failed(p.store().events(None, 1, None).await),
        ("store", "newest_events") => failed(p.store().newest_events(1, None).await),
        ("store", "audit") => failed(p.store().audit(page).await),
        ("store", "setting") => failed(p.store().setting("a").await),
        ("store", "prune") => failed(p.store().prune(SystemClock.now()).await),
        ("store", "health") => dead(p.store().health().await),
        other => panic!("no such call: {other:?}"),
    }
}

fn target() -> ggnet_core::ports::TargetSpec {
    ggnet_core::ports::TargetSpec {
        id: id(1),
        iqn: "iqn.2026-11.local.ggnet:t".parse().unwrap(),
        luns: vec![],
        access: ggnet_core::ports::Access::Shared,
    }
}

fn spec(dir: &Path) -> ConvertSpec {
    ConvertSpec {
        source: dir.join("a.raw"),
        format: ImageFormat::Raw,
        virtual_size: 1 << 20,
        sink: Sink::File(dir.join("b.raw")),
    }
}

fn quiet() -> Progress {
    Arc::new(|_| ())
}

/// Every method of every port that is a call into the world; a port's own source says which there are.
const METHODS: [(&str, &str, &[&str]); 7] = [
    (
        "target",
        include_str!("../../src/ports/target.rs"),
        &["name", "capabilities", "attach", "serving", "login"],
    ),
    ("writeback", include_str!("../../src/ports/writeback.rs"), &["name", "capabilities"]),
    ("image", include_str!("../../src/ports/image_store.rs"), &["name", "capabilities"]),
    (
        "dhcp",
        include_str!("../../src/ports/dhcp.rs"),
        // Of one entry alone: both are `apply`.
        &["name", "capabilities", "attach", "ensure", "remove"],
    ),
    ("boot_file", include_str!("../../src/ports/boot_file.rs"), &["name", "attach"]),
    ("image_converter", include_str!("../../src/ports/image_converter.rs"), &["name"]),
    ("store", include_str!("../../src/ports/store.rs"), &["name"]),
];

fn methods(source: &'static str) -> impl Iterator<Item = &'static str> {
    // Declarations of a trait stand four spaces in, and end without a body.
    let lines = source.lines().filter_map(|line| line.strip_prefix("    async fn "));
    lines.map(|line| line.split(['(', '<']).next().unwrap())
}

#[tokio::test(start_paused = true)]
async fn every_call_of_every_port_that_hangs_ends_and_health_names_it() {
    let mut tried = 0;
    for (port, source, not_calls) in METHODS {
        for method in methods(source).filter(|m| !not_calls.contains(m) && *m != "shutdown") {
            let m = made(&PortLimits::default());
            m.plan.add(Fault::on(&format!("{port}.{method}")).hangs());
            let e = tokio::time::timeout(FOR_EVER, call(&m.ports, port, method)).await;
            let e = e.unwrap_or_else(|_| panic!("{port}.{method} never ended")).expect("it hangs");
            assert_eq!(e.kind(), ErrorKind::Timeout, "{port}.{method}: {e}");
            assert!(e.to_string().contains(method), "{e}");
            tried += 1;
            if method == "health" {
                continue;
            }
            let health = match port {
                "target" => m.ports.target().health().await,
                "writeback" => m.ports.writeback().health().await,
                "image" => m.ports.images().health().await,
                "dhcp" => m.ports.dhcp().health().await,
                "boot_file" => m.ports.boot_files().health().await,
                "image_converter" => m.ports.converter().health().await,
                _ => m.ports.store().health().await,
            };
            let Health::Degraded(why) = health else { panic!("{port}.{method}: {health:?}") };
            assert!(why.contains(method) && why.contains("Look at"), "{why}");
            let labels = format!("port=\"{port}\",backend=\"memory\"");
            m.counted(&format!("port_calls_overdue{{{labels}}} 1"));
            m.counted(&format!("port_calls_in_flight{{{labels}}} 1"));
            m.counted(&format!("port_calls_total{{{labels},operation=\"{method}\",outcome=\"timeout\"}} 1"));
            tokio::time::timeout(FOR_EVER, m.ports.shutdown()).await.expect("the ports close");
        }
    }
    assert_eq!(tried, 66, "methods of ports; were some added?");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_hangs_when_it_closes_is_left_behind() {
    for (port, ..) in METHODS {
        let m = made(&PortLimits::default());
        m.plan.add(Fault::on(&format!("{port}.shutdown")).hangs());
        tokio::time::timeout(Duration::from_secs(60), m.ports.shutdown()).await.expect("the ports close");
        assert_eq!(m.plan.calls("store.shutdown"), 1, "the others are closed too");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_port_refuses_at_once_and_goes_on_when_its_calls_end() {
    let m = made(&every(|of| of.in_flight = 3));
    m.plan.add(Fault::on("dhcp.apply").first(3).is_delayed(Duration::from_secs(1000)));
    let removes = (1..=3).map(|n| {
        let dhcp = m.ports.dhcp().clone();
        tokio::spawn(async move { dhcp.remove(&id(n)).await })
    });
    for one in removes.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    }
    let begun = tokio::time::Instant::now();
    let e = m.ports.dhcp().list().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.message().contains("dhcp") && e.message().contains("3 calls"), "{e}");
    assert!(e.hint().unwrap().contains("Look at"), "{e}");
    assert!(begun.elapsed() <= 2 * OVERDUE_WAIT, "refused soon: {:?}", begun.elapsed());
    assert_eq!(m.plan.calls("dhcp.list"), 0, "and not begun");
    assert!(matches!(m.ports.dhcp().health().await, Health::Down(why) if why.contains("3 calls")));
    m.counted("port_calls_total{port=\"dhcp\",backend=\"memory\",operation=\"list\",outcome=\"refused\"} 1");
    // Other ports do not wait for it.
    m.ports.boot_files().list().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    m.ports.dhcp().list().await.expect("the calls have ended");
    assert_eq!(m.ports.dhcp().health().await, Health::Up);
    m.counted("port_calls_overdue{port=\"dhcp\",backend=\"memory\"} 0");
    m.counted("port_calls_in_flight{port=\"dhcp\",backend=\"memory\"} 0");
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_cap_wait_for_a_place_where_nothing_hangs() {
    let m = made(&every(|of| of.in_flight = 2));
    m.plan.add(Fault::on("dhcp.apply").is_delayed(Duration::from_secs(1)));
    let removes = (1..=20).map(|n| {
        let dhcp = m.ports.dhcp().clone();
        tokio::spawn(async move { dhcp.remove(&id(n)).await })
    });
    for one in removes.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(m.plan.calls("dhcp.apply"), 20);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_frees_no_place() {
    let m = made(&every(|of| of.in_flight = 1));
    m.plan.add(Fault::on("dhcp.list").nth(1).is_delayed(Duration::from_secs(5)));
    let gone = tokio::time::timeout(Duration::from_secs(1), m.ports.dhcp().list()).await;
    assert!(gone.is_err());
    m.counted("port_calls_in_flight{port=\"dhcp\",backend=\"memory\"} 1");
    let begun = tokio::time::Instant::now();
    m.ports.dhcp().list().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(4), "it waited for the place: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_changes_nothing_that_was_removed_since() {
    let m = made(&PortLimits::default());
    // An `ensure` that begins, hangs beyond its limit and then does its work.
    m.plan.add(Fault::on("dhcp.apply").nth(1).is_delayed(Duration::from_secs(500)));
    let dhcp = m.ports.dhcp();
    assert_eq!(dhcp.ensure(&host(1)).await.unwrap_err().kind(), ErrorKind::Timeout);
    let e = dhcp.remove(&id(1)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.message().contains("still busy with an earlier call"), "{e}");
    assert_eq!(m.plan.calls("dhcp.apply"), 1, "removed now, it would come back later");
    // Another object has nothing to do with it.
    dhcp.ensure(&host(2)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(500)).await;
    dhcp.remove(&id(1)).await.expect("the earlier call has ended");
    tokio::time::sleep(Duration::from_secs(500)).await;
    let left: Vec<_> = dhcp.list().await.unwrap().into_iter().map(|l| (l.id, l.completeness)).collect();
    assert_eq!(left, [(id(2), Completeness::Whole)]);
}

#[tokio::test(start_paused = true)]
async fn no_commit_begins_while_an_earlier_one_hangs() {
    let m = made(&PortLimits::default());
    m.plan.add(Fault::on("store.commit").nth(1).is_delayed(Duration::from_secs(100)));
    assert_eq!(m.ports.store().commit(Batch::new()).await.unwrap_err().kind(), ErrorKind::Timeout);
    let e = m.ports.store().commit(Batch::new()).await.unwrap_err();
    assert!(e.message().contains("still busy with an earlier call"), "{e}");
    assert_eq!(m.plan.calls("store.commit"), 1);
    m.ports.store().machine(MachineId::generate()).await.expect("reads go on");
    tokio::time::sleep(Duration::from_secs(100)).await;
    m.ports.store().commit(Batch::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_may_succeed_in_a_moment_is_tried_again_and_nothing_else() {
    let m = made(&PortLimits::default());
    let (dhcp, plan) = (m.ports.dhcp(), &m.plan);
    plan.add(Fault::on("dhcp.list").first(2).fails(ErrorKind::Unavailable));
    dhcp.list().await.expect("the third try");
    assert_eq!(plan.calls("dhcp.list"), 3);
    plan.clear().add(Fault::on("dhcp.list").fails(ErrorKind::Unavailable));
    assert_eq!(dhcp.list().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(plan.calls("dhcp.list"), 6);
    for (n, kind) in (7..).zip([ErrorKind::Busy, ErrorKind::Timeout, ErrorKind::Full, ErrorKind::Conflict]) {
        plan.clear().add(Fault::on("dhcp.list").fails(kind));
        assert_eq!(dhcp.list().await.unwrap_err().kind(), kind);
        assert_eq!(plan.calls("dhcp.list"), n, "{kind}");
    }
    plan.clear().add(Fault::any().fails(ErrorKind::Unavailable));
    m.ports.store().commit(Batch::new()).await.unwrap_err();
    assert_eq!(plan.calls("store.commit"), 1, "its events would be told twice");
}

#[tokio::test(start_paused = true)]
async fn a_conversion_may_take_hours_but_not_stand_still() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("a.raw")).unwrap().set_len(1 << 20).unwrap();
    let m = made(&every(|of| of.stall = Duration::from_secs(60)));
    m.plan.add(Fault::on("image_converter.convert").nth(1).hangs());
    let begun = tokio::time::Instant::now();
    let (spec, cancel) = (spec(dir.path()), CancellationToken::new());
    let e = m.ports.converter().convert(&spec, quiet(), cancel.clone()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(e.message().contains("no progress for 60s"), "{e}");
    assert!(begun.elapsed() >= Duration::from_secs(60));
    // Cancelled by its caller and deaf: its caller is let go all the same.
    let m = made(&PortLimits::default());
    m.plan.add(Fault::on("image_converter.convert").nth(1).hangs());
    cancel.cancel();
    let e = m.ports.converter().convert(&spec, quiet(), cancel).await.unwrap_err();
    assert!(e.message().contains("cancelled"), "{e}");
    m.ports
        .converter()
        .convert(&spec_of(dir.path(), "c.raw"), quiet(), CancellationToken::new())
        .await
        .unwrap();
}

fn spec_of(dir: &Path, destination: &str) -> ConvertSpec {
    ConvertSpec { sink: Sink::File(dir.join(destination)), ..spec(dir) }
}

/// Deaf to its cancellation, and done in the end.
struct Deaf;

#[async_trait::async_trait]
impl ImageConverter for Deaf {
    fn name(&self) -> &'static str {
        "deaf"
    }
    async fn probe(&self, _: &Path) -> Result<ImageProbe> {
        Err(Error::internal("not asked"))
    }
    fn sinks(&self) -> Vec<SinkForm> {
        vec![SinkForm::File, SinkForm::Blocks]
    }
    async fn convert(&self, spec: &ConvertSpec, _: Progress, _: CancellationToken) -> Result<Converted> {
        tokio::time::sleep(Duration::from_secs(500)).await;
        Ok(Converted { size_bytes: spec.virtual_size, sha256: "0".repeat(64) })
    }
    async fn health(&self) -> Health {
        Health::Up
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversion_that_was_given_up_keeps_its_sink_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let m = made_with(&every(|of| of.stall = Duration::from_secs(60)), Arc::new(Deaf));
    let (spec, running) =
        (spec(dir.path()), "port_calls_in_flight{port=\"image_converter\",backend=\"deaf\"}");
    let deaf = m.ports.converter().convert(&spec, quiet(), CancellationToken::new()).await;
    assert_eq!(deaf.unwrap_err().kind(), ErrorKind::Timeout);
    m.counted(&format!("{running} 1"));
    // Two that write to one sink would mix.
    let again = m.ports.converter().convert(&spec, quiet(), CancellationToken::new()).await;
    assert!(again.unwrap_err().message().contains("still busy with an earlier call"));
    let ended = format!("{running} 0");
    until("the call has ended", async || {
        tokio::time::sleep(Duration::from_secs(10)).await;
        m.metrics().lines().any(|l| l == ended)
    })
    .await;
}

/// Each call of a start, hung: the machine's lock is free again, another machine boots, and a shutdown ends.
#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_stops_neither_other_machines_nor_a_shutdown() {
    let steps = [
        "image.open",
        "writeback.ensure",
        "target.ensure",
        "boot_file.ensure",
        "dhcp.apply",
        "writeback.list",
        "target.list",
        "target.connections",
        "dhcp.list",
        "boot_file.list",
    ];
    for step in steps {
        let mut house = House::new();
        house.limits = every(|of| of.tries = 1);
        let p = house.open().await;
        let (image, _) = p.image("debian").await;
        let one = p.machine(1, image, |m| m.auto_start = false).await;
        let other = p.machine(2, image, |m| m.auto_start = false).await;
        let before = p.plan.calls(step);
        p.plan.add(Fault::on(step).nth(1).hangs());
        let (o, machine) = (p.o.clone(), one.id);
        let hung = tokio::spawn(async move {
            let round = o.reconcile();
            let start = o.sessions().start(StartRequest {
                machine,
                image: None,
                data_disks: vec![],
                by: Principal::embedder(),
            });
            tokio::join!(round, start)
        });
        until("the call hangs", async || p.plan.calls(step) > before).await;
        let started = tokio::time::timeout(FOR_EVER, p.start(&other)).await;
        let started = started.unwrap_or_else(|_| panic!("{step}: the other machine waits for ever"));
        if let Err(e) = started {
            panic!("{step}: the other machine does not start: {}", e.report());
        }
        let (report, _) = tokio::time::timeout(FOR_EVER, hung).await.expect("the call has a limit").unwrap();
        assert!(
            step.ends_with("ensure")
                || matches!(step, "dhcp.apply" | "image.open")
                || report.trouble.iter().any(|t| t.contains("did not end within")),
            "{step}: {report:?}"
        );
        // The machine's lock is free: it can be worked on again.
        let again = tokio::time::timeout(FOR_EVER, p.o.reconcile()).await;
        again.unwrap_or_else(|_| panic!("{step}: a reconcile waits for ever"));
        tokio::time::timeout(Duration::from_secs(90), p.o.shutdown())
            .await
            .unwrap_or_else(|_| panic!("{step}: the shutdown does not end"));
        let p = house.open().await;
        p.assert_whole(step).await;
        assert_eq!(p.session(&other).await.state, SessionState::Active, "{step}");
    }
}

/// A shutdown while everything hangs.
#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_though_every_port_hangs() {
    let mut house = House::new();
    house.config.reconcile_interval = Duration::from_secs(15);
    for what in [Fault::any(), Fault::on("writeback.ensure"), Fault::on("target.remove")] {
        ends_within_its_limits(&house, what).await;
    }
}

async fn ends_within_its_limits(house: &House, what: Matching) {
    let p = house.open().await;
    let (image, _) = p.image(&format!("i{}", p.all_events().await.len())).await;
    let n = u32::try_from(p.all_events().await.len()).unwrap();
    let machine = p.machine(n, image, |_| ()).await;
    p.plan.add(Fault::on("dhcp.apply").fails(ErrorKind::Full));
    p.plan.add(what.hangs());
    let (o, id) = (p.o.clone(), machine.id);
    let starting = tokio::spawn(async move {
        o.sessions()
            .start(StartRequest { machine: id, image: None, data_disks: vec![], by: Principal::embedder() })
            .await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // 15 s for work under way, then 20 + 12 + 5 + 11 + 11 + 8 s for the ports: below the 90 s of the unit.
    tokio::time::timeout(Duration::from_secs(83), p.o.shutdown()).await.expect("the shutdown ends");
    let e = starting.await.unwrap().unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{e}");
    let p = house.open().await;
    p.assert_whole("after the restart").await;
    assert!(p.files.list().await.is_ok() && p.store.machine(machine.id).await.unwrap().is_some());
}
