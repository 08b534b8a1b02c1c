//! Kills and power cuts at every step: a version is sealed or not, and an adopted disk is complete in exactly one place.

use std::{io::IoSlice, path::Path};

use ggnet_core::{
    ErrorKind,
    ports::{Completeness, Removal, Sink},
};
use rustix::io::Errno;

use super::*;
use crate::{
    files::{
        Files as _, Open,
        sim::{Sim, numbered},
    },
    writeback::layers::{Layers, LayersConfig},
};

const IMAGES: &str = "/i";

/// A disk with the folders `/i` for images and `/w` for writebacks.
fn disk(seed: u64) -> Sim {
    let sim = Sim::new(seed);
    sim.create_dir(Path::new(IMAGES)).unwrap();
    sim.open_dir(Path::new("/")).unwrap().sync_all().unwrap();
    sim
}

fn images(sim: &Sim) -> ImageFiles {
    ImageFiles::open_over(Arc::new(sim.clone()), IMAGES.into())
}

fn layers(sim: &Sim, boot: &str) -> Layers {
    let config = LayersConfig { dir: "/w".into(), instance: "0123abcd".parse().unwrap() };
    Layers::open_over(Arc::new(sim.clone()), config, boot).unwrap()
}

/// An existing version, as in a current data folder.
fn imported(sim: &Sim) -> ImageVersionId {
    let id = ImageVersionId::generate();
    let path = Path::new(IMAGES).join(format!("{id}.raw"));
    sim.raw(&path, SECTORS, &[(0, numbered(SECTORS, 1))]);
    id
}

/// Ends a process, by a kill or by a power cut.
fn end(sim: &Sim, power: bool) -> &'static str {
    if power {
        sim.cut();
        return "boot-2";
    }
    sim.restart();
    "boot-1"
}

/// The work of a converter.
fn convert(sim: &Sim, sink: &Sink, salt: u64) -> std::io::Result<()> {
    let Sink::File(path) = sink else { panic!("no file but {sink:?}") };
    let file = sim.open(path, Open::Create)?;
    file.set_size(SIZE)?;
    file.write_at(&mut [IoSlice::new(&numbered(SECTORS, salt))], 0)
}

async fn import(sim: &Sim, images: &ImageFiles, spec: &ImageSpec) -> bool {
    let Ok(sink) = images.draft(spec).await else { return false };
    convert(sim, &sink, 1).is_ok() && images.seal(spec).await.is_ok()
}

#[tokio::test]
async fn an_import_cut_short_anywhere_is_a_version_or_is_not() {
    for (power, seed) in [(false, 0), (true, 0), (true, 1000), (true, 2000)] {
        let mut steps = 0;
        loop {
            let sim = disk(seed + steps);
            let spec = image();
            sim.die_after(steps);
            let sealed = import(&sim, &images(&sim), &spec).await;
            end(&sim, power);
            let when = format!("died after {steps} steps, power cut: {power}, seed {seed}");
            let images = images(&sim);
            let listed = images.get(spec.id).await.unwrap();
            assert_eq!(images.list().await.unwrap(), listed.iter().cloned().collect::<Vec<_>>(), "{when}");
            match listed.map(|listed| listed.completeness) {
                Some(Completeness::Whole) => {
                    assert!(bytes(&images, spec.id).await == numbered(SECTORS, 1), "{when}");
                    images.seal(&spec).await.unwrap();
                }
                other => {
                    assert!(!sealed, "{when}: {other:?}");
                    let e = images.open(spec.id, DiskForm::Blocks).await.unwrap_err();
                    assert_eq!(e.kind(), ErrorKind::NotFound, "{when}: {e}");
                    assert!(import(&sim, &images, &spec).await, "{when}");
                    assert!(bytes(&images, spec.id).await == numbered(SECTORS, 1), "{when}");
                }
            }
            images.remove(spec.id, Removal::Force).await.unwrap();
            assert!(images.list().await.unwrap().is_empty(), "{when}");
            if sealed {
                assert!(steps > 4, "an import has steps");
                break;
            }
            steps += 1;
        }
    }
}

#[tokio::test]
async fn an_adopted_disk_is_in_one_place_and_whole_wherever_it_is_cut_short() {
    for (power, seed) in [(false, 0), (true, 0), (true, 1000), (true, 2000), (true, 3000)] {
        let mut steps = 0;
        loop {
            let sim = disk(seed + steps);
            let below = imported(&sim);
            let spec = image();
            let adopted = {
                let (images, store) = (images(&sim), layers(&sim, "boot-1"));
                written(&store, &images.open(below, DiskForm::Blocks).await.unwrap()).await;
                let frozen = store.freeze(&id("a")).await.unwrap();
                sim.die_after(steps);
                images.adopt(&spec, &frozen).await.is_ok()
            };
            let boot = end(&sim, power);
            let when = format!("died after {steps} steps, power cut: {power}, seed {seed}");
            let (images, store) = (images(&sim), layers(&sim, boot));
            let base = images.open(below, DiskForm::Blocks).await.unwrap();
            match (images.get(spec.id).await.unwrap(), store.get(&id("a")).await.unwrap()) {
                (Some(version), None) => {
                    assert_eq!(version.completeness, Completeness::Whole, "{when}");
                    assert_eq!((version.size_bytes, version.parent), (SIZE, Some(below)), "{when}");
                }
                (None, Some(writeback)) => {
                    assert!(!adopted, "{when}");
                    assert_eq!(writeback.completeness, Completeness::Whole, "{when}");
                    let disk = blocks(store.ensure(&over("a", &base), &base).await.unwrap());
                    assert!(all(&*disk) == with_write(numbered(SECTORS, 1)), "{when}");
                    drop(disk);
                    let frozen = store.freeze(&id("a")).await.unwrap();
                    images.adopt(&spec, &frozen).await.unwrap();
                }
                other => panic!("{when}: {other:?}"),
            }
            assert!(bytes(&images, spec.id).await == with_write(numbered(SECTORS, 1)), "{when}");
            assert!(store.list().await.unwrap().is_empty(), "{when}");
            if adopted {
                assert!(steps > 2, "an adoption has steps");
                break;
            }
            steps += 1;
        }
    }
}

#[tokio::test]
async fn an_adoption_that_was_cut_short_after_its_rename_is_ended_by_a_second_one() {
    let sim = disk(1);
    let below = imported(&sim);
    let (images, store) = (images(&sim), layers(&sim, "boot-1"));
    written(&store, &images.open(below, DiskForm::Blocks).await.unwrap()).await;
    let (spec, frozen) = (image(), store.freeze(&id("a")).await.unwrap());
    // The rename is the first change; the following sync fails.
    sim.die_after(1);
    images.adopt(&spec, &frozen).await.unwrap_err();
    sim.restart();
    let first = images.adopt(&spec, &frozen).await.unwrap();
    assert_eq!(images.adopt(&spec, &frozen).await.unwrap(), first);
    sim.cut();
    let images = ImageFiles::open_over(Arc::new(sim.clone()), IMAGES.into());
    assert!(bytes(&images, spec.id).await == with_write(numbered(SECTORS, 1)));
}

#[tokio::test]
async fn an_adoption_that_the_next_process_finds_survives_a_power_cut_after_that() {
    for seed in 0..8 {
        let sim = disk(seed);
        let (below, spec) = (imported(&sim), image());
        {
            let (images, store) = (images(&sim), layers(&sim, "boot-1"));
            written(&store, &images.open(below, DiskForm::Blocks).await.unwrap()).await;
            let frozen = store.freeze(&id("a")).await.unwrap();
            // Killed between the rename and its sync.
            sim.die_after(1);
            images.adopt(&spec, &frozen).await.unwrap_err();
        }
        sim.restart();
        let found = images(&sim);
        found.inner.versions.settle_names().unwrap();
        assert_eq!(found.get(spec.id).await.unwrap().unwrap().completeness, Completeness::Whole);
        // Another part may have recorded it as ready by now.
        sim.cut();
        assert!(bytes(&images(&sim), spec.id).await == with_write(numbered(SECTORS, 1)), "seed {seed}");
    }
}

#[tokio::test]
async fn a_disk_on_another_file_system_is_not_adopted_and_stays() {
    let sim = disk(1);
    let below = imported(&sim);
    let (images, store) = (images(&sim), layers(&sim, "boot-1"));
    let base = images.open(below, DiskForm::Blocks).await.unwrap();
    written(&store, &base).await;
    let (spec, frozen) = (image(), store.freeze(&id("a")).await.unwrap());
    sim.fail_next_rename(Errno::XDEV);
    let e = images.adopt(&spec, &frozen).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.hint().is_some(), "{}", e.report());
    drop(frozen);
    let disk = blocks(store.ensure(&over("a", &base), &base).await.unwrap());
    assert!(all(&*disk) == with_write(numbered(SECTORS, 1)));
    assert_eq!(images.get(spec.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_removal_of_a_layer_that_was_cut_short_is_partial_and_ended_by_the_next() {
    for power in [false, true] {
        let mut steps = 0;
        loop {
            let sim = disk(steps);
            let below = imported(&sim);
            let spec = image();
            let removed = {
                let (images, store) = (images(&sim), layers(&sim, "boot-1"));
                written(&store, &images.open(below, DiskForm::Blocks).await.unwrap()).await;
                let frozen = store.freeze(&id("a")).await.unwrap();
                images.adopt(&spec, &frozen).await.unwrap();
                sim.die_after(steps);
                images.remove(spec.id, Removal::Force).await.is_ok()
            };
            end(&sim, power);
            let (images, when) = (images(&sim), format!("died after {steps} steps, power cut: {power}"));
            if let Some(listed) = images.get(spec.id).await.unwrap()
                && listed.completeness == Completeness::Whole
            {
                assert!(bytes(&images, spec.id).await == with_write(numbered(SECTORS, 1)), "{when}");
            }
            images.remove(spec.id, Removal::Force).await.unwrap();
            assert_eq!(images.get(spec.id).await.unwrap(), None, "{when}");
            images.remove(below, Removal::IfIdle).await.unwrap();
            if removed {
                assert!(steps > 2, "a removal has steps");
                break;
            }
            steps += 1;
        }
    }
}
