//! The rule for the answer to a machine, as a table.

use ggnet_core::{
    nouns::{ImageId, MachineState, Session, SessionState},
    orchestrator::{Decision, Declined, decide},
};

use crate::site::{Site, pc};

#[tokio::test]
async fn every_case() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let session = p.start(&machine).await.unwrap().session;
    let with = |state| Session { state, ..session.clone() };
    let image = Some(ImageId::generate());

    assert_eq!(decide(None, None), Decision::Unknown);
    for state in [MachineState::Inactive, MachineState::Maintenance, MachineState::Retired] {
        let mut machine = pc(1, image);
        machine.state = state;
        for session in [None, Some(with(SessionState::Active)), Some(with(SessionState::Starting))] {
            let declined = Declined::NotActive(state);
            assert!(declined.reason().contains(state.as_str()));
            assert_eq!(decide(Some(&machine), session.as_ref()), Decision::Declined(declined));
        }
    }
    let over = [None, Some(with(SessionState::Stopped)), Some(with(SessionState::Failed))];
    for (image, auto_start) in [(None, false), (None, true), (image, false), (image, true)] {
        let mut machine = pc(1, image);
        machine.auto_start = auto_start;
        let idle = match (image, auto_start) {
            (None, _) => Decision::Declined(Declined::NoImage),
            (Some(_), false) => Decision::Declined(Declined::NoAutoStart),
            (Some(_), true) => Decision::Start,
        };
        for session in &over {
            assert_eq!(decide(Some(&machine), session.as_ref()), idle);
        }
        // A live session continues, in any state of the machine.
        for (state, decision) in [
            (SessionState::Starting, Decision::Wait),
            (SessionState::Stopping, Decision::Wait),
            (SessionState::Active, Decision::Continue),
        ] {
            assert_eq!(decide(Some(&machine), Some(&with(state))), decision);
        }
    }
}
