//! Killed at every call of a start, of a stop, and of a reboot, which prepares a generation and commits it: the machine is where it was or
//! where it was going, and what it had written is on its disk when it keeps it.

use ggnet_core::{
    nouns::{Machine, SessionState, WritebackPolicy},
    orchestrator::BootAnswer,
    ports::Store as _,
};

use crate::{
    POLLS,
    host::{Host, Process, boot_request, imported, peer, start_request, stop_request, written},
};

const POLICIES: [WritebackPolicy; 2] = [WritebackPolicy::Discard, WritebackPolicy::Keep];

/// Of the image's version.
const SALT: u8 = 17;

fn prepare(host: &Host, policy: WritebackPolicy) -> (Process, Machine) {
    let p = host.open();
    let (image, _) = p.image("debian", SALT);
    let machine = p.machine(1, image, policy, true);
    (p, machine)
}

/// Kills the server at each call in each way, until `round` says that its work ended before that call. Each round writes other bytes than the
/// one before.
fn at_every_call(
    policy: WritebackPolicy,
    least: u64,
    mut round: impl FnMut(&Host, Process, &Machine, Round) -> (Process, bool),
) {
    let host = Host::new();
    let (mut p, machine) = prepare(&host, policy);
    let mut salt = 100;
    for polls in POLLS {
        for step in 1.. {
            salt = if salt == 250 { 100 } else { salt + 1 };
            let (next, died) = round(&host, p, &machine, Round { step, polls, salt });
            p = next;
            if !died {
                assert!(step > least, "{policy:?}: it has more calls than {step}");
                break;
            }
        }
    }
    host.end(p, ());
}

struct Round {
    step: u64,
    polls: usize,
    salt: u8,
}

#[test]
fn killed_at_every_call_of_a_start() {
    for policy in POLICIES {
        let keeps = policy == WritebackPolicy::Keep;
        at_every_call(policy, 8, |host, p, machine, Round { step, polls, salt }| {
            // What an earlier session wrote must survive.
            let disk = p.power_on(machine);
            p.write(&disk, salt);
            p.stop(machine);
            drop(disk);
            p.be_quiet();
            let o = p.o.clone();
            let died = p.dies(step, polls, async move { o.sessions().start(start_request(machine)).await });
            let why = format!("{policy:?}: {}", p.last_call(step, polls));
            let p = host.reopen(p, ());
            p.assert_whole(&why);
            let state = p.last_session(machine).unwrap().state;
            let ends = [SessionState::Active, SessionState::Failed, SessionState::Stopped];
            assert!(ends.contains(&state), "{why}: {state:?}");
            let clean = imported(SALT);
            p.assert_boots(machine, &if keeps { written(&clean, salt) } else { clean }, &why);
            (p, died)
        });
    }
}

/// Starts at once share transactions of the store. Killed at every fifth call, at different calls for each way to die.
#[test]
fn killed_at_calls_of_starts_at_once() {
    let host = Host::new();
    let (mut p, first) = prepare(&host, WritebackPolicy::Discard);
    let other = |n| p.machine(n, first.image.unwrap(), WritebackPolicy::Discard, true);
    let machines = [other(2), other(3), first];
    for (way, polls) in (1..).zip(POLLS) {
        for step in (way..).step_by(5) {
            p.be_quiet();
            let starts = machines.clone().map(|machine| {
                let o = p.o.clone();
                async move { o.sessions().start(start_request(&machine)).await }
            });
            let died = p.dies(step, polls, futures_util::future::join_all(starts));
            let why = p.last_call(step, polls);
            p = host.reopen(p, ());
            p.assert_whole(&why);
            for machine in &machines {
                if let Some(last) = p.last_session(machine) {
                    let ends = [SessionState::Active, SessionState::Failed, SessionState::Stopped];
                    assert!(ends.contains(&last.state), "{why}: {:?}", last.state);
                }
                p.assert_boots(machine, &imported(SALT), &why);
            }
            if !died {
                assert!(step > 24, "three starts have more calls than {step}");
                break;
            }
        }
    }
    host.end(p, ());
}

#[test]
fn killed_at_every_call_of_a_stop() {
    for policy in POLICIES {
        let keeps = policy == WritebackPolicy::Keep;
        at_every_call(policy, 6, |host, p, machine, Round { step, polls, salt }| {
            let clean = imported(SALT);
            let disk = p.power_on(machine);
            p.write(&disk, salt);
            // A prepared generation must go, too.
            p.script(machine);
            p.be_quiet();
            let session = p.session(machine);
            let (o, request) = (p.o.clone(), stop_request(&session));
            let died = p.dies(step, polls, async move { o.sessions().stop(request).await });
            let why = format!("{policy:?}: {}", p.last_call(step, polls));
            let p = host.reopen(p, disk);
            p.assert_whole(&why);
            let last = p.last_session(machine).unwrap();
            match last.state {
                // Killed before the stop was recorded: its machine goes on where it was.
                SessionState::Active => {
                    assert_eq!(last, session, "{why}");
                    let disk = p.login(&last.target(&last.current), machine).unwrap();
                    let lost = p.read(&disk) != written(&clean, salt);
                    assert!(!lost, "{why}: an acknowledged write is lost");
                    p.stop(machine);
                }
                state => assert_eq!(state, SessionState::Stopped, "{why}"),
            }
            p.assert_boots(machine, &if keeps { written(&clean, salt) } else { clean }, &why);
            (p, died)
        });
    }
}

/// What a machine does when it reboots. Killed, it gets no answer, or is told to come again.
async fn reboot(p: &Process, machine: &Machine) {
    let Ok(BootAnswer::Script(_)) = p.o.sessions().boot(boot_request(machine)).await else { return };
    // Not through the fault plan: a machine reads this in its script.
    let Some(session) = p.store.live_session(machine.id).await.unwrap() else { return };
    let Some(next) = &session.next else { return };
    let _ = p.targets.login(&session.target(next), &session.initiator, peer()).await;
}

#[test]
fn killed_at_every_call_of_preparing_and_committing_a_generation() {
    for policy in POLICIES {
        let keeps = policy == WritebackPolicy::Keep;
        at_every_call(policy, 6, |host, p, machine, Round { step, polls, salt }| {
            let clean = imported(SALT);
            let disk = p.power_on(machine);
            p.write(&disk, salt);
            p.be_quiet();
            let before = p.session(machine);
            let old = before.target(&before.current);
            let died = p.dies(step, polls, reboot(&p, machine));
            let why = format!("{policy:?}: {}", p.last_call(step, polls));
            let p = host.reopen(p, disk);
            p.assert_whole(&why);
            let after = p.session(machine);
            assert_eq!(after.id, before.id, "{why}: a live session is lost");
            let rebooted = if keeps { written(&clean, salt) } else { clean.clone() };
            if after.current.number == before.current.number {
                // Not committed: the machine that still runs has its disk.
                let disk = p.login(&old, machine).unwrap();
                let lost = p.read(&disk) != written(&clean, salt);
                assert!(!lost, "{why}: an acknowledged write is lost");
            } else {
                assert!(p.login(&old, machine).is_err(), "{why}: the old generation is over");
                let disk = p.login(&after.target(&after.current), machine).unwrap();
                assert!(p.read(&disk) == rebooted, "{why}: it rebooted to another disk");
            }
            p.assert_boots(machine, &rebooted, &why);
            (p, died)
        });
    }
}
