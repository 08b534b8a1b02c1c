//! Asks a TFTP server for one small file, as a client does (RFC 1350): the only proof that somebody serves the folder, and which.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{net::UdpSocket, time::timeout};

/// How long to wait for an answer before asking again, in milliseconds: in.tftpd starts a process for each request.
const TIMEOUTS_MS: [u64; 3] = [300, 600, 900];

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The file, whole, if it is shorter than a block of 512 bytes.
    File(Vec<u8>),
    /// An ERROR packet's words.
    Refused(String),
    /// Nothing, or nothing that is TFTP.
    Silence,
}

/// Asks. Dropped half-way: the server's process for this transfer gives up by itself. Errors: no socket could be had.
pub(super) async fn ask(server: SocketAddr, path: &str) -> io::Result<Answer> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    let request = [b"\0\x01", path.as_bytes(), b"\0octet\0"].concat();
    let mut buffer = [0; 1024];
    for timeout_ms in TIMEOUTS_MS {
        // A refusal by ICMP shows at the next call: as good as silence.
        if socket.send_to(&request, server).await.is_err() {
            continue;
        }
        let received = timeout(Duration::from_millis(timeout_ms), socket.recv_from(&mut buffer)).await;
        let Ok(Ok((length, peer))) = received else { continue };
        match &buffer[..length] {
            [0, 3, 0, 1, data @ ..] if peer.ip() == server.ip() => {
                // So that it does not send the block again; if this is lost it does, to nobody.
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
            // Kept open: a closed port would be a refusal.
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
