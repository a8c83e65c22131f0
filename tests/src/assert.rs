//! Waiting for a condition with a deadline, and saying all that is known when a test fails.
//!
//! `OnFailure` prints in its Drop, only while the thread panics, so hold it in a variable declared after what it tells
//! about is made: it is dropped first.

use std::fmt::{self, Debug, Display, Formatter, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::world::World;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Calls `probe` until it returns `Ok`, and returns that; panics with the last error after `limit`.
///
/// The probe is called at least once, and once more after the limit, so that a long pause of the machine alone fails
/// no test.
#[track_caller]
pub fn eventually<T, E: Display>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut attempts = 0;
    loop {
        let last = started.elapsed() >= limit;
        attempts += 1;
        match probe() {
            Ok(value) => return value,
            Err(error) if last => panic!("not within {limit:?}: {what}; after {attempts} attempts: {error}"),
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Calls `probe` again and again for `time` and panics at its first error: for what must stay true.
#[track_caller]
pub fn throughout<E: Display>(time: Duration, what: &str, mut probe: impl FnMut() -> Result<(), E>) {
    let started = Instant::now();
    let mut rounds = 0;
    while started.elapsed() < time {
        if let Err(error) = probe() {
            panic!(
                "{what} failed after {:?}, in round {rounds}: {error}",
                started.elapsed()
            );
        }
        rounds += 1;
        thread::sleep(FIRST_PAUSE);
    }
}

/// Something that can tell its state to a person.
pub trait Dump {
    /// Its state, any number of lines. It must not panic: it is called while a test already fails.
    fn dump(&self) -> String;
}

impl Dump for Netns {
    fn dump(&self) -> String {
        let mut text = format!("=== {}\n", self.name());
        for command in [
            "ip -br address",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip neigh show nud all",
            "ip -s link",
            "nft list ruleset",
        ] {
            let argv: Vec<&str> = command.split_whitespace().collect();
            let output = self.cmd(&argv);
            let listed = String::from_utf8_lossy(&output.stdout);
            // Broadcast and multicast routes of the local table tell nothing.
            let lines = listed
                .lines()
                .filter(|line| !line.starts_with("broadcast") && !line.starts_with("multicast"));
            _ = writeln!(text, "--- {command}\n{}", lines.collect::<Vec<_>>().join("\n"));
        }
        text
    }
}

impl<F: Fn() -> String> Dump for F {
    fn dump(&self) -> String {
        self()
    }
}

/// Prints what it was given, while the test that holds it is failing.
#[derive(Default)]
pub struct OnFailure {
    dumps: Vec<Box<dyn Dump>>,
}

impl OnFailure {
    /// Prints addresses, routes, neighbours and rules of every namespace of `world`, as they are at the failure.
    pub fn of(world: &World) -> Self {
        world
            .namespaces()
            .into_iter()
            .fold(Self::default(), |all, (_, netns)| all.also(netns.clone()))
    }

    /// Prints `dump` too; a closure that returns text will do.
    #[must_use]
    pub fn also(mut self, dump: impl Dump + 'static) -> Self {
        self.dumps.push(Box::new(dump));
        self
    }
}

impl Debug for OnFailure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "OnFailure({} dumps)", self.dumps.len())
    }
}

impl Drop for OnFailure {
    fn drop(&mut self) {
        if thread::panicking() {
            for dump in &self.dumps {
                eprintln!("{}", dump.dump());
            }
        }
    }
}
