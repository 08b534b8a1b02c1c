//! Power cuts and kills on the simulated disk, compared with a model that knows the possible values of each sector.
//!
//! After a power cut a sector has its value of the last successful flush or any value written since; after a kill it has the last
//! acknowledged value or one in flight. Every round is generated from a seed, which a failure prints.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard},
};

use ggnet_core::testkit::tier::rounds;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::io::Errno;

use super::*;
use crate::{files::sim::Sim, layers::device::Device};

/// The values that one sector may have; a value stands for a sector filled with it.
#[derive(Debug)]
struct Values {
    /// Since the last flush; a read must return the last one.
    legal: Vec<u64>,
    /// Of failed requests: they may have taken effect or not.
    unacknowledged: Vec<u64>,
}

/// Bytes filled with a value.
fn filled(value: u64, len: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(len / 8)
}

/// The guest's knowledge.
struct Model {
    rng: StdRng,
    next: u64,
    /// The sectors that are checked: all of a small disk, selected ones of a large disk.
    windows: Vec<std::ops::Range<u64>>,
    sectors: BTreeMap<u64, Values>,
}

struct Request {
    offset: u64,
    len: u64,
    /// `None`: a discard.
    value: Option<u64>,
}

impl Model {
    fn new(seed: u64, windows: Vec<std::ops::Range<u64>>, base: impl Fn(u64) -> u64) -> Self {
        let sectors = windows
            .iter()
            .cloned()
            .flatten()
            .map(|s| (s, Values { legal: vec![base(s)], unacknowledged: Vec::new() }))
            .collect();
        Self { rng: StdRng::seed_from_u64(seed), next: 1, windows, sectors }
    }

    fn request(&mut self) -> Request {
        let window = self.windows[self.rng.random_range(0..self.windows.len())].clone();
        let from = self.rng.random_range(window.clone());
        let most = (window.end - from).min(if self.rng.random_bool(0.1) { 700 } else { 30 });
        let len = self.rng.random_range(1..=most);
        // Often whole blocks, so that not every request copies from below.
        let (from, to) = if self.rng.random_bool(0.4) {
            ((from & !7).max(window.start), ((from + len).next_multiple_of(8)).min(window.end))
        } else {
            (from, from + len)
        };
        let value = self.rng.random_bool(0.7).then(|| {
            self.next += 1;
            self.next
        });
        Request { offset: from * 512, len: (to - from) * 512, value }
    }

    fn note(&mut self, request: &Request, acknowledged: bool) {
        let value = request.value.unwrap_or(0);
        let range = request.offset / 512..(request.offset + request.len) / 512;
        for (_, v) in self.sectors.range_mut(range) {
            if acknowledged { v.legal.push(value) } else { v.unacknowledged.push(value) }
        }
    }

    /// The position of each sector's values at the start of a flush.
    fn mark(&self) -> Vec<usize> {
        self.sectors.values().map(|v| v.legal.len() - 1).collect()
    }

    fn flushed(&mut self, marks: &[usize]) {
        for (v, mark) in self.sectors.values_mut().zip(marks) {
            v.legal.drain(..mark);
            // A request that failed before the flush and has not taken effect by now cannot do so any more; one that has was read since.
        }
    }

    /// Compares the disk with its possible values, and records the actual ones.
    fn verify(&mut self, device: &Device, after_cut: bool, when: &str) {
        for window in &self.windows {
            let bytes =
                read(device, window.start * 512, usize::try_from((window.end - window.start) * 512).unwrap());
            for (sector, bytes) in window.clone().zip(bytes.chunks(512)) {
                let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(*bytes == filled(value, 512)[..], "{when}: sector {sector} is torn inside");
                let v = self.sectors.get_mut(&sector).unwrap();
                let allowed = if after_cut { &v.legal[..] } else { &v.legal[v.legal.len() - 1..] };
                assert!(
                    allowed.contains(&value) || v.unacknowledged.contains(&value),
                    "{when}: sector {sector} reads {value:#x}; allowed are {v:x?}"
                );
                if after_cut {
                    *v = Values { legal: vec![value], unacknowledged: Vec::new() };
                } else {
                    // The older values, and those in flight, may still return in a power cut before the next flush.
                    let in_flight = std::mem::take(&mut v.unacknowledged);
                    v.legal.extend(in_flight);
                    v.legal.push(value);
                }
            }
        }
    }
}

fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().unwrap()
}

/// One write, discard or read.
fn act(device: &Device, model: &Mutex<Model>, sim: &Sim, when: &str) {
    // Data in memory could still be read, but a dead process reads nothing.
    if sim.is_dead() {
        return;
    }
    let mut model = lock(model);
    let request = model.request();
    if model.rng.random_bool(0.2) {
        let len = usize::try_from(request.len).unwrap();
        let mut bytes = vec![0xEE; len];
        let got = if model.rng.random() {
            device.try_read_at(&mut bytes, request.offset)
        } else {
            device.read_at(&mut bytes, request.offset).map(|()| true)
        };
        if matches!(got, Ok(true)) {
            for (sector, bytes) in (request.offset / 512..).zip(bytes.chunks(512)) {
                let v = &model.sectors[&sector];
                assert_eq!(bytes[..8], v.legal[v.legal.len() - 1].to_le_bytes(), "{when}: sector {sector}");
            }
        } else {
            assert!(got.is_ok() || sim.is_dead(), "{when}: {got:?}");
        }
        return;
    }
    let done = match request.value {
        Some(value) => {
            let bytes = filled(value, usize::try_from(request.len).unwrap());
            match device.try_write_at(&bytes, request.offset) {
                Ok(false) => device.write_at(&bytes, request.offset),
                other => other.map(|_| ()),
            }
        }
        None => device.discard(request.offset, request.len),
    };
    assert!(done.is_ok() || sim.is_dead(), "{when}: {done:?}");
    model.note(&request, done.is_ok());
}

/// A flush; the guest continues during its sync.
fn flush(device: &Arc<Device>, model: &Arc<Mutex<Model>>, sim: &Sim, when: &str) {
    let marks = lock(model).mark();
    let (d, m, s, w) = (device.clone(), model.clone(), sim.clone(), when.to_owned());
    let busy = lock(model).rng.random_range(0..4);
    sim.during_sync(Some(Box::new(move || {
        for _ in 0..busy {
            act(&d, &m, &s, &w);
        }
    })));
    let flushed = device.flush();
    sim.during_sync(None);
    assert!(flushed.is_ok() || sim.is_dead(), "{when}: {flushed:?}");
    if flushed.is_ok() {
        lock(model).flushed(&marks);
    }
}

fn round(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let sim = Sim::new(seed);
    // Mostly small disks that are checked completely; sometimes one with several pages of map.
    let (sectors, windows) = if rng.random_bool(0.2) {
        let sectors = 2 * 16384 * 8 + rng.random_range(1..900);
        (
            sectors,
            vec![0..80, 512 * 8 - 40..512 * 8 + 40, 16384 * 8 - 60..16384 * 8 + 300, sectors - 90..sectors],
        )
    } else {
        let sectors = rng.random_range(1..700);
        (sectors, std::iter::once(0..sectors).collect())
    };
    let tag = |s: u64| 0xBA5E_0000_0000 | s;
    let content: Vec<_> = windows
        .iter()
        .map(|w| (w.start, w.clone().map(|s| filled(tag(s), 512)).collect::<Vec<_>>().concat()))
        .collect();
    let base = sim.sparse_base(sectors, &content);
    let model = Arc::new(Mutex::new(Model::new(seed, windows, tag)));
    let layer_folder = |boot: u64| {
        let instance = "0123abcd".parse().unwrap();
        LayerFolder::open(Arc::new(sim.clone()), "/w".into(), instance, format!("boot-{boot}")).unwrap()
    };
    let mut frozen: Vec<PathBuf> = Vec::new();
    let mut boot = 0;
    for life in 0..4 {
        let when = format!("seed {seed}, life {life}");
        let name = id(&format!("w{}", frozen.len()));
        let version = over(&sim, &base, &frozen).unwrap();
        let Ok(device) = layer_folder(boot).ensure(&name, &version) else { panic!("{when}: no disk") };
        lock(&model).verify(&device, true, &when);
        if rng.random_bool(0.2) {
            // Freeze: the flushed and released content becomes a layer.
            for _ in 0..5 {
                act(&device, &model, &sim, &when);
            }
            flush(&device, &model, &sim, &when);
            let marks = lock(&model).mark();
            drop(device);
            frozen.insert(0, layer_folder(boot).freeze(&name).unwrap().home);
            lock(&model).flushed(&marks);
            if rng.random() {
                // A frozen layer is complete without its hot map, and after a power cut.
                sim.cut();
                boot += 1;
            }
            continue;
        }
        sim.die_after(rng.random_range(0..120));
        while !sim.is_dead() {
            if rng.random_bool(0.12) {
                flush(&device, &model, &sim, &when);
            } else {
                act(&device, &model, &sim, &when);
            }
        }
        drop(device);
        // Several kills under the same kernel, then a power cut.
        for _ in 0..rng.random_range(0..3) {
            sim.restart();
            let when = format!("{when}, killed");
            let device = layer_folder(boot).ensure(&name, &version).unwrap();
            lock(&model).verify(&device, false, &when);
            sim.die_after(rng.random_range(0..40));
            while !sim.is_dead() {
                if rng.random_bool(0.3) {
                    flush(&device, &model, &sim, &when);
                } else {
                    act(&device, &model, &sim, &when);
                }
            }
        }
        sim.cut();
        boot += 1;
    }
    // The base was opened for reading only, which the simulated disk enforces.
}

#[test]
fn a_flushed_write_survives_a_power_cut_and_nothing_is_invented() {
    for seed in 0..rounds(1200, 20_000) {
        if let Err(panic) = std::panic::catch_unwind(|| round(seed)) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A disk of 64 numbered sectors with its layer folder.
fn small() -> (Sim, OpenImage) {
    let sim = Sim::new(7);
    let base = sim.base(64, 1);
    (sim, base)
}

fn open(sim: &Sim, base: &OpenImage, boot: &str) -> Arc<Device> {
    LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), boot.into())
        .unwrap()
        .ensure(&id("a"), base)
        .unwrap()
}

#[test]
fn a_failed_sync_is_an_error_of_the_medium_for_good() {
    let files = ["data", "durable.new", "durable"];
    // For any reported reason, including those that could be retried for another call.
    for (file, errno) in
        files.into_iter().flat_map(|f| [Errno::NOSPC, Errno::MFILE, Errno::NOMEM].map(|e| (f, e)))
    {
        let (sim, base) = small();
        let device = open(&sim, &base, "boot");
        if file == "durable" {
            device.write_at(&[5; 4096], 8192).unwrap();
            device.flush().unwrap();
            drop(device);
        }
        let device = open(&sim, &base, "boot");
        device.write_at(&[6; 4096], 0).unwrap();
        sim.fail_next_sync(file, errno);
        let e = device.flush().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::Other, "{file}, {errno}: not one that says try again: {e}");
        for _ in 0..2 {
            assert!(device.flush().is_err(), "{file}: it is never retried");
        }
        assert!(device.read_at(&mut [0; 512], 0).is_err());
        assert!(device.try_write_at(&[0; 512], 0).is_err());
        drop(device);
        let layer_folder =
            LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), "boot".into());
        let again = layer_folder.unwrap().ensure(&id("a"), &base);
        assert!(again.is_err(), "{file}: nor by the next process under this kernel");
        sim.cut();
        let mut sector = [0; 512];
        open(&sim, &base, "after").read_at(&mut sector, 8192).unwrap();
        assert_eq!(sector[0], if file == "durable" { 5 } else { numbered(64, 1)[8192] });
    }
}

#[test]
fn a_flush_that_is_short_of_descriptors_or_memory_is_tried_again() {
    // The first flush opens the durable map, and its folders to sync them.
    for (at, errno) in (0..4).flat_map(|at| [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(|e| (at, e))) {
        let (sim, base) = small();
        let device = open(&sim, &base, "boot");
        device.write_at(&[5; 512], 0).unwrap();
        sim.fail_an_open(at, errno);
        let e = device.flush().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ResourceBusy, "{at}, {errno}: {e}");
        device.write_at(&[6; 512], 512).unwrap();
        device.flush().unwrap();
        drop(device);
        sim.cut();
        let device = open(&sim, &base, "after");
        assert_eq!(read(&*device, 0, 1024), [[5; 512], [6; 512]].concat(), "{at}, {errno}");
    }
}

#[test]
fn a_call_that_is_short_of_memory_is_tried_again() {
    let (sim, base) = small();
    let device = open(&sim, &base, "boot");
    let calls: [&dyn Fn() -> io::Result<()>; 3] =
        [&|| device.write_at(&[5; 512], 0), &|| device.discard(4096, 4096), &|| {
            device.read_at(&mut [0; 512], 0)
        }];
    for (n, call) in calls.iter().enumerate() {
        sim.fail_next_io(Errno::NOMEM);
        assert_eq!(call().unwrap_err().kind(), io::ErrorKind::ResourceBusy, "{n}");
        call().unwrap();
        // The error of the disk is returned unchanged.
        sim.fail_next_io(Errno::IO);
        assert_ne!(call().map_err(|e| e.kind()), Err(io::ErrorKind::ResourceBusy), "{n}");
    }
    assert_eq!(read(&*device, 0, 512), [5; 512]);
    assert_eq!(read(&*device, 4096, 4096), [0; 4096]);
}

#[test]
fn without_space_nothing_is_recorded_and_the_write_can_be_tried_again() {
    // After each number of bytes: in the data, between data and map, and in the map.
    for room in (0..8200).step_by(8) {
        let (sim, base) = small();
        let device = open(&sim, &base, "boot");
        device.write_at(&[5; 512], 0).unwrap();
        sim.room(Some(room));
        match device.write_at(&[6; 1024], 8192 - 512) {
            Ok(()) => assert_eq!(room, 8192 + 8, "only what was written is a success"),
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::StorageFull);
                assert_eq!(read(&*device, 4096, 28672), numbered(64, 1)[4096..], "{room}");
                drop(device);
                let device = open(&sim, &base, "boot");
                assert_eq!(read(&*device, 4096, 28672), numbered(64, 1)[4096..], "{room}, killed");
                assert!(device.flush().is_err() || room > 4000, "there is no room for the durable map");
                sim.room(None);
                device.write_at(&[6; 1024], 8192 - 512).unwrap();
                device.flush().unwrap();
                drop(device);
                sim.cut();
                let device = open(&sim, &base, "after");
                assert_eq!(read(&*device, 8192 - 512, 1024), [6; 1024]);
                assert_eq!(read(&*device, 0, 512), [5; 512]);
                assert_eq!(read(&*device, 512, 7168), numbered(64, 1)[512..7680]);
            }
        }
    }
}

#[test]
fn a_flush_without_space_for_its_map_is_tried_again() {
    let (sim, base) = small();
    let device = open(&sim, &base, "boot");
    device.write_at(&[5; 512], 0).unwrap();
    device.flush().unwrap();
    device.discard(4096, 4096).unwrap();
    sim.room(Some(0));
    assert_eq!(device.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    sim.room(None);
    device.flush().unwrap();
    drop(device);
    sim.cut();
    let device = open(&sim, &base, "after");
    assert_eq!(read(&*device, 4096, 4096), [0; 4096], "a flushed discard brings nothing back");
}

#[test]
fn a_hot_map_made_anew_after_a_power_cut_is_whole_or_made_again() {
    let mut steps = 0;
    loop {
        let (sim, base) = small();
        let device = open(&sim, &base, "boot");
        device.write_at(&[5; 8192], 4096).unwrap();
        device.flush().unwrap();
        drop(device);
        sim.cut();
        let layer_folder = LayerFolder::open(
            Arc::new(sim.clone()),
            "/w".into(),
            "0123abcd".parse().unwrap(),
            "after".into(),
        );
        let layer_folder = layer_folder.unwrap();
        sim.die_after(steps);
        let lived = layer_folder.ensure(&id("a"), &base).is_ok();
        sim.restart();
        assert_eq!(read(&*open(&sim, &base, "after"), 4096, 8192), [5; 8192], "killed after {steps} steps");
        if lived {
            assert!(steps > 2, "making a hot map has steps");
            break;
        }
        steps += 1;
    }
}
