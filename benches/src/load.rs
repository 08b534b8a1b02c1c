//! A load of iSCSI commands: many clients, each a thread with one session and a fixed number of commands in flight.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ggnet_iscsi::initiator::Transfer;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use crate::wire::{Connection, Direction};

/// What each client does.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Read or write.
    pub direction: Direction,
    /// Bytes of a command.
    pub bytes: usize,
    /// Commands in flight.
    pub depth: u32,
    /// In which order.
    pub order: Order,
    /// Bytes of its disk that a client touches.
    pub span: u64,
    /// How long; with [`Order::Once`] it may end earlier.
    pub time: Duration,
}

/// The order of a client's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One after the other, round and round.
    Sequential,
    /// Any, again and again.
    Random,
    /// Scattered, each once.
    Once,
}

/// Where a client's span is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its first byte.
    pub start: u64,
    /// For the random numbers.
    pub seed: u64,
}

/// What a load did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Commands that ended with GOOD.
    pub commands: u64,
    /// From the first command to the last answer.
    pub took: Duration,
    /// Every command's time, sorted, in microseconds.
    pub latencies: Vec<u32>,
}

impl Outcome {
    /// Commands a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.commands as f64 / self.took.as_secs_f64()
    }

    /// The time within which 99 of 100 commands ended, in microseconds.
    #[must_use]
    pub fn p99(&self) -> f64 {
        let rank = (self.latencies.len() * 99).div_ceil(100).max(1) - 1;
        self.latencies.get(rank).copied().map_or(f64::NAN, f64::from)
    }
}

/// Runs a load over these sessions, all at once.
///
/// # Errors
/// A connection broke or a command failed.
pub fn run(connections: Vec<(Connection, Place)>, load: Load) -> Result<Outcome> {
    let payload = crate::noise(load.bytes);
    let start = Barrier::new(connections.len());
    let (start, payload) = (&start, payload.as_slice());
    let done = std::thread::scope(|scope| {
        let clients: Vec<_> = connections
            .into_iter()
            .map(|(connection, place)| {
                scope.spawn(move || {
                    start.wait();
                    client(connection, place, load, payload)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|c| c.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let from = done.iter().map(|d| d.from).min().context("no client")?;
    let to = done.iter().map(|d| d.to).max().context("no client")?;
    let mut latencies: Vec<u32> = done.into_iter().flat_map(|d| d.latencies).collect();
    latencies.sort_unstable();
    Ok(Outcome { commands: latencies.len() as u64, took: to - from, latencies })
}

struct Done {
    from: Instant,
    to: Instant,
    latencies: Vec<u32>,
}

fn client(mut connection: Connection, place: Place, load: Load, payload: &[u8]) -> Result<Done> {
    let slots = load.span / load.bytes as u64;
    let mut addresses =
        Addresses { order: load.order, slots, next: 0, rng: SmallRng::seed_from_u64(place.seed) };
    let transfer = match load.direction {
        Direction::Read => Transfer::In(load.bytes),
        Direction::Write => Transfer::Out(payload),
    };
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut sent = vec![Instant::now(); load.depth as usize];
    let from = Instant::now();
    let end = from + load.time;
    let mut free: Vec<u32> = (0..load.depth).collect();
    let mut open = 0_usize;
    let mut more = true;
    let mut now = from;
    loop {
        while more && let Some(tag) = free.pop() {
            let Some(slot) = addresses.next() else {
                more = false;
                break;
            };
            let lba = u32::try_from((place.start + slot * load.bytes as u64) / 512)?;
            sent[tag as usize] = now;
            connection.command(tag, load.direction, lba, transfer)?;
            open += 1;
        }
        connection.send()?;
        if open == 0 {
            return Ok(Done { from, to: now, latencies });
        }
        let before = free.len();
        connection.receive(payload, |tag| free.push(tag))?;
        now = Instant::now();
        for tag in &free[before..] {
            let took = now - sent[*tag as usize];
            latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        open -= free.len() - before;
        more &= now < end;
    }
}

/// Gives out slot numbers in an order.
struct Addresses {
    order: Order,
    slots: u64,
    next: u64,
    rng: SmallRng,
}

impl Addresses {
    fn next(&mut self) -> Option<u64> {
        match self.order {
            Order::Random => Some(self.rng.random_range(0..self.slots)),
            Order::Sequential => {
                let at = self.next % self.slots;
                self.next += 1;
                Some(at)
            }
            Order::Once => {
                if self.next == self.slots {
                    return None;
                }
                // An odd factor and a power of two have no common divisor: each slot comes once.
                let at = self.next.wrapping_mul(0x9e37_79b1) & (self.slots - 1);
                self.next += 1;
                Some(at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_addresses_come_once_each() {
        let mut addresses =
            Addresses { order: Order::Once, slots: 1024, next: 0, rng: SmallRng::seed_from_u64(1) };
        let mut all: Vec<u64> = std::iter::from_fn(|| addresses.next()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..1024).collect::<Vec<_>>());
    }
}
