//! Floods beside flows that stand idle: a million packets of strangers against a table for 256 thousand flows.
//!
//! In: 64 thousand established TCP flows, seen past their first second; then SYNs, bare ACKs, datagrams or whole handshakes, each of a
//! client of its own. While they come, other clients open connections: between a new connection's SYN, the answer, and its ACK a thousand
//! packets of the flood pass. A client whose SYN finds no answer sends it again, as any does, here once. Out: how many of the idle flows are
//! gone at the end, and how many new connections did not come about; either is to be none. And how many SYNs were sent again. Once a
//! kind, family and hook: what is counted is no matter of nanoseconds.

use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::scene::{OTHERS_HOSTS, Scene, client, frontend};
use super::{Ends, FEW, Incoming, LENGTH, from_a_frontend, in_scene, lay_out, number, to_a_backend};
use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::programs::{Place, Programs};
use crate::report::Row;

/// Flows that the table is made for.
const TABLE: usize = 1 << 18;
/// Idle flows: the clients' first numbers.
const IDLE: usize = 64_000;
/// Packets of the flood: the numbers after those.
const PACKETS: usize = 1 << 20;
/// Times that they are opened.
const TRIES: usize = 3;
/// The flood comes in slices.
const SLICES: usize = 20;
/// Handshakes that are under way at once.
const HANDSHAKES: usize = 1 << 14;
/// New connections, of the numbers after those: some in each slice.
const NEW: usize = 100;
/// Packets of the flood between those of a new connection.
const BETWEEN: usize = 1_000;
/// A flow that is seen again after this is settled: more than a second.
const SETTLE: Duration = Duration::from_millis(1_300);

/// What floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Packets(&'static str, Kind),
    Handshakes,
}

const FLOODS: [Flood; 4] = [
    Flood::Packets("SYNs", Kind::Tcp("S")),
    Flood::Packets("bare ACKs", Kind::Tcp("A")),
    Flood::Packets("datagrams", Kind::Udp),
    Flood::Handshakes,
];

/// A scene with what sends there.
struct Stage<'a> {
    scene: &'a Scene,
    programs: &'a mut Programs,
    incoming: &'a Incoming,
    /// Where the flood comes in.
    place: Place,
    v6: bool,
}

/// What a flood has done.
struct Harm {
    /// Idle flows that are gone.
    lost: usize,
    /// New connections that did not come about.
    failed: usize,
    /// SYNs of new connections that were sent a second time.
    again: usize,
}

/// The rows.
pub(super) fn run() -> Result<Vec<Row>> {
    let scene = Scene::new(FEW, OTHERS_HOSTS, TABLE)?;
    let mut programs = Programs::load(0)?;
    let mut rows = Vec::new();
    for v6 in [false, true] {
        let incoming = Incoming::of(&scene, v6)?;
        for place in [Place::Xdp, Place::Tc] {
            for flood in FLOODS {
                let harm = in_scene(&scene, |ifindex| {
                    programs.on(ifindex);
                    let mut stage = Stage {
                        scene: &scene,
                        programs: &mut programs,
                        incoming: &incoming,
                        place,
                        v6,
                    };
                    stage.suffer(flood)
                })?;
                rows.extend(shown(flood, v6, place, &harm));
            }
        }
    }
    Ok(rows)
}

/// Takes off what comes between two packets of a new connection.
fn between(rest: &mut Range<usize>) -> Range<usize> {
    let first = rest.start;
    rest.start = rest.end.min(first + BETWEEN);
    first..rest.start
}

/// The rows of a flood.
fn shown(flood: Flood, v6: bool, place: Place, harm: &Harm) -> [Row; 3] {
    let Harm { lost, failed, again } = *harm;
    let what = match flood {
        Flood::Packets(name, _) => name,
        Flood::Handshakes => "handshakes",
    };
    let family = if v6 { "v6" } else { "v4" };
    let place = match place {
        Place::Tc => "tc",
        Place::Xdp => "XDP",
    };
    let what = format!("a million {what}, {family}, {place}");
    eprintln!("packet: {what}: {lost} idle flows lost, {failed} new connections failed, {again} SYNs sent again");
    let figures = |count: usize| {
        let mut figures = Figures::default();
        figures.push(count as f64);
        figures
    };
    let none = |name: &str, count| Row::below(&format!("{what}: {name}"), "", &figures(count), 0.0);
    [
        none("idle flows lost of 64,000", lost),
        none("new connections meanwhile failed of 100", failed),
        Row::plain(
            &format!("{what}: SYNs of new connections sent again"),
            "",
            &figures(again),
        ),
    ]
}

impl Stage<'_> {
    fn suffer(&mut self, flood: Flood) -> Result<Harm> {
        self.scene.clear();
        let idle = self.forward(0..IDLE);
        let mut opened = 0;
        // So many that nobody has answered yet may displace one of their own, which is opened again then.
        for _ in 0..TRIES {
            let sent = self.send(Place::Tc, Kind::Tcp("S"), &idle)?;
            opened = self.answer(Place::Tc, 0..IDLE)?.min(sent);
            self.send(Place::Tc, Kind::Tcp("A"), &idle)?;
            if opened == IDLE {
                break;
            }
        }
        thread::sleep(SETTLE);
        let settled = self.send(Place::Tc, Kind::Tcp("A"), &idle)?;
        ensure!(
            opened == IDLE && settled == IDLE,
            "of {IDLE} idle flows {opened} were opened and {settled} stand"
        );
        let (slice, new) = (PACKETS / SLICES, NEW / SLICES);
        let (mut came_about, mut again) = (0, 0);
        for part in 0..SLICES {
            let first = IDLE + part * slice;
            let last = if part + 1 == SLICES {
                IDLE + PACKETS
            } else {
                first + slice
            };
            let mut rest = first..last;
            let opened = IDLE + PACKETS + part * new;
            let clients = opened..opened + new;
            let ends = self.forward(clients.clone());
            self.legitimate(Kind::Tcp("S"), &ends)?;
            self.flood(flood, between(&mut rest))?;
            let mut back = self.answers(clients.clone());
            if back.len() < clients.len() {
                let silent = self.silent(clients.clone());
                again += silent.len();
                self.legitimate(Kind::Tcp("S"), &silent)?;
                self.flood(flood, between(&mut rest))?;
                back = self.answers(clients);
            }
            let answered = self.legitimate(Kind::Tcp("SA"), &back)?;
            self.flood(flood, between(&mut rest))?;
            // One that was not answered does not go on.
            came_about += self.legitimate(Kind::Tcp("A"), &ends)?.min(answered);
            self.flood(flood, rest)?;
        }
        let flows = self.scene.flows();
        let alive = flows.iter().filter(|flow| number(flow.client) < IDLE).count();
        Ok(Harm {
            lost: IDLE - alive,
            failed: NEW - came_about,
            again,
        })
    }

    /// A part of the flood, of these clients.
    fn flood(&mut self, flood: Flood, clients: Range<usize>) -> Result<()> {
        match flood {
            Flood::Packets(_, kind) => {
                self.send(self.place, kind, &self.forward(clients))?;
            }
            Flood::Handshakes => {
                for first in clients.clone().step_by(HANDSHAKES) {
                    let part = first..clients.end.min(first + HANDSHAKES);
                    let ends = self.forward(part.clone());
                    self.send(self.place, Kind::Tcp("S"), &ends)?;
                    self.answer(self.place, part)?;
                    self.send(self.place, Kind::Tcp("A"), &ends)?;
                }
            }
        }
        Ok(())
    }

    fn forward(&self, numbers: Range<usize>) -> Ends {
        numbers
            .map(|number| (client(self.v6, number), frontend(self.v6)))
            .collect()
    }

    /// The ends of what answers the SYNs of these clients, from the backends that they were sent to.
    fn answers(&self, numbers: Range<usize>) -> Ends {
        let flows = self.scene.flows();
        let opened = flows.iter().filter(|flow| numbers.contains(&number(flow.client)));
        opened.map(|flow| (flow.backend, flow.source)).collect()
    }

    /// The ends of the packets of those whose SYN is not known (any more), so that nothing answers it.
    fn silent(&self, numbers: Range<usize>) -> Ends {
        let flows = self.scene.flows();
        let known: BTreeSet<usize> = flows.iter().map(|flow| number(flow.client)).collect();
        let unknown = numbers.filter(|number| !known.contains(number));
        unknown.flat_map(|number| self.forward(number..number + 1)).collect()
    }

    /// Sends those answers. How many came out.
    fn answer(&mut self, place: Place, numbers: Range<usize>) -> Result<usize> {
        let back = self.answers(numbers);
        self.send(place, Kind::Tcp("SA"), &back)
    }

    /// A packet of each of some new connections. XDP leaves one a second to tc, untouched: where not all came out, tc sees them.
    fn legitimate(&mut self, kind: Kind, ends: &Ends) -> Result<usize> {
        let came_out = self.send(self.place, kind, ends)?;
        if self.place == Place::Tc || came_out == ends.len() {
            return Ok(came_out);
        }
        self.send(Place::Tc, kind, ends)
    }

    /// Sends a packet between all of these ends. How many came out translated.
    fn send(&mut self, place: Place, kind: Kind, ends: &Ends) -> Result<usize> {
        if ends.is_empty() {
            return Ok(0);
        }
        let frames = Frames::new(self.v6, kind, LENGTH);
        lay_out(self.programs, &frames, ends);
        let sign = if kind == Kind::Tcp("SA") {
            from_a_frontend(frontend(self.v6))
        } else {
            to_a_backend(self.scene, self.v6)
        };
        // What became of the last packet shows when the next one is laid out: one more run.
        self.programs.count(
            self.incoming.at(place),
            &frames.first(),
            ends.len() as u64,
            ends.len() as u32 + 1,
            sign,
        )
    }
}
