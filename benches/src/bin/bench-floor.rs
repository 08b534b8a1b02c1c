//! The floor as a process: see `ggnet_benches::floor`.
//!
//! ```text
//! bench-floor LISTEN COUNT threads FILE  COUNT targets, each a door to the same file; a thread for each connection
//! bench-floor LISTEN COUNT tokio FILE    the same with a task for each connection
//! ```
//! It prints `target NAME` for each and `ready`. Everybody gets in.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ggnet_benches::floor;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().with_context(|| format!("{what} is missing"));
    let listen: SocketAddr = next("LISTEN")?.parse()?;
    let count: u32 = next("COUNT")?.parse()?;
    let how = next("threads or tokio")?;
    let file = File::options().read(true).write(true).open(next("FILE")?)?;
    let listener = TcpListener::bind(listen)?;
    for n in 0..count {
        println!("target iqn.2024-01.org.example:floor{n}");
    }
    println!("ready");
    match how.as_str() {
        "threads" => on_threads(&listener, &file),
        "tokio" => tokio::runtime::Runtime::new()?.block_on(accept(listener, Arc::new(file))),
        other => bail!("threads or tokio, not {other}"),
    }
}

fn on_threads(listener: &TcpListener, file: &File) -> Result<()> {
    std::thread::scope(|scope| -> Result<()> {
        for stream in listener.incoming() {
            let stream = stream?;
            scope.spawn(move || closed(floor::serve(&stream, file)));
        }
        Ok(())
    })
}

/// On a runtime as `#[tokio::main]` makes it for our target.
async fn accept(listener: TcpListener, file: Arc<File>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let file = Arc::clone(&file);
        #[expect(clippy::disallowed_methods, reason = "one connection of a measurement")]
        tokio::spawn(async move { closed(floor::serve_on_tokio(&mut stream, &file).await) });
    }
}

/// Why a connection was closed goes into the log of the process, if it was not its initiator's wish.
fn closed(end: Result<()>) {
    if let Err(error) = end {
        eprintln!("closed: {error:#}");
    }
}
