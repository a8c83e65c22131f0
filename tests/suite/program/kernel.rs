//! The kernel's side: the agent's own object, loaded by the agent's own loader, run by BPF_PROG_TEST_RUN in the node's
//! namespace. Its maps are reached through the agent's own store.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::{ProgramFd, SchedClassifier, TcAttachType, XdpMode, loaded_programs};
use lb_tests::netns::Netns;
use lb_tests::prog_run::{Input, InputSum, Output, SkbFields, xdp};
use lb_tests::tiny_program::TinyXdp;
use steerway::datapath::load::{LoadOptions, OBJECT, ProgramName, Programs, load};
use steerway::datapath::pins::{BPFFS, PinDir, mount_bpffs};
use steerway::datapath::probe::Features;
use steerway::maps::BpfStore;

use super::{FLOW_SETS, Given};

/// Loaded programs and their maps; both go with this value, nothing is pinned.
pub(super) struct Kernel {
    pub(super) netns: Netns,
    programs: Programs,
    descriptors: BTreeMap<ProgramName, ProgramFd>,
    pub(super) store: BpfStore,
    xdp: Option<Early>,
}

/// The program at XDP, and what makes the uplink a device that has one.
struct Early {
    descriptor: ProgramFd,
    _runs: TinyXdp,
}

impl Kernel {
    /// Loads the object for a node.
    pub(super) fn load(netns: Netns) -> Self {
        let pins = PinDir::new(pin_path());
        let options = LoadOptions {
            flow_sets_v4: FLOW_SETS,
            flow_sets_v6: FLOW_SETS,
            features: Features::probe(),
        };
        let loaded = load(OBJECT, &pins, &options);
        let store = loaded.as_ref().ok().map(|_| BpfStore::open(&pins.maps()));
        remove(&pins);
        let programs = loaded.expect("the agent's programs").programs;
        Self {
            netns,
            descriptors: ProgramName::ALL
                .map(|name| (name, descriptor(&programs, name)))
                .into_iter()
                .collect(),
            programs,
            store: store.expect("a loaded object").expect("the programs' maps"),
            xdp: None,
        }
    }

    /// Loads the programs at XDP.
    pub(super) fn load_xdp(&mut self) {
        let mut runs = TinyXdp::returning(xdp::XDP_PASS);
        runs.attach(&self.netns, "up0", XdpMode::Driver);
        let pins = PinDir::new(pin_path());
        fs::create_dir_all(pins.root().join("stages")).expect("a folder for pins");
        let program = self.programs.xdp(&pins);
        let descriptor = program.map(|program| program.fd().and_then(|fd| Ok(fd.try_clone()?)));
        // The array of the stages lives as long as its descriptor does.
        remove(&pins);
        self.xdp = Some(Early {
            descriptor: descriptor.expect("the programs at XDP").expect("a descriptor"),
            _runs: runs,
        });
    }

    /// Runs the program at XDP of the uplink on one frame.
    pub(super) fn run_xdp(&self, frame: &[u8], ifindex: u32) -> Result<xdp::Output, String> {
        let program = &self.xdp.as_ref().expect("loaded programs at XDP").descriptor;
        self.netns
            .run(|| xdp::run(program.as_fd(), frame, ifindex))
            .map_err(|error| format!("the kernel's run failed: {error}"))
    }

    /// Runs a program on one packet. Fails the test where the kernel finds that a whole-packet sum was broken.
    pub(super) fn run(&self, program: ProgramName, given: &Given) -> Result<Output, String> {
        let input = Input {
            frame: given.frame.clone(),
            fields: SkbFields {
                ifindex: given.ifindex,
                ingress_ifindex: given.ingress_ifindex,
                gso_size: given.segment_payload,
                ..SkbFields::default()
            },
            sum: if given.summed {
                InputSum::Complete
            } else {
                InputSum::None
            },
        };
        let descriptor = self.descriptors[&program].as_fd();
        self.netns
            .run(|| input.run_descriptor(descriptor))
            .map_err(|error| format!("the kernel's run failed: {error}"))
    }
}

impl Kernel {
    /// Attaches a program to an interface's ingress, for as long as the result lives.
    pub(super) fn attach(&self, program: ProgramName, interface: &str) -> SchedClassifier {
        let id = self.programs.id(program).expect("a loaded program's id").to_string();
        let path = pin_path();
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for pins");
        self.netns.ok(&[
            "bpftool",
            "prog",
            "pin",
            "id",
            &id,
            path.to_str().expect("a plain path"),
        ]);
        let attached = SchedClassifier::from_pin(&path);
        fs::remove_file(&path).expect("the pin");
        let mut attached = attached.expect("a pinned program");
        self.netns
            .run(|| attached.attach(interface, TcAttachType::Ingress).map(drop))
            .expect("an attached program");
        attached
    }
}

fn descriptor(programs: &Programs, name: ProgramName) -> ProgramFd {
    let id = programs.id(name).expect("a loaded program's id");
    let info = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .expect("a loaded program");
    info.fd().expect("a loaded program's descriptor")
}

/// A pin directory of its own, which does not exist yet.
fn pin_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !Path::new(BPFFS).join("progs.debug").exists() {
        mount_bpffs().expect("a BPF file system");
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Path::new(BPFFS)
        .join("steerway-program-tests")
        .join(format!("{}-{number}", process::id()))
}

/// Removes the pins: descriptors hold everything from here on, and a killed test leaves nothing behind.
fn remove(pins: &PinDir) {
    for folder in ["links", "stages", "maps"] {
        let folder = pins.root().join(folder);
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            drop(fs::remove_file(entry.path()));
        }
        drop(fs::remove_dir(folder));
    }
    drop(fs::remove_file(pins.root().join("layout")));
    drop(fs::remove_dir(pins.root()));
}
