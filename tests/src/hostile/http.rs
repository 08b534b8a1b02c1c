//! Floods over HTTP: requests that nobody reads the answers of, and requests that never end.

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Round, UNHEARD, all, connect, source};
use crate::server::script_path;

const PORT: u16 = 8080;
/// Scripts that each connection asks for without reading one.
const PIPELINED: usize = 6;

/// A new connection on which `text` was sent; the server may have closed it meanwhile.
async fn send(from: u8, text: String) -> Option<TcpStream> {
    let mut stream = connect(source(from), PORT).await.ok()?;
    stream.write_all(text.as_bytes()).await.ok()?;
    Some(stream)
}

/// 6,000 connections, each of which asks six times for one registered machine's script.
pub(super) async fn pipelined_scripts(mac: &str, round: u8) -> Result<Round> {
    let text = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", script_path(mac)).repeat(PIPELINED);
    // Ports of one source that are closed are used up for a minute.
    let open = all(UNHEARD, (0..6000).map(|_| send(150 + round % 50, text.clone()))).await;
    Ok(Round::new(format!("6000 connections for scripts, {} of them were taken", open.len()), open))
}

/// 3,000 connections from three sources that send half a request.
pub(super) async fn half_requests(round: u8) -> Result<Round> {
    let text = "GET /boot/52-54-00-00-00-00.ipxe HTTP/1.1\r\nHost: x\r\n";
    let open = all(
        UNHEARD,
        (0..3000_u16).map(|n| {
            let from = 200 + (round % 10) * 3 + u8::try_from(n % 3).unwrap_or(0);
            send(from, text.to_owned())
        }),
    )
    .await;
    Ok(Round::new(format!("3000 half requests, {} of them were taken", open.len()), open))
}
