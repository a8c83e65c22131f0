//! Many TCP connections that are held open and asked to echo numbered messages, again and again.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{ConnectError, Reply, tcp};
use crate::netns::Netns;

/// Longest wait for a connection and for each echo.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that are asked at a time. Each has a message and an acknowledgement under way, and a veth's ring under XDP holds 256
/// frames, of streams beside them too.
const PORTION: usize = 32;

/// Connections to a [`Server::tcp`](super::Server::tcp).
#[derive(Debug)]
pub struct HeldConnections {
    held: Vec<Held>,
    lost: Vec<LostConnection>,
    next_number: u64,
    timeout: Duration,
}

#[derive(Debug)]
struct Held {
    stream: TcpStream,
    reply: Reply,
}

/// A connection that ended or answered wrongly.
#[derive(Clone, Debug)]
pub struct LostConnection {
    /// What the connection's first line had said.
    pub reply: Reply,
    /// The number of the message that failed.
    pub at_message: u64,
    /// What happened.
    pub error: ConnectError,
}

/// The state after a check.
#[derive(Clone, Debug)]
pub struct HeldReport {
    /// Connections that echoed the last message.
    pub alive: usize,
    /// All connections lost since the start.
    pub lost: Vec<LostConnection>,
}

impl HeldConnections {
    /// Opens `count` connections to `to`; panics if one cannot be made.
    #[track_caller]
    pub fn start(from: &impl AsRef<Netns>, to: impl Into<SocketAddr>, count: usize) -> Self {
        Self::open(from.as_ref(), &vec![to.into(); count], None)
    }

    /// Opens a connection to each of `to`, all of them from the one local address `bind`; panics if one cannot be made.
    #[track_caller]
    pub fn start_from(from: &impl AsRef<Netns>, to: &[SocketAddr], bind: SocketAddr) -> Self {
        Self::open(from.as_ref(), to, Some(bind))
    }

    #[track_caller]
    fn open(from: &Netns, to: &[SocketAddr], bind: Option<SocketAddr>) -> Self {
        raise_file_limit();
        let opened: Vec<_> = from.run(|| {
            to.iter()
                .map(|to| tcp::connect(*to, bind, TIMEOUT, Instant::now()))
                .collect()
        });
        let opened = opened
            .into_iter()
            .zip(to)
            .map(|(opened, to)| opened.unwrap_or_else(|error| panic!("a connection to {to}: {error}")));
        let held = opened.map(|(stream, reply)| Held { stream, reply }).collect();
        Self {
            held,
            lost: Vec::new(),
            next_number: 0,
            timeout: TIMEOUT,
        }
    }

    /// Sets how long a check waits for an echo before it calls the connection lost; 10 s otherwise.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends the next number on every connection and reads every echo, some connections at a time. What fails is lost and not asked
    /// again.
    pub fn check_all(&mut self) -> HeldReport {
        let number = self.next_number;
        self.next_number += 1;
        let mut unchecked = std::mem::take(&mut self.held);
        while !unchecked.is_empty() {
            let rest = unchecked.split_off(unchecked.len().min(PORTION));
            self.check(unchecked, number);
            unchecked = rest;
        }
        self.report()
    }

    /// Checks some connections: those that live are held again.
    fn check(&mut self, mut portion: Vec<Held>, number: u64) {
        let started = Instant::now();
        let sent: Vec<_> = portion
            .iter_mut()
            .map(|held| held.stream.write_all(&number.to_be_bytes()))
            .collect();
        let deadline = started + self.timeout;
        for (mut held, sent) in portion.into_iter().zip(sent) {
            let echo = sent.and_then(|()| read_number(&mut held.stream, deadline));
            let error = match echo {
                Ok(echoed) if echoed == number => {
                    self.held.push(held);
                    continue;
                }
                Ok(echoed) => {
                    let detail = format!("sent {number}, got {echoed} back");
                    ConnectError::new(super::ConnectErrorKind::Garbled, started, detail)
                }
                Err(error) => ConnectError::from_io(&error, started),
            };
            self.lost.push(LostConnection {
                reply: held.reply,
                at_message: number,
                error,
            });
        }
    }

    /// Checks all; an error with the report if one was lost since the start.
    ///
    /// # Errors
    /// A connection was lost, now or before.
    pub fn all_alive(&mut self) -> Result<(), String> {
        let report = self.check_all();
        if report.lost.is_empty() {
            Ok(())
        } else {
            Err(format!("{report:?}"))
        }
    }

    /// The state after the last check.
    pub fn report(&self) -> HeldReport {
        HeldReport {
            alive: self.held.len(),
            lost: self.lost.clone(),
        }
    }

    /// Connections alive, by backend.
    pub fn backends(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for held in &self.held {
            *counts.entry(held.reply.backend.clone()).or_default() += 1;
        }
        counts
    }

    /// What each connection's first line said.
    pub fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.held.iter().map(|held| &held.reply)
    }

    /// Checks on a thread of its own, with `pause` between two rounds, until told to stop.
    pub fn keep_talking(mut self, pause: Duration) -> Talking {
        let shared = Arc::new((AtomicBool::new(false), AtomicU64::new(0)));
        let told = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !told.0.load(Ordering::Relaxed) {
                self.check_all();
                told.1.fetch_add(1, Ordering::Relaxed);
                thread::sleep(pause);
            }
            self
        });
        Talking { shared, thread }
    }
}

/// Connections that are being checked in the background.
#[derive(Debug)]
pub struct Talking {
    shared: Arc<(AtomicBool, AtomicU64)>,
    thread: JoinHandle<HeldConnections>,
}

impl Talking {
    /// Rounds done so far.
    pub fn rounds(&self) -> u64 {
        self.shared.1.load(Ordering::Relaxed)
    }

    /// Ends the round under way and gives the connections back.
    pub fn stop(self) -> HeldConnections {
        self.shared.0.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread that talks on held connections")
    }
}

/// Both ends of a thousand connections need more descriptors than the usual soft limit.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("RLIMIT_NOFILE");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit as soft limit");
}

fn read_number(stream: &mut TcpStream, deadline: Instant) -> std::io::Result<u64> {
    // Zero would mean "no time-out" to the system.
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
