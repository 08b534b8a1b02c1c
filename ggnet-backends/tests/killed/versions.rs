//! Killed at every call of an import, and of a publication, which freezes what a machine keeps and lets the image store adopt it: a version is
//! ready with its bytes or failed without any, and what was kept is in one place.

use ggnet_core::{
    nouns::{Machine, Principal, ResourceId, VersionState, WritebackPolicy},
    orchestrator::PublishRequest,
    ports::{Store as _, WritebackStore as _},
};

use crate::{
    POLLS,
    host::{Host, Process, imported, until, written},
};

const SALT: u8 = 17;

#[test]
fn killed_at_every_call_of_an_import() {
    let host = Host::new();
    let mut p = host.open();
    let (_, first) = p.image("debian", SALT);
    // A conversion has several steps: it is cut in the middle, too.
    for polls in [POLLS[0], POLLS[1], 3, POLLS[2]] {
        for step in 1_u64.. {
            let (name, salt) = (format!("image-{polls}-{step}"), u8::try_from(100 + step).unwrap());
            let (o, request) = (p.o.clone(), p.import_request(&name, salt));
            let died = p.dies(step, polls, async move {
                let Ok((_, version)) = o.images().import(request).await else { return };
                until("the import ends", async || o.images().import_progress(version.id).is_none()).await;
            });
            let why = p.last_call(step, polls);
            p = host.reopen(p, ());
            p.assert_whole(&why);
            assert!(p.version_bytes(first) == imported(SALT), "{why}: another version is damaged");
            let image = p.run(p.store.image_by_name(&name.parse().unwrap())).unwrap();
            let versions = image.iter().map(|image| p.run(p.store.versions(image.id)).unwrap());
            let version = versions.flatten().next();
            match version.as_ref().map(|version| version.state) {
                Some(VersionState::Ready) => {
                    let current = image.as_ref().and_then(|image| image.current);
                    assert_eq!(current, version.as_ref().map(|version| version.id), "{why}");
                    assert!(p.version_bytes(current.unwrap()) == imported(salt), "{why}: other bytes");
                }
                state => assert!(died, "{why}: {state:?}"),
            }
            if let Some(image) = image {
                p.run(p.o.images().delete(image.id, &Principal::embedder())).unwrap();
                p.assert_whole(&format!("{why}, and deleted"));
            }
            if !died {
                assert!(step > 8, "an import has more calls than {step}");
                break;
            }
        }
    }
    host.end(p, ());
}

/// Makes the image's first version current and deletes the others.
fn forget_published(p: &Process, machine: &Machine) {
    let (image, by) = (machine.image.unwrap(), Principal::embedder());
    p.run(async {
        let versions = p.store.versions(image).await.unwrap();
        p.o.images().set_current(image, versions[0].id, &by).await.unwrap();
        for version in versions.iter().skip(1).rev() {
            p.o.images().delete_version(version.id, &by).await.unwrap();
        }
    });
}

#[test]
fn killed_at_every_call_of_a_publication() {
    let host = Host::new();
    let mut p = host.open();
    let (image, _) = p.image("debian", SALT);
    let machine = p.machine(1, image, WritebackPolicy::Keep, true);
    // It boots the current version, and keeps nothing.
    let other = p.machine(2, image, WritebackPolicy::Discard, true);
    let clean = imported(SALT);
    for polls in POLLS {
        for step in 1_u64.. {
            let salt = u8::try_from(100 + step).unwrap();
            let disk = p.power_on(&machine);
            p.write(&disk, salt);
            p.stop(&machine);
            drop(disk);
            p.be_quiet();
            let request = PublishRequest {
                machine: machine.id,
                comment: String::new(),
                make_current: true,
                by: Principal::embedder(),
            };
            let o = p.o.clone();
            let died = p.dies(step, polls, async move { o.images().publish(request).await });
            let why = p.last_call(step, polls);
            p = host.reopen(p, ());
            p.assert_whole(&why);
            let kept = p.run(p.writebacks.get(&ResourceId::machine(machine.id))).unwrap().is_some();
            let versions = p.run(p.store.versions(image)).unwrap();
            // In one place, whole: as a version, or kept as before.
            match versions.get(1).map(|version| (version.state, version.id)) {
                Some((VersionState::Ready, id)) => {
                    assert!(!kept, "{why}: it is in two places");
                    let lost = p.version_bytes(id) != written(&clean, salt);
                    assert!(!lost, "{why}: what was kept is lost");
                    let current = p.run(p.store.image(image)).unwrap().unwrap().current;
                    let booted = if current == Some(id) { written(&clean, salt) } else { clean.clone() };
                    p.assert_boots(&other, &booted, &why);
                }
                state => {
                    assert!(kept && died, "{why}: it is in no place, {state:?}");
                    p.assert_boots(&machine, &written(&clean, salt), &why);
                    p.assert_boots(&other, &clean, &why);
                }
            }
            forget_published(&p, &machine);
            p.assert_whole(&format!("{why}, and forgotten"));
            if !died {
                assert!(step > 10, "a publication has more calls than {step}");
                break;
            }
        }
    }
    host.end(p, ());
}
