//! A small HTTP server for boot scripts: GET of fixed texts, one connection at a time, nothing else. Tests of GGnet's own
//! server do not use it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

#[derive(Debug, Default)]
struct Shared {
    texts: Mutex<HashMap<String, String>>,
    asked: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// The server, on a loopback port of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Http {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Starts it, serving nothing yet.
    ///
    /// # Errors
    /// No port of the loopback is free.
    pub fn serve() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let inner = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if inner.stop.load(Ordering::Acquire) {
                    break;
                }
                // A client that goes away early is its own affair.
                let _ = answer(stream, &inner);
            }
        });
        Ok(Self { port, shared, thread: Some(thread) })
    }

    /// Serves `text` at `path` from now on.
    pub fn set(&self, path: &str, text: impl Into<String>) {
        self.shared.texts.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), text.into());
    }

    /// The URL of `path` as a machine in QEMU's user-mode network sees it.
    #[must_use]
    pub fn guest_url(&self, path: &str) -> String {
        format!("http://10.0.2.2:{}{path}", self.port)
    }

    /// Every path asked for so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the thread out of accept.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|l| !l.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let text = shared.texts.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    let (status, body) = text.map_or(("404 Not Found", String::new()), |t| ("200 OK", t));
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}
