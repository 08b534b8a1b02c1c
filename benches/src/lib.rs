//! What the benches share: where they ran, quantiles, and a process's memory and CPU time as the kernel tells them.
//!
//! Benches report and never judge: no time is asserted anywhere.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub mod bench_server;
pub mod contender;
pub mod floor;
pub mod load;
pub mod pairs;
pub mod wire;

/// The name under which the load generators log in.
pub const INITIATOR: &str = "iqn.2024-01.org.example:load";

/// Where and how the numbers came about; goes above every table.
#[must_use]
pub fn heading(command: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, n)| n);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().to_owned();
    let profile = if cfg!(debug_assertions) { "debug (NOT optimised)" } else { "release" };
    format!(
        "command:  {command}\nmachine:  {cores} cores, {cpu}; {memory}\nkernel:   {}\nload:     {} (1, 5, 15 min; running/all)\n\
         version:  ggnet {} ({profile})\n",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Times of the same thing, done often.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Sorts them.
    #[must_use]
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The smallest that is not exceeded by this share of all, in per cent; zero when there are none.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(rank).copied().unwrap_or_default()
    }

    /// One row of a table: how many, and their spread.
    #[must_use]
    pub fn row(&self, name: &str, beside: &str) -> String {
        let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1e3);
        format!(
            "| {name} | {} | {} | {} | {} | {} | {beside} |",
            self.0.len(),
            ms(self.percentile(0)),
            ms(self.percentile(50)),
            ms(self.percentile(99)),
            ms(self.percentile(100)),
        )
    }
}

/// The head of a table of [`Times::row`]s.
pub const TABLE: &str =
    "| what (ms) | n | min | p50 | p99 | max | floor, aim |\n|---|---|---|---|---|---|---|";

/// A process's memory.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All that is resident, file pages included, in KiB.
    pub rss_kib: u64,
    /// What is its own (RssAnon), in KiB.
    pub anon_kib: u64,
}

/// A process's memory, from `/proc/<pid>/status`.
///
/// # Errors
/// There is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let get = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| key.to_owned())?;
        anyhow::Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Memory { rss_kib: get("VmRSS:")?, anon_kib: get("RssAnon:")? })
}

/// The CPU time that a process has used, user and system.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    // Fields 14 and 15 of proc_pid_stat(5): its own.
    stat_ticks(pid, 14, 2)
}

/// The CPU time of this process and of its children that have ended.
///
/// # Errors
/// `/proc` is not there.
pub fn cpu_time_of_us() -> Result<Duration> {
    // Fields 14 to 17 of proc_pid_stat(5): its own, and that of children that were waited for.
    stat_ticks(std::process::id(), 14, 4)
}

/// The time that all CPUs together were not idle, from `/proc/stat`: also what the kernel does for nobody in particular.
///
/// # Errors
/// `/proc` is not there.
pub fn busy_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = first.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, (idle, iowait,) irq, softirq.
    Ok(ticks_time([0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum()))
}

fn stat_ticks(pid: u32, field: usize, count: usize) -> Result<Duration> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("stat")?;
    // Field 3 is the first of the rest.
    let ticks: Vec<u64> =
        rest.split(' ').skip(field - 3).take(count).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks_time(ticks.iter().sum()))
}

/// The kernel tells times to people in ticks of 10 ms, on every architecture that we build for.
fn ticks_time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 10)
}

/// Median (least to most) of some values.
#[must_use]
pub fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    let show = |x: f64| match x {
        x if x.is_nan() => "-".to_owned(),
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    };
    format!("{} ({} to {})", show(v[v.len() / 2]), show(v[0]), show(v[v.len() - 1]))
}

/// Between which two of the values the median of what they were drawn from lies, with 95 % or more: by the order of the values alone
/// (the sign test), whatever their distribution. A dash when there are fewer than six.
#[must_use]
pub fn interval(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    // The chance that at most k of n are on one side.
    let (mut chance, mut one, mut k) = (0.0, 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX)), 0);
    while chance + one <= 0.025 {
        chance += one;
        k += 1;
        one *= (n + 1 - k) as f64 / k as f64;
    }
    if k == 0 {
        return "-".to_owned();
    }
    format!("{:.2} to {:.2}", values[k - 1], values[n - k])
}

/// `len` bytes that no file system can make small.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend(x.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_times_that_were_measured() {
        let times = Times::new((1..=200).rev().map(Duration::from_millis).collect());
        let ms = |p| times.percentile(p).as_millis();
        assert_eq!((ms(0), ms(50), ms(99), ms(100)), (1, 100, 198, 200));
        assert_eq!(Times::new(Vec::new()).percentile(99), Duration::ZERO);
    }

    #[test]
    fn the_interval_of_a_median_is_told_by_the_order_of_the_values() {
        let of = |n: u32| interval((1..=n).rev().map(f64::from).collect());
        // Tables of the sign test: all of 6 to 8 values, 2nd to 8th of 9, 4th to 12th of 15.
        assert_eq!([of(5), of(6), of(8)], ["-", "1.00 to 6.00", "1.00 to 8.00"]);
        assert_eq!([of(9), of(15)], ["2.00 to 8.00", "4.00 to 12.00"]);
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        let me = memory(std::process::id()).unwrap();
        assert!(me.rss_kib >= me.anon_kib && me.anon_kib > 0);
        cpu_time(std::process::id()).unwrap();
    }
}
