//! Boot answers under way: who asks for the same one waits for it, instead of asking once more.
//!
//! A script can be asked for by anybody, as often as they like, and every answer holds its machine's lock. So of one machine there is one
//! answer under way, whoever asks: a flood of requests costs a machine no more than a request at a time, and a login, a stop or an
//! operator waits for at most one answer.
//!
//! Invariant: an entry exists while its answer is made, also when the task that makes it dies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::boot_request::{Advertised, BootAnswer, BootRequest};
use crate::nouns::MacAddr;

/// What an answer depends on.
type Key = (MacAddr, Advertised, bool);
type Answers = HashMap<Key, watch::Receiver<Option<BootAnswer>>>;

/// The answers under way.
#[derive(Clone, Default)]
pub(super) struct Pending(Arc<Mutex<Answers>>);

/// What a request is to do.
pub(super) enum Turn {
    /// Make the answer, and give it to [`Making::done`].
    Make(Making),
    /// Wait for the one that is made.
    Wait(Waiting),
}

/// The duty to make an answer. Dropped without one, those who wait are told to come again.
pub(super) struct Making {
    pending: Pending,
    key: Key,
    answer: watch::Sender<Option<BootAnswer>>,
}

/// Somebody else makes the answer.
pub(super) struct Waiting(watch::Receiver<Option<BootAnswer>>);

impl Pending {
    pub(super) fn turn(&self, request: &BootRequest) -> Turn {
        let key = (request.mac, request.advertised.clone(), request.prepare);
        let mut answers = self.lock();
        if let Some(answer) = answers.get(&key) {
            return Turn::Wait(Waiting(answer.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        answers.insert(key.clone(), receiver);
        Turn::Make(Making { pending: self.clone(), key, answer: sender })
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        // Every step leaves a valid map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making {
    pub(super) fn done(self, answer: &BootAnswer) {
        self.answer.send_replace(Some(answer.clone()));
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.key);
    }
}

impl Waiting {
    /// The answer; none when its maker failed.
    pub(super) async fn answer(mut self) -> Option<BootAnswer> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nouns::Firmware;

    fn request(last: u8) -> BootRequest {
        BootRequest {
            request_id: None,
            mac: format!("52:54:00:00:00:{last:02x}").parse().unwrap(),
            firmware: Firmware::Unknown,
            peer: None,
            advertised: Advertised {
                portal: "192.0.2.1".parse().unwrap(),
                http_url: "http://192.0.2.1:8080".parse().unwrap(),
            },
            prepare: true,
        }
    }

    #[tokio::test]
    async fn one_makes_the_answer_and_all_who_ask_meanwhile_have_it() {
        let pending = Pending::default();
        let Turn::Make(making) = pending.turn(&request(1)) else { panic!("nobody asked before") };
        let waiting: Vec<_> = (0..100)
            .map(|_| match pending.turn(&request(1)) {
                Turn::Wait(waiting) => tokio::spawn(waiting.answer()),
                Turn::Make(_) => panic!("it is made already"),
            })
            .collect();
        assert!(matches!(pending.turn(&request(2)), Turn::Make(_)), "another machine's");
        let answer = BootAnswer::Retry(Duration::from_secs(7));
        making.done(&answer);
        for one in waiting {
            assert_eq!(one.await.unwrap(), Some(answer.clone()));
        }
        assert!(matches!(pending.turn(&request(1)), Turn::Make(_)), "the next one is made anew");
    }

    #[tokio::test]
    async fn who_waits_for_a_maker_that_fails_is_told() {
        let pending = Pending::default();
        let Turn::Make(making) = pending.turn(&request(1)) else { panic!("nobody asked before") };
        let Turn::Wait(waiting) = pending.turn(&request(1)) else { panic!("it is made already") };
        drop(making);
        assert_eq!(waiting.answer().await, None);
        assert!(pending.lock().is_empty());
    }
}
