//! The show: the stage is made, requests begin, one phase follows another, and the accounts are judged.

use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{panic, thread};

use anyhow::{Context as _, Result};
use lb_tests::world::World;
use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use crate::checks::NodeAddresses;
use crate::examples::Backend;
use crate::keep;
use crate::lane::Lane;
use crate::phases::PHASES;
use crate::screen::Screen;
use crate::stage::{Stage, tail};
use crate::stop::{Interrupted, Stop};
use crate::summary::summarise;
use crate::table;
use crate::traffic::Traffic;

/// From one look at the state to the next.
const TICK: Duration = Duration::from_millis(20);
/// From one frame to the next.
const FRAME: Duration = Duration::from_millis(200);
/// From one line to the next where there are no frames.
const LINE: Duration = Duration::from_secs(1);
const EXIT_INTERRUPTED: u8 = 130;

/// Runs the stage process: all phases within `time`, then the end, or the wait for it if the cluster is kept.
pub(crate) fn main(time: Duration, keep: bool) -> Result<ExitCode> {
    // Ctrl-C is the front's business, which tells us; and nothing is to reach the agents.
    setsid().context("cannot make a session")?;
    let front = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let stop = Stop::new(front.try_clone()?)?;
    match play(time, keep, &stop, front) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted: all is taken down");
            Ok(EXIT_INTERRUPTED.into())
        }
        Err(error) => Err(error),
    }
}

fn play(time: Duration, keep: bool, stop: &Stop, front: UnixStream) -> Result<bool> {
    let mut screen = Screen::new();
    let started = Instant::now();
    let mut stage = Stage::build()?;
    let up = started.elapsed();
    screen.say(&format!(
        "Two nodes, a client, {} pods, IPv4 and IPv6: up after {:.1} s. Agents start; the kernel verifies their programs ...",
        stage.world.pods().count(),
        up.as_secs_f64()
    ));
    stage.start_agents();
    let ready = stage.settle(stop)?;
    screen.say(&format!(
        "Agents ready after {:.1} s with the {} Services of deploy/examples.",
        ready.as_secs_f64(),
        stage.examples.services()
    ));
    let traffic = Traffic::start(stage.lanes());
    let mut states = Vec::new();
    for number in 0..PHASES.len() {
        perform(
            &mut stage,
            &traffic,
            number,
            time / PHASES.len() as u32,
            &mut screen,
            stop,
        )?;
        states.push(stage.backends.clone());
    }
    let lanes = traffic.end();
    let summary = summarise(&screen, &lanes, &states, &nodes(&stage.world));
    screen.say(&format!("\n{}", summary.text));
    if !summary.perfect {
        screen.say(&diagnosis(&stage));
    }
    if keep {
        stage.serve_all(stop)?;
        hold(&stage, summary.perfect, &mut screen, stop, front)?;
    }
    Ok(summary.perfect)
}

/// One phase: its change, then requests for `time`.
fn perform(
    stage: &mut Stage,
    traffic: &Traffic,
    number: usize,
    time: Duration,
    screen: &mut Screen,
    stop: &Stop,
) -> Result<()> {
    let phase = &PHASES[number];
    traffic.begin(number);
    let mut view = View::new(screen, traffic.lanes(), number);
    view.backends = stage.backends.clone();
    let said = thread::scope(|scope| {
        let change = scope.spawn(|| (phase.change)(stage, stop));
        while !change.is_finished() && stop.pause(TICK).is_ok() {
            view.update();
        }
        change.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })?;
    traffic.settled(number);
    view.backends = stage.backends.clone();
    view.told(said);
    let settled = Instant::now();
    while settled.elapsed() < time {
        stop.pause(TICK)?;
        view.update();
    }
    view.end();
    Ok(())
}

/// What is to be seen of a phase: frames on a terminal, lines elsewhere.
struct View<'a> {
    screen: &'a mut Screen,
    lanes: &'a [Arc<Lane>],
    phase: usize,
    backends: Vec<Backend>,
    said: String,
    began: Instant,
    next: Instant,
}

impl<'a> View<'a> {
    fn new(screen: &'a mut Screen, lanes: &'a [Arc<Lane>], phase: usize) -> Self {
        if !screen.is_terminal() {
            screen.say(&table::head(phase));
        }
        let began = Instant::now();
        let next = began + if screen.is_terminal() { Duration::ZERO } else { LINE };
        Self {
            screen,
            lanes,
            phase,
            backends: Vec::new(),
            said: String::new(),
            began,
            next,
        }
    }

    /// The change is in force; `said` is what there is to say of it.
    fn told(&mut self, said: String) {
        if !self.screen.is_terminal() {
            self.screen.say(&format!("  {said}"));
        }
        self.said = said;
    }

    /// Shows the state, if it is time to.
    fn update(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        let time = self.began.elapsed();
        if self.screen.is_terminal() {
            let frame = table::frame(self.screen, self.lanes, &self.backends, self.phase, time, &self.said);
            self.screen.draw(&frame);
            self.next += FRAME;
        } else {
            self.screen.say(&table::progress(self.lanes, self.phase, time));
            self.next += LINE;
        }
    }

    /// Says what stays of the phase.
    fn end(self) {
        let progress = table::progress(self.lanes, self.phase, self.began.elapsed());
        if self.screen.is_terminal() {
            let head = self.screen.bold(&table::head(self.phase));
            self.screen.say(&format!("{head}\n  {}\n{progress}", self.said));
        } else if self.next.saturating_duration_since(Instant::now()) < LINE / 2 {
            self.screen.say(&progress);
        }
    }
}

fn nodes(world: &World) -> Vec<NodeAddresses> {
    let node = |node: &lb_tests::world::Node| NodeAddresses {
        number: node.number,
        addresses: [node.ip4.into(), node.ip6.into()],
    };
    world.nodes().iter().map(node).collect()
}

/// What the agents know, for who has to find out what went wrong.
fn diagnosis(stage: &Stage) -> String {
    let mut text = String::new();
    for (agent, node) in stage.agents.iter().zip(stage.world.nodes()) {
        let status = agent.cli(&["status"]);
        text += &format!(
            "\n=== {}\n{}{}--- log\n{}\n",
            node.name,
            String::from_utf8_lossy(&status.stdout),
            String::from_utf8_lossy(&status.stderr),
            tail(&agent.log())
        );
    }
    text
}

/// Lets the front go, with the exit status, and waits until told to end.
fn hold(stage: &Stage, perfect: bool, screen: &mut Screen, stop: &Stop, mut front: UnixStream) -> Result<()> {
    screen.say(&format!("\n{}", keep::commands(stage)));
    stop.stand_alone();
    let nowhere = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    dup2_stdout(&nowhere).context("cannot let go of standard output")?;
    dup2_stderr(&nowhere).context("cannot let go of standard error")?;
    front
        .write_all(&[u8::from(!perfect)])
        .context("cannot tell the front")?;
    stop.wait();
    Ok(())
}
