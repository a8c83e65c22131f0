//! The servers: TCP echo, HTTP and UDP, each on a thread of its own with one asynchronous runtime.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::identity;
use crate::assert::eventually;
use crate::netns::Netns;

/// Room for bursts, so that what a test counts as lost was lost on the way.
pub(super) const SOCKET_BUFFER_BYTES: usize = 8 << 20;
const BACKLOG: i32 = 4096;

/// How long a port may stay taken after its last socket was closed.
const SET_FREE: Duration = Duration::from_secs(10);

/// A running server. Dropping it closes its socket and every connection, and waits until its port is free: a child that another test has
/// just begun holds copies of all open files until it runs a program of its own.
#[derive(Debug)]
pub struct Server {
    name: String,
    netns: Netns,
    address: SocketAddr,
    bind: fn(SocketAddr) -> io::Result<Socket>,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: AtomicU64,
    clients: Mutex<BTreeSet<SocketAddr>>,
}

impl Seen {
    fn note(&self, client: SocketAddr) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(client);
    }
}

impl Server {
    /// A TCP server that sends its identity line to each connection, then echoes.
    #[track_caller]
    pub fn tcp(place: &impl AsRef<Netns>, name: &str, address: impl Into<SocketAddr>) -> Self {
        Self::start_tcp(place.as_ref(), name, address.into(), Manner::Echo)
    }

    /// An HTTP server that answers every request with its identity line, connections kept alive.
    #[track_caller]
    pub fn http(place: &impl AsRef<Netns>, name: &str, address: impl Into<SocketAddr>) -> Self {
        Self::start_tcp(place.as_ref(), name, address.into(), Manner::Http)
    }

    /// A UDP server that answers each datagram with its identity line followed by the datagram.
    ///
    /// It answers from the address that it is bound to, so bind it to one address, not to the wildcard.
    #[track_caller]
    pub fn udp(place: &impl AsRef<Netns>, name: &str, address: impl Into<SocketAddr>) -> Self {
        let socket: UdpSocket = bound(place.as_ref(), name, address.into(), bind_udp).into();
        setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).expect("SO_RCVBUFFORCE (root?)");
        socket.set_nonblocking(true).expect("a non-blocking socket");
        let address = socket.local_addr().expect("a bound socket");
        let (server_name, seen) = (name.to_owned(), Arc::<Seen>::default());
        let noted = Arc::clone(&seen);
        Self::launch(place.as_ref(), name, address, bind_udp, seen, move || {
            serve_udp(socket, server_name, noted)
        })
    }

    /// The address that it is bound to (with the port that it got, if 0 was asked for).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name, as replies show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connections accepted (TCP), requests answered (HTTP) or datagrams received (UDP) so far.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }

    /// Every client address that it has seen.
    pub fn clients(&self) -> BTreeSet<SocketAddr> {
        self.seen.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[track_caller]
    fn start_tcp(netns: &Netns, name: &str, address: SocketAddr, manner: Manner) -> Self {
        let listener: TcpListener = bound(netns, name, address, listen).into();
        let address = listener.local_addr().expect("a bound socket");
        let (server_name, seen) = (Arc::<str>::from(name), Arc::<Seen>::default());
        let noted = Arc::clone(&seen);
        Self::launch(netns, name, address, listen, seen, move || {
            serve_tcp(listener, server_name, noted, manner)
        })
    }

    /// Runs the future that `work` makes until the server is dropped.
    fn launch<F: Future<Output = ()>>(
        netns: &Netns,
        name: &str,
        address: SocketAddr,
        bind: fn(SocketAddr) -> io::Result<Socket>,
        seen: Arc<Seen>,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                tokio::select! {
                    () = work() => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            name: name.to_owned(),
            netns: netns.clone(),
            address,
            bind,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server has printed itself already.
            drop(thread.join());
        }
        if !thread::panicking() {
            // An address that is gone has taken its port along.
            eventually(
                SET_FREE,
                &format!("the port of {} is free", self.address),
                || match self.netns.run(|| (self.bind)(self.address)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
                    _ => Ok(()),
                },
            );
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Manner {
    Echo,
    Http,
}

/// A server's socket, as soon as its port is free.
#[track_caller]
fn bound(netns: &Netns, name: &str, address: SocketAddr, bind: fn(SocketAddr) -> io::Result<Socket>) -> Socket {
    let what = format!("{name} is bound to {address} in {}", netns.name());
    eventually(SET_FREE, &what, || netns.run(|| bind(address)))
}

fn bind_udp(address: SocketAddr) -> io::Result<Socket> {
    UdpSocket::bind(address).map(Socket::from)
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn serve_tcp(listener: TcpListener, name: Arc<str>, seen: Arc<Seen>, manner: Manner) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener in the runtime");
    loop {
        // A client that is gone before it was accepted is no failure of the server.
        let Ok((stream, client)) = listener.accept().await else {
            continue;
        };
        let (name, seen) = (Arc::clone(&name), Arc::clone(&seen));
        tokio::spawn(async move {
            // A connection's end, however it comes, is the client's to judge.
            let _ended = match manner {
                Manner::Echo => {
                    seen.note(client);
                    echo(stream, &name, client).await
                }
                Manner::Http => answer_http(stream, &name, client, &seen).await,
            };
        });
    }
}

async fn echo(mut stream: TcpStream, name: &str, client: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(identity(name, client).as_bytes()).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn answer_http(mut stream: TcpStream, name: &str, client: SocketAddr, seen: &Seen) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let body = identity(name, client);
    let mut request = Vec::new();
    loop {
        while let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let close = head.contains("connection: close") || head.lines().next().unwrap_or("").ends_with("http/1.0");
            request.drain(..end + 4);
            seen.note(client);
            let connection = if close { "close" } else { "keep-alive" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            if close {
                return stream.shutdown().await;
            }
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
}

async fn serve_udp(socket: UdpSocket, name: String, seen: Arc<Seen>) {
    let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket in the runtime");
    let mut buffer = vec![0; 64 << 10];
    loop {
        // An ICMP error about an earlier reply is reported here; the next datagram is what counts.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        seen.note(client);
        let mut answer = identity(&name, client).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        // A reply that cannot be sent is missed by the client, which counts it.
        let _sent = socket.send_to(&answer, client).await;
    }
}
