//! The bench's own programs and what they measure: loaded from `$STEERWAY_BENCH_EBPF`, run by BPF_PROG_TEST_RUN on the calling
//! thread's processor, in the namespace of the node; and the generator and the sink at the two ends of a way through a node.

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{Program, ProgramFd, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode, loaded_programs};
use aya::{Ebpf, maps::Map};
use lb_tests::prog_run::{Input, xdp};
use steerway::maps::Words;

use crate::frames::WORDS;

/// Words of the map `settings`.
const SETTINGS: usize = 14;
/// The setting at which the words of a [`Sign`] begin.
const SHOWN: usize = 4;
/// The setting that says how often a program runs.
const RUNS: usize = 13;

/// What a processor's runs came to: the next frame, good packets, runs, when the clock is looked at next, nanoseconds between the first
/// run's beginning and the last one's.
type Progress = [u64; 5];

/// Where a packet shows whether it was translated: words in memory order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sign([Shown; 3]);

/// One of them: its offset in the frame, the bytes' bits that matter, and what they are.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    offset: usize,
    mask: [u8; 8],
    value: [u8; 8],
}

/// An end of a packet as it must be, as far as it is known beforehand: the first bits of its address and of its port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    address: IpAddr,
    address_bits: usize,
    port: u16,
    port_bits: usize,
}

impl End {
    /// One that is known.
    pub(crate) fn exactly(end: SocketAddr) -> Self {
        Self::within(end.ip(), 128, end.port(), 16)
    }

    /// An address within a network, with so many bits of a port.
    pub(crate) fn within(address: IpAddr, address_bits: usize, port: u16, port_bits: usize) -> Self {
        Self {
            address,
            address_bits,
            port,
            port_bits,
        }
    }
}

impl Sign {
    /// A packet between these ends: their ports and addresses, of an IPv6 address the first half.
    pub(crate) fn between(from: End, to: End) -> Self {
        let v6 = to.address.is_ipv6();
        let (addresses, ports) = if v6 { ([22, 38], 54) } else { ([26, 30], 34) };
        let mut sign = Self::default();
        for ((word, end), offset) in sign.0.iter_mut().zip([from, to]).zip(addresses) {
            let (bytes, length) = match end.address {
                IpAddr::V4(address) => (u64::from(address.to_bits()) << 32, 32),
                IpAddr::V6(address) => ((address.to_bits() >> 64) as u64, 64),
            };
            *word = Shown::of(offset, bytes, first_bits(end.address_bits.min(length)));
        }
        let port = |end: End| (u64::from(end.port) << 48, first_bits(end.port_bits));
        let ((from, from_mask), (to, to_mask)) = (port(from), port(to));
        sign.0[2] = Shown::of(ports, from | to >> 16, from_mask | to_mask >> 16);
        sign
    }
}

impl Shown {
    /// The big-endian word at an offset.
    fn of(offset: usize, word: u64, mask: u64) -> Self {
        Self {
            offset,
            mask: mask.to_be_bytes(),
            value: (word & mask).to_be_bytes(),
        }
    }
}

/// A word whose first so many bits are set.
fn first_bits(count: usize) -> u64 {
    u64::MAX.checked_shr(count as u32).map_or(u64::MAX, |rest| !rest)
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

impl Target {
    /// The hook that it is for.
    pub(crate) fn place(&self) -> Place {
        self.place
    }
}

/// The loaded object.
pub(crate) struct Programs {
    object: Ebpf,
    settings: Words,
    frames: Words,
    progress: aya::maps::PerCpuArray<MapData, Progress>,
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

    /// Packets will be on the device of this index.
    pub(crate) fn on(&mut self, ifindex: u32) {
        self.ifindex = ifindex;
    }

    /// Runs a yardstick over `count` keys `repeat` times; nanoseconds a run.
    pub(crate) fn yardstick(&mut self, name: &str, count: u64, repeat: u32) -> Result<f64> {
        self.settings.store(0, count);
        let went = self.run(Place::Tc, name, &[0; 64], repeat)?;
        Ok(went.nanoseconds)
    }

    /// Sends the first `count` frames, of the length of `first`, in turn to `target` until `repeat` are sent; nanoseconds a packet
    /// (of a single one: not a number). With a sign, all but the last, which nothing looks at, must have come out so; see [`Went::all_good`].
    pub(crate) fn packets(
        &mut self,
        target: &Target,
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Option<Sign>,
    ) -> Result<f64> {
        let went = self.send_to(target, ("packet", "frame"), first, count, repeat, sign)?;
        went.all_good(target, count, repeat, sign)?;
        Ok(went.nanoseconds)
    }

    /// As [`Self::packets`], of one frame that is answered by one with `grown` bytes more in front; to take those off again, and to
    /// bring the frame to its length, is part of the figure.
    pub(crate) fn answered(
        &mut self,
        target: &Target,
        first: &[u8],
        grown: usize,
        repeat: u32,
        sign: Sign,
    ) -> Result<f64> {
        self.settings.store(2, first.len() as u64);
        self.settings.store(3, grown as u64);
        let loops = ("answered_packet", "answered_frame");
        let went = self.send_to(target, loops, first, 1, repeat, Some(sign))?;
        went.all_good(target, 1, repeat, Some(sign))?;
        Ok(went.nanoseconds)
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
        let went = self.send_to(target, ("packet", "frame"), first, count, repeat, Some(sign))?;
        Ok(went.good as usize)
    }

    /// Sends by one of these loops, at tc or at XDP.
    fn send_to(
        &mut self,
        target: &Target,
        (at_tc, at_xdp): (&str, &str),
        first: &[u8],
        count: u64,
        repeat: u32,
        sign: Option<Sign>,
    ) -> Result<Went> {
        match target.place {
            Place::Tc => self.target.set(0, &target.program, 0)?,
            Place::Xdp => self.target_xdp.set(0, &target.program, 0)?,
        }
        self.settings.store(0, count);
        self.look_for(sign.unwrap_or_default());
        let name = match target.place {
            Place::Tc => at_tc,
            Place::Xdp => at_xdp,
        };
        self.run(target.place, name, first, repeat)
    }

    /// Puts the sink at XDP of a device of the calling thread's namespace, for as long as this value lives.
    pub(crate) fn place_sink(&mut self, device: &str) -> Result<()> {
        let sink: &mut Xdp = self.object.program_mut("sink").context("no sink")?.try_into()?;
        sink.attach(device, XdpMode::Driver)?;
        Ok(())
    }

    /// Puts the target that does nothing at both hooks of devices of the calling thread's namespace, for as long as this value lives.
    pub(crate) fn place_nothing(&mut self, devices: &[String]) -> Result<()> {
        let nothing = self
            .object
            .program_mut("nothing")
            .context("no program that does nothing")?;
        let nothing: &mut SchedClassifier = nothing.try_into()?;
        for device in devices {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                nothing.attach(device, hook)?;
            }
        }
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
        self.settings.store(1, device.into());
        self.look_for(sign);
        self.begin()?;
        let generator = self.xdp("generate")?;
        let start = Instant::now();
        xdp::send(generator.fd()?.as_fd(), first, repeat)?;
        let nanoseconds = start.elapsed().as_secs_f64() * 1e9;
        let [_, good, ..] = self.progress()?;
        Ok((nanoseconds, good))
    }

    fn look_for(&self, sign: Sign) {
        for (number, word) in sign.0.iter().enumerate() {
            let at = SHOWN + number * 3;
            self.settings.store(at, word.offset as u64);
            self.settings.store(at + 1, u64::from_ne_bytes(word.mask));
            self.settings.store(at + 2, u64::from_ne_bytes(word.value));
        }
    }

    /// The next run begins with the first frame, and nothing was seen yet.
    fn begin(&mut self) -> Result<()> {
        let zero = vec![Progress::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
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

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self
            .object
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Runs one of the programs here. The programs take the time themselves: before and after its runs the kernel waits for its readers, a
    /// tick or two each time where a program at XDP is run often.
    fn run(&mut self, place: Place, name: &str, frame: &[u8], repeat: u32) -> Result<Went> {
        self.settings.store(RUNS, repeat.into());
        self.begin()?;
        let start = Instant::now();
        match place {
            Place::Tc => {
                let program = self.program(name)?.fd()?;
                Input::new(frame).on(self.ifindex).run_often(program.as_fd(), repeat)?;
            }
            Place::Xdp => xdp::run_often(self.xdp(name)?.fd()?.as_fd(), frame, self.ifindex, repeat)?,
        }
        let within = start.elapsed();
        let [_, good, runs, _, time] = self.progress()?;
        ensure!(runs == u64::from(repeat), "{name} ran {runs} times instead of {repeat}");
        let nanoseconds = if repeat > 1 {
            time as f64 / f64::from(repeat - 1)
        } else {
            f64::NAN
        };
        Ok(Went {
            nanoseconds,
            good,
            within,
        })
    }

    /// What the last runs came to; only the processor that they were on has counted.
    fn progress(&self) -> Result<Progress> {
        let mut sum = Progress::default();
        for value in self.progress.get(&0, 0)?.iter() {
            for (sum, value) in sum.iter_mut().zip(value) {
                *sum += value;
            }
        }
        Ok(sum)
    }
}

/// What runs of a program came to.
struct Went {
    /// A packet's; of a single run not a number.
    nanoseconds: f64,
    /// Packets that came out as they should, the last one not counted.
    good: u64,
    /// How long all of it took at most.
    within: Duration,
}

impl Went {
    /// An error where a packet that was looked at did not come out with the sign. XDP leaves one packet a second to tc, for the sake
    /// of the neighbour that it sends to: as many may be missing there, and none at tc.
    fn all_good(&self, target: &Target, count: u64, repeat: u32, sign: Option<Sign>) -> Result<()> {
        let left = match target.place {
            Place::Tc => 0,
            Place::Xdp => 2 + self.within.as_secs(),
        };
        let good = self.good;
        ensure!(
            sign.is_none() || good + 1 + left >= u64::from(repeat),
            "of {repeat} packets of {count} flows at {:?} only {good} came out as they should ({sign:?})",
            target.place
        );
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Frames, Kind};

    /// Whether a frame between these ends has the sign.
    fn has(sign: Sign, from: &str, to: &str) -> bool {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let words = Frames::new(from.is_ipv6(), Kind::Udp, 96).between(from, to);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        sign.0.iter().all(|word| {
            let found = &bytes[word.offset..][..8];
            let masked = found.iter().zip(word.mask).map(|(byte, mask)| byte & mask);
            masked.eq(word.value)
        })
    }

    #[test]
    fn a_sign_tells_addresses_and_ports_as_far_as_they_are_known() {
        let node = End::within("172.31.0.11".parse().unwrap(), 32, 0, 0);
        let backends = End::within("10.244.2.0".parse().unwrap(), 24, 0x1f90, 12);
        let sign = Sign::between(node, backends);
        assert!(has(sign, "172.31.0.11:40000", "10.244.2.7:8081"));
        assert!(!has(sign, "172.31.0.12:40000", "10.244.2.7:8081"));
        assert!(!has(sign, "172.31.0.11:40000", "10.244.3.7:8081"));
        assert!(!has(sign, "172.31.0.11:40000", "10.244.2.7:8065"));
        let from = End::exactly("[2001:db8:113::10]:80".parse().unwrap());
        let sign = Sign::between(from, End::within("2001:db8:c::".parse().unwrap(), 64, 0, 0));
        assert!(has(sign, "[2001:db8:113::10]:80", "[2001:db8:c::7]:4711"));
        assert!(!has(sign, "[fd00:10:244:2::10]:80", "[2001:db8:c::7]:4711"));
        assert!(!has(sign, "[2001:db8:113::10]:8080", "[2001:db8:c::7]:4711"));
        assert!(!has(sign, "[2001:db8:113::10]:80", "[2001:db8:d::7]:4711"));
        assert!(has(Sign::default(), "192.0.2.1:1", "192.0.2.2:2"));
    }
}
