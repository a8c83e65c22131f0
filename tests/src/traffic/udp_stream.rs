//! A numbered stream of datagrams at a fixed rate, and an honest account of its replies.
//!
//! Each datagram carries the stream's mark and its own number; the server ([`Server::udp`](super::Server::udp)) sends it
//! back behind its identity line. The socket is not connected, so a reply from another address than the one asked is
//! seen and counted instead of vanishing. Nothing is lost for want of room: buffers on both sides are large, and no more than
//! [`WINDOW`] datagrams are under way, because a processor's backlog holds a thousand packets and a veth's ring under XDP 256, of all
//! streams together; a machine that is too slow slows the stream down.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::parse_identity;
use super::server::SOCKET_BUFFER_BYTES;
use super::udp::unspecified;
use crate::netns::Netns;

/// How long the receiver waits before it looks whether the stream has ended.
const POLL: Duration = Duration::from_millis(10);

/// Datagrams that may be unanswered at a time.
const WINDOW: u64 = 32;

/// Datagrams under way are given up when none is answered for so long.
const GIVEN_UP: Duration = Duration::from_millis(200);

/// A stream under way; [`finish`](Self::finish) ends it and gives the account.
#[derive(Debug)]
pub struct UdpStream {
    shared: Arc<Shared>,
    sender: JoinHandle<BTreeMap<String, u64>>,
    receiver: JoinHandle<UdpReport>,
    local: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sender_done: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
    grace_ms: AtomicU64,
}

/// What became of a stream.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Numbers that were answered at least once, from the address asked.
    pub answered: u64,
    /// Numbers that were never answered, in order.
    pub missing: Vec<u64>,
    /// Answers beyond the first to the same number.
    pub duplicated: u64,
    /// Answers from another address than the one asked, by source.
    pub foreign: BTreeMap<SocketAddr, u64>,
    /// Datagrams that carry no number of this stream, or no identity line.
    pub garbled: u64,
    /// Answers by backend.
    pub by_backend: BTreeMap<String, u64>,
    /// Where the answering backend changed: the first number answered by it.
    pub handovers: Vec<(u64, String)>,
    /// What the kernel said to datagrams that it did not take; those are not in `sent`.
    pub send_errors: BTreeMap<String, u64>,
}

impl fmt::Debug for UdpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            answered,
            missing,
            duplicated,
            foreign,
            garbled,
            by_backend,
            handovers,
            send_errors,
        } = self;
        write!(
            f,
            "{sent} sent, {answered} answered, {} missing ({}), {duplicated} duplicated, {garbled} garbled, foreign \
             {foreign:?}, by backend {by_backend:?}, handovers {handovers:?}, send errors {send_errors:?}",
            missing.len(),
            ranges(missing),
        )
    }
}

/// The first ranges of ascending numbers.
fn ranges(numbers: &[u64]) -> String {
    let chunks = numbers.chunk_by(|one, next| one + 1 == *next);
    let shown: Vec<String> = chunks
        .take(20)
        .filter_map(|chunk| Some(format!("{}-{}", chunk.first()?, chunk.last()?)))
        .collect();
    shown.join(", ")
}

impl UdpReport {
    /// Whether every datagram was taken and answered just once, from the right address.
    pub fn is_perfect(&self) -> bool {
        self.sent > 0
            && self.answered == self.sent
            && self.missing.is_empty()
            && self.duplicated == 0
            && self.foreign.is_empty()
            && self.garbled == 0
            && self.send_errors.is_empty()
    }
}

impl UdpStream {
    /// Starts sending `rate` datagrams a second to `to`, from the address `bind` if one is given.
    #[track_caller]
    pub fn start(from: &impl AsRef<Netns>, to: impl Into<SocketAddr>, bind: Option<SocketAddr>, rate: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (to, mark) = (to.into(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bind = bind.unwrap_or_else(|| unspecified(to));
        let socket = from.as_ref().run(|| UdpSocket::bind(bind));
        let socket = Arc::new(socket.unwrap_or_else(|error| panic!("bind UDP {bind}: {error}")));
        setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).expect("SO_RCVBUFFORCE (root?)");
        setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES).expect("SO_SNDBUF");
        socket.set_read_timeout(Some(POLL)).expect("a read time-out");
        let local = socket.local_addr().expect("a bound socket");
        let shared = Arc::<Shared>::default();
        let receiver = {
            let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
            thread::spawn(move || receive(&socket, to, mark, &shared))
        };
        let sender = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || send(&socket, to, mark, rate, &shared))
        };
        Self {
            shared,
            sender,
            receiver,
            local,
        }
    }

    /// The client's own address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Stops sending, waits until all is answered or `grace` has passed, and returns the account.
    pub fn finish(self, grace: Duration) -> UdpReport {
        self.shared.grace_ms.store(grace.as_millis() as u64, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        let send_errors = self.sender.join().expect("the sender of the stream");
        let report = self.receiver.join().expect("the receiver of the stream");
        UdpReport { send_errors, ..report }
    }
}

fn payload(mark: u32, number: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&mark.to_be_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number_of(bytes: &[u8], mark: u32) -> Option<u64> {
    let (found, number) = bytes.split_first_chunk::<4>()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    (u32::from_be_bytes(*found) == mark).then_some(number)
}

fn send(socket: &UdpSocket, to: SocketAddr, mark: u32, rate: u32, shared: &Shared) -> BTreeMap<String, u64> {
    let started = Instant::now();
    let mut errors = BTreeMap::new();
    let (mut number, mut attempts) = (0_u64, 0_u64);
    let (mut given_up, mut progress) = (0, (0, started));
    while !shared.stop.load(Ordering::Relaxed) {
        let answered = shared.answered.load(Ordering::Relaxed);
        if answered != progress.0 {
            progress = (answered, Instant::now());
        } else if progress.1.elapsed() > GIVEN_UP {
            given_up = number.saturating_sub(answered);
            progress.1 = Instant::now();
        }
        let under_way = number.saturating_sub(answered + given_up);
        let due = started.elapsed().as_micros() as u64 * u64::from(rate) / 1_000_000 + 1;
        for _ in 0..(due - attempts).min(WINDOW.saturating_sub(under_way)) {
            attempts += 1;
            match socket.send_to(&payload(mark, number), to) {
                Ok(_) => {
                    number += 1;
                    shared.sent.store(number, Ordering::Release);
                }
                Err(error) => *errors.entry(error.to_string()).or_default() += 1,
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    shared.sender_done.store(true, Ordering::Release);
    errors
}

fn receive(socket: &UdpSocket, to: SocketAddr, mark: u32, shared: &Shared) -> UdpReport {
    let mut report = UdpReport::default();
    let mut answers: Vec<u8> = Vec::new();
    let mut last_backend = String::new();
    let mut buffer = [0; 2048];
    let mut deadline = None;
    loop {
        let received = socket.recv_from(&mut buffer);
        if shared.sender_done.load(Ordering::Acquire) {
            let sent = shared.sent.load(Ordering::Acquire);
            let grace = Duration::from_millis(shared.grace_ms.load(Ordering::Relaxed));
            let ends = *deadline.get_or_insert_with(|| Instant::now() + grace);
            if received.is_err() && (report.answered >= sent || Instant::now() >= ends) {
                report.sent = sent;
                break;
            }
        }
        let Ok((length, source)) = received else { continue };
        if source != to {
            *report.foreign.entry(source).or_default() += 1;
            continue;
        }
        let parsed = parse_identity(&buffer[..length]).and_then(|(name, _, rest)| Some((name, number_of(rest, mark)?)));
        let Some((backend, number)) = parsed else {
            report.garbled += 1;
            continue;
        };
        let index = number as usize;
        if answers.len() <= index {
            answers.resize(index + 1, 0);
        }
        if answers[index] == 0 {
            report.answered += 1;
            shared.answered.store(report.answered, Ordering::Relaxed);
        } else {
            report.duplicated += 1;
        }
        answers[index] = answers[index].saturating_add(1);
        if backend != last_backend {
            report.handovers.push((number, backend.clone()));
            last_backend.clone_from(&backend);
        }
        *report.by_backend.entry(backend).or_default() += 1;
    }
    report.missing = (0..report.sent)
        .filter(|n| answers.get(*n as usize).is_none_or(|count| *count == 0))
        .collect();
    report
}
