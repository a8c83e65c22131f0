//! Floods beside flows that stand idle: a million packets of strangers against a table for 256 thousand flows.
//!
//! In: 64 thousand established TCP flows, seen past their first second; then SYNs, bare ACKs, datagrams or whole handshakes, each of a
//! client of its own. Out: how many of the idle flows are gone, and how many of a hundred new connections did not come about while
//! the table was as the flood left it. Either is to be none. Once a kind and family: what is counted is no matter of nanoseconds.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::scene::{Scene, client, frontend};
use super::{Ends, FEW, LENGTH, Traffic, in_scene, lay_out, number};
use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::programs::{Programs, Target, agents};
use crate::report::Row;

/// Flows that the table is made for.
const TABLE: usize = 1 << 18;
/// Idle flows: the clients' first numbers.
const IDLE: usize = 64_000;
/// Packets of the flood: the numbers after those.
const PACKETS: usize = 1 << 20;
/// Handshakes that are under way at once.
const HANDSHAKES: usize = 1 << 14;
/// New connections afterwards, of the numbers after those.
const NEW: usize = 100;
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
    programs: Programs,
    incoming: Target,
    v6: bool,
}

/// The rows.
pub(super) fn run() -> Result<Vec<Row>> {
    let scene = Scene::new(FEW, TABLE)?;
    let mut rows = Vec::new();
    for v6 in [false, true] {
        for flood in FLOODS {
            let (lost, failed) = in_scene(&scene, |ifindex| {
                let mut stage = Stage {
                    scene: &scene,
                    programs: Programs::load(ifindex)?,
                    incoming: agents("uplink_in", scene.table_id(v6)?)?,
                    v6,
                };
                stage.suffer(flood)
            })?;
            let what = match flood {
                Flood::Packets(name, _) => name,
                Flood::Handshakes => "handshakes",
            };
            let what = format!("a million {what}, {}", if v6 { "v6" } else { "v4" });
            eprintln!("packet: {what}: {lost} idle flows lost, {failed} new connections failed");
            for (name, count) in [
                ("idle flows lost of 64,000", lost),
                ("new connections failed of 100", failed),
            ] {
                let mut figures = Figures::default();
                figures.push(count as f64);
                rows.push(Row::below(&format!("{what}: {name}"), "", &figures, 0.0));
            }
        }
    }
    Ok(rows)
}

impl Stage<'_> {
    /// Idle flows that are gone after the flood, and new connections that did not come about.
    fn suffer(&mut self, flood: Flood) -> Result<(usize, usize)> {
        self.scene.clear();
        self.handshake(0..IDLE)?;
        thread::sleep(SETTLE);
        self.send(Kind::Tcp("A"), &self.forward(0..IDLE))?;
        match flood {
            Flood::Packets(_, kind) => {
                self.send(kind, &self.forward(IDLE..IDLE + PACKETS))?;
            }
            Flood::Handshakes => {
                for part in 0..PACKETS / HANDSHAKES {
                    let first = IDLE + part * HANDSHAKES;
                    self.handshake(first..first + HANDSHAKES)?;
                }
            }
        }
        let alive = self
            .scene
            .flows()
            .iter()
            .filter(|flow| number(flow.client) < IDLE)
            .count();
        let last = IDLE + PACKETS;
        let came_about = self.handshake(last..last + NEW)?;
        Ok((IDLE - alive, NEW - came_about))
    }

    fn forward(&self, numbers: std::ops::Range<usize>) -> Ends {
        numbers
            .map(|number| (client(self.v6, number), frontend(self.v6)))
            .collect()
    }

    /// Opens connections: SYN, answer, ACK. How many have come about.
    fn handshake(&mut self, numbers: std::ops::Range<usize>) -> Result<usize> {
        let ends = self.forward(numbers.clone());
        self.send(Kind::Tcp("S"), &ends)?;
        let flows = self.scene.flows();
        let opened = flows.iter().filter(|flow| numbers.contains(&number(flow.client)));
        let back: Ends = opened.map(|flow| (flow.backend, flow.source)).collect();
        if back.is_empty() {
            return Ok(0);
        }
        let answered = self.send(Kind::Tcp("SA"), &back)?;
        self.send(Kind::Tcp("A"), &ends)?;
        Ok(answered)
    }

    /// Sends a packet between all of these ends. How many came out translated.
    fn send(&mut self, kind: Kind, ends: &Ends) -> Result<usize> {
        let traffic = Traffic { v6: self.v6, kind };
        let frames = Frames::new(self.v6, kind, LENGTH);
        lay_out(&self.programs, &frames, ends);
        let sign = if kind == Kind::Tcp("SA") {
            traffic.source_port(frontend(self.v6).port())
        } else {
            traffic.to_a_backend()
        };
        // What became of the last packet shows when the next one is laid out: one more run.
        self.programs.count(
            &self.incoming,
            &frames.first(),
            ends.len() as u64,
            ends.len() as u32 + 1,
            sign,
        )
    }
}
