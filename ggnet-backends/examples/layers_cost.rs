//! Measures the cost of a writeback in layers: creating one over a large base, and each kind of 4-KiB request, compared with a bare
//! `pwrite`.
//!
//! `cargo run --release -p ggnet-backends --no-default-features --features writeback-layers --example layers_cost [folder]`
//!
//! CPU time is that of the calling thread as the kernel counts it; no flush happens inside a measurement.

use std::{
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use ggnet_backends::{
    layers::open_raw,
    writeback::layers::{Layers, LayersConfig},
};
use ggnet_core::{
    block::{BlockDevice, Disk},
    error::{Error, Result},
    nouns::{ImageVersionId, InstanceId},
    ports::{Removal, WritebackSpec, WritebackStore as _},
};

const SIZE: u64 = 10 << 30;
const REQUESTS: u64 = 40_000;
const BLOCK: u64 = 4096;

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Runs `request` for each number and prints the cost of one.
fn measure(what: &str, count: u64, mut request: impl FnMut(u64) -> std::io::Result<()>) -> Result<()> {
    let (cpu_before, since) = (cpu(), Instant::now());
    for i in 0..count {
        request(i).map_err(|e| Error::io(what, e))?;
    }
    let each = |d: Duration| d.as_secs_f64() * 1e6 / count as f64;
    println!("{what:44} {:8.2} us CPU {:8.2} us wall", each(cpu() - cpu_before), each(since.elapsed()));
    Ok(())
}

/// Spreads block numbers over the disk, without duplicates.
fn scattered(i: u64) -> u64 {
    (i * 2_654_435_761) % (SIZE / BLOCK) * BLOCK
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let dir =
        std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("ggnet-layers-cost");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("Creating the folder", e))?;
    let path = dir.join("base.raw");
    let base = std::fs::File::create(&path).map_err(|e| Error::io("Creating the base", e))?;
    base.set_len(SIZE).map_err(|e| Error::io("Sizing the base", e))?;
    let store = Layers::open(LayersConfig { dir: dir.join("writebacks"), instance: InstanceId::generate() })?;
    let base = open_raw(ImageVersionId::generate(), &path)?;
    let spec = |n: u64| -> Result<WritebackSpec> {
        Ok(WritebackSpec { id: format!("m.{n}").parse()?, version: base.id, size_bytes: SIZE })
    };

    let mut times = Vec::new();
    let since = Instant::now();
    for n in 0..100 {
        let one = Instant::now();
        store.ensure(&spec(n)?, &base).await?;
        times.push(one.elapsed());
    }
    times.sort();
    println!(
        "ensure over 10 GiB: median {:?}, worst of 100 {:?}, all {:?}",
        times[50],
        times[99],
        since.elapsed()
    );
    let since = Instant::now();
    for n in 0..100 {
        store.remove(&spec(n)?.id, Removal::IfIdle).await?;
    }
    println!("remove: 100 in {:?}", since.elapsed());

    let disk = async |n: u64| -> Result<std::sync::Arc<dyn BlockDevice>> {
        match store.ensure(&spec(n)?, &base).await? {
            Disk::Blocks(device) => Ok(device),
            other => Err(Error::internal(format!("no blocks but {other:?}"))),
        }
    };
    let buf = vec![0x5A; 4096];
    let bare = std::fs::File::create(dir.join("bare")).map_err(|e| Error::io("Creating a bare file", e))?;
    bare.set_len(SIZE).map_err(|e| Error::io("Sizing the bare file", e))?;
    measure("bare sparse file: first write, in order", REQUESTS, |i| bare.write_all_at(&buf, i * BLOCK))?;
    measure("bare sparse file: rewrite, in order", REQUESTS, |i| bare.write_all_at(&buf, i * BLOCK))?;
    let (a, b) = (disk(200).await?, disk(201).await?);
    let inline = |d: &dyn BlockDevice, at| match d.try_write_at(&buf, at) {
        Ok(false) => d.write_at(&buf, at),
        other => other.map(|_| ()),
    };
    measure("layers: first write, in order", REQUESTS, |i| inline(&*a, i * BLOCK))?;
    measure("layers: rewrite, in order", REQUESTS, |i| inline(&*a, i * BLOCK))?;
    measure("bare sparse file: first write, scattered", REQUESTS, |i| {
        bare.write_all_at(&buf, SIZE / 2 + scattered(i) / 2 / BLOCK * BLOCK)
    })?;
    measure("layers: first write, scattered", REQUESTS, |i| inline(&*b, scattered(i)))?;
    measure("layers: rewrite, scattered", REQUESTS, |i| inline(&*b, scattered(i)))?;
    let mut out = vec![0; 4096];
    measure("layers: read of a present block", REQUESTS, |i| a.try_read_at(&mut out, i * BLOCK).map(|_| ()))?;
    measure("layers: first write of 512 bytes", REQUESTS, |i| {
        let at = SIZE / 2 + i * BLOCK;
        a.write_at(&buf[..512], at)
    })?;
    let since = Instant::now();
    a.flush().map_err(|e| Error::io("Flushing", e))?;
    println!("first flush of all that: {:?}", since.elapsed());
    measure("layers: rewrite of 4 KiB and flush", 50, |i| {
        a.write_at(&buf, i * BLOCK)?;
        a.flush()
    })?;
    measure("layers: first write of 4 KiB and flush", 50, |i| {
        a.write_at(&buf, SIZE / 4 + i * BLOCK)?;
        a.flush()
    })?;
    drop((a, b));
    std::fs::remove_dir_all(&dir).map_err(|e| Error::io("Removing the folder", e))
}
