//! The server that is asked: answers every HTTP request with the same few bytes as fast as it can read, so that the way to it weighs.
//!
//! One thread, one processor, one asynchronous runtime. A request ends with an empty line and has no body; one that asks for
//! `Connection: close` is the last of its connection.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use lb_tests::netns::Netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::processors;

const KEPT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
/// More than any request here has.
const ROOM: usize = 4096;

/// A running server; dropping it closes all.
pub(super) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at an address, on ports from `first` on, on a processor.
    pub(super) fn start(place: &Netns, address: IpAddr, first: u16, ports: u16, processor: usize) -> Result<Self> {
        let listeners = place.run(|| -> std::io::Result<Vec<TcpListener>> {
            (first..first + ports)
                .map(|port| {
                    let listener = TcpListener::bind(SocketAddr::new(address, port))?;
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                })
                .collect()
        });
        let listeners = listeners.with_context(|| format!("listen at {address}"))?;
        let (stop, stopped) = oneshot::channel();
        let thread = place.spawn(move || {
            let runtime = processors::pin(processor..processor + 1)
                .ok()
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build().ok())
                .expect("a runtime on a processor of this machine");
            runtime.block_on(async {
                for listener in listeners {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener of this runtime");
                    tokio::spawn(accept(listener));
                }
                // Also when the sender is dropped.
                stopped.await.ok();
            });
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream));
    }
}

/// Answers until the client closes or asks for the end.
async fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = [0; ROOM];
    let mut filled = 0;
    loop {
        let read = stream
            .read(buffer.get_mut(filled..)?)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        filled += read;
        let request = &buffer[..filled];
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let last = request
            .windows(b"Connection: close".len())
            .any(|words| words == b"Connection: close");
        stream.write_all(if last { LAST } else { KEPT }).await.ok()?;
        if last {
            return stream.shutdown().await.ok();
        }
        filled = 0;
    }
}
