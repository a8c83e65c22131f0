//! A TCP relay on the way to the API server: a test delays, stalls and cuts what goes through it, or leads it into another namespace.
//!
//! It reads nothing of what it carries. It goes on until dropped, which cuts everything.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use crate::netns::Netns;

/// What is carried at a time.
const CHUNK: usize = 16 << 10;

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    manner: watch::Sender<Manner>,
    carried: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How the relay treats what it carries.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    delay: Duration,
    stalled: bool,
    /// Connections that were made before the last of so many cuts end.
    cuts: u64,
}

impl Relay {
    /// Takes connections at `address` in a namespace and carries them to `to` from another one, or from the process's own.
    #[track_caller]
    pub fn start(at: &Netns, address: SocketAddr, from: Option<&Netns>, to: SocketAddr) -> Self {
        let listener = at
            .run(|| TcpListener::bind(address))
            .unwrap_or_else(|error| panic!("a relay at {address} in {}: {error}", at.name()));
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let (manner, followed) = watch::channel(Manner::default());
        let carried = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&carried);
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                tokio::select! {
                    () = take(listener, to, followed, counted) => {}
                    _ = stopped => {}
                }
            });
        };
        // Sockets belong to the namespace of the thread that makes them.
        let thread = match from {
            Some(netns) => netns.spawn(work),
            None => thread::spawn(work),
        };
        Self {
            manner,
            carried,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Connections that it has taken so far.
    pub fn connections(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Holds back each chunk for so long from now on.
    pub fn delay(&self, delay: Duration) {
        self.manner.send_modify(|manner| manner.delay = delay);
    }

    /// Holds back everything, or lets it go.
    pub fn stall(&self, stalled: bool) {
        self.manner.send_modify(|manner| manner.stalled = stalled);
    }

    /// Ends every connection that goes through it now.
    pub fn cut(&self) {
        self.manner.send_modify(|manner| manner.cuts += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the relay has printed itself already.
            drop(thread.join());
        }
    }
}

async fn take(listener: TcpListener, to: SocketAddr, manner: watch::Receiver<Manner>, carried: Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener in the runtime");
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        carried.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(carry(client, to, manner.clone()));
    }
}

/// Carries one connection to its end; that the other side cannot be reached ends it too.
async fn carry(client: TcpStream, to: SocketAddr, manner: watch::Receiver<Manner>) {
    let cuts = manner.borrow().cuts;
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let ways = async {
        tokio::join!(
            one_way(from_client, to_server, manner.clone()),
            one_way(from_server, to_client, manner.clone())
        )
    };
    let mut cut = manner.clone();
    tokio::select! {
        _ = ways => {}
        _ = cut.wait_for(|manner| manner.cuts > cuts) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut manner: watch::Receiver<Manner>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await.unwrap_or(0);
        let delay = manner.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if manner.wait_for(|manner| !manner.stalled).await.is_err() {
            return;
        }
        let carried = if length == 0 {
            to.shutdown().await
        } else {
            to.write_all(&chunk[..length]).await
        };
        if length == 0 || carried.is_err() {
            return;
        }
    }
}
