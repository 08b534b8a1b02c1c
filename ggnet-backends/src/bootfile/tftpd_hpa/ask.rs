//! Requests one small file from a TFTP server, as a client does (RFC 1350): only this proves that a server serves the folder, and which
//! folder.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{net::UdpSocket, time::timeout};

/// Timeouts of the requests, in milliseconds: in.tftpd starts a process for each request.
const TIMEOUTS_MS: [u64; 3] = [300, 600, 900];

/// The response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The whole file, if it is shorter than a block of 512 bytes.
    File(Vec<u8>),
    /// The message of an ERROR packet.
    Refused(String),
    /// No response, or one that is not TFTP.
    Silence,
}

/// Sends the request. If the future is dropped, the server's process for this transfer times out by itself. Errors: no socket is available.
pub(super) async fn ask(server: SocketAddr, path: &str) -> io::Result<Answer> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    let request = [b"\0\x01", path.as_bytes(), b"\0octet\0"].concat();
    let mut buffer = [0; 1024];
    for timeout_ms in TIMEOUTS_MS {
        // An ICMP error is reported by the next call; it counts as no response.
        if socket.send_to(&request, server).await.is_err() {
            continue;
        }
        let received = timeout(Duration::from_millis(timeout_ms), socket.recv_from(&mut buffer)).await;
        let Ok(Ok((length, peer))) = received else { continue };
        match &buffer[..length] {
            [0, 3, 0, 1, data @ ..] if peer.ip() == server.ip() => {
                // So that the server does not send the block again; if this packet is lost, the server repeats the block without effect.
                let _ = socket.send_to(&[0, 4, 0, 1], peer).await;
                return Ok(Answer::File(data.to_vec()));
            }
            [0, 5, _, _, words @ ..] if peer.ip() == server.ip() => {
                let words = words.split(|b| *b == 0).next().unwrap_or_default();
                return Ok(Answer::Refused(String::from_utf8_lossy(words).into_owned()));
            }
            _ => {}
        }
    }
    Ok(Answer::Silence)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
mod tests {
    use super::*;

    async fn answered(packet: &'static [u8]) -> Answer {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 100];
            let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"\0\x01a/b\0octet\0");
            server.send_to(packet, peer).await.unwrap();
            // Kept open, because a closed port would be reported as an error.
            server
        });
        let answer = ask(at, "a/b").await.unwrap();
        serving.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_answer_is_told_apart() {
        assert_eq!(answered(b"\0\x03\0\x01text").await, Answer::File(b"text".to_vec()));
        assert_eq!(answered(b"\0\x05\0\x01File not found\0").await, Answer::Refused("File not found".into()));
        assert_eq!(answered(b"noise").await, Answer::Silence);
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(ask(closed, "x").await.unwrap(), Answer::Silence);
    }
}
