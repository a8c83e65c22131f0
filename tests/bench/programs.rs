//! The bench's own programs and what they measure: loaded from `$STEERWAY_BENCH_EBPF`, run by BPF_PROG_TEST_RUN on the calling
//! thread's processor, in the namespace of the node; and the generator and the sink at the two ends of a way through a node.

use std::env;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{Program, ProgramFd, ProgramInfo, SchedClassifier, Xdp, XdpMode, loaded_programs};
use aya::{Ebpf, maps::Map};
use lb_tests::prog_run::{Input, xdp};
use steerway::maps::Words;

use crate::frames::WORDS;

/// Words of the map `settings`.
const SETTINGS: usize = 5;

/// Where a packet shows whether it was translated: the word at an offset (in memory order), the bits that matter, their value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    /// Offset in the frame.
    pub(crate) offset: usize,
    /// The bytes that matter: 0xff each.
    pub(crate) mask: [u8; 8],
    /// What they are; zero elsewhere.
    pub(crate) value: [u8; 8],
}

/// Which hook a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tc,
    Xdp,
}

/// What is measured.
pub(crate) struct Target {
    place: Place,
    program: ProgramFd,
}

/// The loaded object.
pub(crate) struct Programs {
    object: Ebpf,
    settings: Words,
    frames: Words,
    progress: aya::maps::PerCpuArray<MapData, [u64; 2]>,
    target: ProgramArray<MapData>,
    target_xdp: ProgramArray<MapData>,
    ifindex: u32,
}

impl Programs {
    /// Loads the object anew: its tables are empty. Packets will be on the device of index `ifindex`.
    pub(crate) fn load(ifindex: u32) -> Result<Self> {
        let path =
            env::var_os("STEERWAY_BENCH_EBPF").context("STEERWAY_BENCH_EBPF is not set: use `cargo xtask bench`")?;
        let path = Path::new(&path);
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut object = Ebpf::load(&bytes)?;
        for (name, program) in object.programs_mut() {
            let loaded = if let Program::Xdp(program) = program {
                program.load()
            } else {
                let program: &mut SchedClassifier = program.try_into()?;
                program.load()
            };
            loaded.with_context(|| format!("cannot load {name}"))?;
        }
        let mut take = |name: &str| object.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            settings: words(&take("settings")?, SETTINGS)?,
            frames: words(&take("frames")?, WORDS << 20)?,
            progress: aya::maps::PerCpuArray::try_from(take("progress")?)?,
            target: ProgramArray::try_from(take("target")?)?,
            target_xdp: ProgramArray::try_from(take("target_xdp")?)?,
            object,
            ifindex,
        })
    }

    /// Lays out a frame.
    pub(crate) fn put(&self, number: usize, frame: &[u64; WORDS]) {
        for (i, word) in frame.iter().enumerate() {
            self.frames.store(number * WORDS + i, *word);
        }
    }

    /// Runs a yardstick over `count` keys `repeat` times; nanoseconds a run.
    pub(crate) fn yardstick(&mut self, name: &str, count: u64, repeat: u32) -> Result<f64> {
        self.settings.store(0, count);
        self.run(name, &[0; 64], repeat)
    }

    /// Sends the first `count` frames, of `length` bytes, in turn to `target` until `repeat` are sent; nanoseconds a packet.
    /// With a sign, all but the last must have come out so, and one in a thousand that found no room.
    pub(crate) fn packets(
        &mut self,
        target: &Target,
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Option<Sign>,
    ) -> Result<f64> {
        let (nanoseconds, good) = self.send_to(target, first, count, repeat, sign)?;
        ensure!(
            sign.is_none() || good + 1 + u64::from(repeat / 1000) >= u64::from(repeat),
            "of {repeat} packets of {count} flows at {:?} only {good} came out as they should ({sign:?})",
            target.place
        );
        Ok(nanoseconds)
    }

    /// As [`Self::packets`]; how many came out with the sign, the last one not counted.
    pub(crate) fn count(
        &mut self,
        target: &Target,
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Sign,
    ) -> Result<usize> {
        Ok(self.send_to(target, first, count, repeat, Some(sign))?.1 as usize)
    }

    fn send_to(
        &mut self,
        target: &Target,
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Option<Sign>,
    ) -> Result<(f64, u64)> {
        match target.place {
            Place::Tc => self.target.set(0, &target.program, 0)?,
            Place::Xdp => self.target_xdp.set(0, &target.program, 0)?,
        }
        self.settings.store(0, count);
        self.look_for(sign.unwrap_or(Sign {
            offset: 0,
            mask: [0; 8],
            value: [0; 8],
        }));
        let nanoseconds = match target.place {
            Place::Tc => self.run("packet", first, repeat)?,
            Place::Xdp => self.run_xdp(first, repeat)?,
        };
        Ok((nanoseconds, self.good()?))
    }

    /// Puts the sink at XDP of a device of the calling thread's namespace, for as long as this value lives.
    pub(crate) fn place_sink(&mut self, device: &str) -> Result<()> {
        let sink: &mut Xdp = self.object.program_mut("sink").context("no sink")?.try_into()?;
        sink.attach(device, XdpMode::Driver)?;
        Ok(())
    }

    /// Sends the first `count` frames in turn, `repeat` in all, out of the device of this index in the calling thread's namespace.
    /// Gives nanoseconds until all were taken, and how many the sink has seen come out with the sign.
    pub(crate) fn send(
        &mut self,
        device: u32,
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Sign,
    ) -> Result<(f64, u64)> {
        self.settings.store(0, count);
        self.settings.store(4, device.into());
        self.look_for(sign);
        self.begin()?;
        let generator = self.xdp("generate")?;
        let start = Instant::now();
        xdp::send(generator.fd()?.as_fd(), first, repeat)?;
        let nanoseconds = start.elapsed().as_secs_f64() * 1e9;
        Ok((nanoseconds, self.good()?))
    }

    fn look_for(&self, sign: Sign) {
        self.settings.store(1, sign.offset as u64);
        self.settings.store(2, u64::from_ne_bytes(sign.mask));
        self.settings.store(3, u64::from_ne_bytes(sign.value));
    }

    /// The next run begins with the first frame, and nothing was seen yet.
    fn begin(&mut self) -> Result<()> {
        let zero = vec![[0, 0]; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        Ok(self.progress.set(0, aya::maps::PerCpuValues::try_from(zero)?, 0)?)
    }

    /// The target that does nothing.
    pub(crate) fn nothing(&self, place: Place) -> Result<Target> {
        let program = match place {
            Place::Tc => self.program("nothing")?.fd()?.try_clone()?,
            Place::Xdp => self.xdp("nothing_xdp")?.fd()?.try_clone()?,
        };
        Ok(Target { place, program })
    }

    fn xdp(&self, name: &str) -> Result<&Xdp> {
        let program = self.object.program(name);
        Ok(program.with_context(|| format!("no program {name}"))?.try_into()?)
    }

    fn run_xdp(&mut self, frame: &[u8], repeat: u32) -> Result<f64> {
        self.begin()?;
        let program = self.xdp("frame")?.fd()?;
        let start = Instant::now();
        xdp::run_often(program.as_fd(), frame, self.ifindex, repeat)?;
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(repeat))
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self
            .object
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn run(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<f64> {
        self.begin()?;
        let program = self.program(name)?.fd()?;
        let input = Input::new(frame).on(self.ifindex);
        let start = Instant::now();
        input.run_often(program.as_fd(), repeat)?;
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(repeat))
    }

    /// Packets of the last run that came out as they should.
    fn good(&self) -> Result<u64> {
        let values = self.progress.get(&0, 0)?;
        Ok(values.iter().map(|value| value[1]).sum())
    }
}

/// The words of an mmapable map.
fn words(map: &Map, count: usize) -> Result<Words> {
    let Map::Array(data) = map else {
        bail!("{map:?} is no array");
    };
    Ok(Words::of_map(data.fd().as_fd(), count)?)
}

/// The agent's program of a name: the one that uses the flow table whose id is given.
pub(crate) fn agents(name: &str, flows: u32) -> Result<Target> {
    let uses = |info: &ProgramInfo| {
        let maps = info.map_ids().ok().flatten();
        info.name_as_str() == Some(name) && maps.is_some_and(|ids| ids.contains(&flows))
    };
    let newest = loaded_programs()
        .filter_map(Result::ok)
        .filter(uses)
        .max_by_key(ProgramInfo::id);
    let info = newest.with_context(|| format!("the agent has no program {name}"))?;
    let place = if name.ends_with("_xdp") { Place::Xdp } else { Place::Tc };
    let program = info.fd()?;
    Ok(Target { place, program })
}
