//! Pins, hooks, interfaces, steer0 and cleanup, on the library itself: without an agent, with a node of namespaces.

mod attach;
mod budget;
mod cleanup;
mod clsact;
mod device;
mod interfaces;
mod load;
mod probe;
mod routes;
mod stand_in;
mod ways;
mod xdp;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, process};

use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType};
use lb_tests::assert::eventually;
use lb_tests::netns::Netns;
use steerway::datapath::attach::{Attacher, Hook, Kind, Trust};
use steerway::datapath::interfaces::{InterfaceTable, Rules, snapshot};
use steerway::datapath::load::{LoadError, LoadOptions, Loaded, ProgramName, load};
use steerway::datapath::pins::{BPFFS, PinDir, mount_bpffs};
use steerway::datapath::probe::Features;
use steerway::datapath::run_dir::RunDir;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::stand_in::STAND_IN;

/// The node's end of the first pod's link.
const POD_LINK: &str = "pod0";
/// Its MAC address, which the pod knows without asking.
const POD_LINK_MAC: &str = "02:00:0a:01:00:01";
/// The node's uplink.
const UPLINK: &str = "up0";

/// A node with an uplink, a default route, one pod, and directories for one agent; IPv6 is off, so that no packet passes
/// that a test did not send.
struct Site {
    pod: Netns,
    // The other end of the uplink.
    outside: Netns,
    node: Netns,
    pins: PinDir,
    run_dir: RunDir,
    _files: TempDir,
    runtime: Runtime,
}

impl Site {
    fn new(label: &str) -> Self {
        let (node, outside, pod) = (Netns::new(label), Netns::new("outside"), Netns::new("pod"));
        for netns in [&node, &outside, &pod] {
            netns.sysctls(&[
                ("net.ipv6.conf.all.disable_ipv6", "1"),
                ("net.ipv6.conf.default.disable_ipv6", "1"),
            ]);
        }
        node.ip_batch(&format!(
            "link add {UPLINK} type veth peer name out0 netns {}\n\
             link add {POD_LINK} address {POD_LINK_MAC} type veth peer name eth0 netns {}\n\
             address add 192.0.2.1/24 dev {UPLINK}\n\
             address add 10.1.0.1/24 dev {POD_LINK}\n\
             link set {UPLINK} up\n\
             link set {POD_LINK} up\n\
             route add default via 192.0.2.2\n",
            outside.name(),
            pod.name()
        ));
        outside.ip_batch("address add 192.0.2.2/24 dev out0\nlink set out0 up\n");
        pod.ip_batch(&format!(
            "address add 10.1.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.1.0.1\n\
             neighbour add 10.1.0.1 lladdr {POD_LINK_MAC} dev eth0 nud permanent\n"
        ));
        eventually(Duration::from_secs(5), "the links are up", || {
            let shown = node.ip("-o link show type veth");
            if shown.matches("state UP").count() == 2 {
                Ok(())
            } else {
                Err(shown)
            }
        });
        let files = tempfile::tempdir().expect("a temporary directory");
        let run_dir = RunDir::new(files.path().join("run"));
        run_dir.create().expect("a run directory");
        Self {
            pod,
            outside,
            node,
            pins: PinDir::new(pin_path(label)),
            run_dir,
            _files: files,
            runtime: runtime(),
        }
    }

    /// Runs a future in the node's namespace, always on the same runtime: connections live on in it.
    fn block<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.node.run(|| self.runtime.block_on(work()))
    }

    fn load(&self) -> Result<Loaded, LoadError> {
        self.load_sized(1 << 8)
    }

    fn load_sized(&self, flow_sets: u32) -> Result<Loaded, LoadError> {
        load(&STAND_IN, &self.pins, &options(flow_sets))
    }

    /// An agent's start as far as it concerns this module: load, attach everywhere, without errors.
    fn attach(&self, kind: Kind) -> Attacher {
        let loaded = self.load().expect("programs");
        let (pins, run_dir) = (self.pins.clone(), self.run_dir.clone());
        self.block(|| async move {
            let mut attacher = Attacher::new(loaded.programs, pins, run_dir, kind).expect("netlink");
            let errors = attacher.apply(&table().await, Trust::Known).await;
            assert!(errors.is_empty(), "{errors:?}");
            attacher
        })
    }

    /// Ids of the programs on a tcx hook, first to last.
    fn tcx(&self, interface: &str, hook: Hook) -> Vec<u32> {
        let at = if hook == Hook::Egress {
            TcAttachType::Egress
        } else {
            TcAttachType::Ingress
        };
        let query = || SchedClassifier::query_tcx(interface, at).expect("the programs of an interface");
        self.node
            .run(query)
            .1
            .iter()
            .map(aya::programs::ProgramInfo::id)
            .collect()
    }

    /// Waits until no tcx program is on a hook: the kernel frees a link some time after its pin has gone.
    #[track_caller]
    fn no_tcx(&self, interface: &str, hook: Hook) {
        eventually(Duration::from_secs(5), "a hook without a program", || {
            let left = self.tcx(interface, hook);
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{interface} {}: {left:?}", hook.name()))
            }
        });
    }

    /// The bpf filters on a clsact hook as `tc` shows them, one a line.
    fn filters(&self, interface: &str, hook: Hook) -> Vec<String> {
        let shown = self.node.ok(&["tc", "filter", "show", "dev", interface, hook.name()]);
        shown
            .lines()
            .filter(|line| line.contains("handle"))
            .map(str::to_owned)
            .collect()
    }

    /// A counter of the programs, over all CPUs.
    fn counter(&self, index: u32) -> u64 {
        let data = MapData::from_pin(self.pins.map("reasons")).expect("the counters");
        let counters: PerCpuArray<MapData, u64> = Map::PerCpuArray(data).try_into().expect("counters on each CPU");
        counters.get(&index, 0).expect("a counter").iter().sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What a failed test leaves; a removal that fails has been one already.
        for folder in ["links", "stages", "maps"] {
            let folder = self.pins.root().join(folder);
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                drop(fs::remove_file(entry.path()).or_else(|_| fs::remove_dir(entry.path())));
            }
            drop(fs::remove_dir(folder));
        }
        drop(fs::remove_file(self.pins.root().join("layout")));
        drop(fs::remove_dir(self.pins.root()));
    }
}

/// Options that hold for every test: small flow tables, the kernel as it is.
fn options(flow_sets: u32) -> LoadOptions {
    LoadOptions {
        flow_sets_v4: flow_sets,
        flow_sets_v6: flow_sets,
        features: Features::probe(),
    }
}

/// A pin directory of its own, which does not exist yet.
fn pin_path(label: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !Path::new(BPFFS).join("progs.debug").exists() {
        mount_bpffs().expect("a BPF file system");
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Path::new(BPFFS)
        .join("steerway-datapath-tests")
        .join(format!("{}-{number}-{label}", process::id()))
}

/// Runs a future in a namespace, on a runtime of its own.
fn block_in<T: Send, F: Future<Output = T>>(netns: &Netns, work: impl FnOnce() -> F + Send) -> T {
    netns.run(|| runtime().block_on(work()))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The interfaces of the calling thread's namespace, without patterns or addresses of the Node.
async fn table() -> InterfaceTable {
    snapshot(&Rules::default()).await.expect("the interfaces")
}

/// The hooks of a [`Site`] that must be served, besides steer0's.
const SERVED: [(&str, Hook, ProgramName); 5] = [
    ("lo", Hook::Egress, ProgramName::LoOut),
    (UPLINK, Hook::Ingress, ProgramName::UplinkIn),
    (UPLINK, Hook::Egress, ProgramName::UplinkOut),
    (POD_LINK, Hook::Ingress, ProgramName::PodIn),
    (POD_LINK, Hook::Egress, ProgramName::PodOut),
];
