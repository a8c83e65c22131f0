//! The agent's configuration: texts of arguments, environment and file become one validated [`Config`].
//!
//! Strongest first: arguments, environment variables `STEERWAY_*`, the file of `--config`, defaults. Nothing else in the
//! crate reads arguments or the environment. All wrong values are reported together, each with its place, the value and what
//! to write instead. What may be missing for now (the folder, the Node object, addresses, interfaces) is no error here: the
//! agent starts without them.

mod choices;
mod error;
mod file;
mod kube_proxy;
mod parse;
mod settings;
mod table;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::health::Addresses;
use crate::model::NodePortAddresses;
use crate::source::kubernetes::Access;
use kube_proxy::Translated;

pub use choices::{Attach, HostRouting, RefuseWith, Xdp};
pub use error::{ConfigError, ConfigErrors};
pub use file::{API_VERSION, KIND};
pub use kube_proxy::flags as kube_proxy_flags;
pub use settings::{Layer, Place, Section, Setting, Settings, Shape, Unused, environment};
pub use table::SETTINGS;
pub use watch::ReadFile;

/// Why addresses do not tell which sources are pods.
const PODS: &str =
    "a pod is known by its interface (--pod names what is not recognized), and one of another node counts as outside";

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files in a folder.
    Folder(PathBuf),
    /// An API server.
    Kubernetes(Access),
}

/// Name patterns that override the roles of interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfacePatterns {
    /// Uplinks.
    pub uplink: Vec<String>,
    /// Tunnels.
    pub tunnel: Vec<String>,
    /// Links of pods.
    pub pod: Vec<String>,
    /// Never hooked.
    pub ignore: Vec<String>,
}

/// Idle times after which flows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, never established.
    pub tcp_half_open: Duration,
    /// TCP, established.
    pub tcp_established: Duration,
    /// TCP, one FIN.
    pub tcp_half_closed: Duration,
    /// TCP, both FINs or RST.
    pub tcp_closed: Duration,
    /// UDP without a reply.
    pub udp_unreplied: Duration,
    /// UDP with replies.
    pub udp_replied: Duration,
}

/// What netfilter's connection tracking is set to; zero leaves what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Tracked connections for each CPU.
    pub max_per_core: u32,
    /// Least number of tracked connections.
    pub min: u32,
    /// Idle time of established TCP.
    pub tcp_established: Duration,
    /// Idle time of half-closed TCP.
    pub tcp_close_wait: Duration,
    /// Take segments outside of the window as valid.
    pub tcp_be_liberal: bool,
    /// Idle time of UDP without replies.
    pub udp: Duration,
    /// Idle time of UDP with replies.
    pub udp_stream: Duration,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Which events are logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Form.
    pub format: LogFormat,
    /// Least severe level.
    pub level: tracing::Level,
}

/// The folders that agent and command line meet in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Pins.
    pub pin_dir: PathBuf,
    /// Lock and socket.
    pub run_dir: PathBuf,
}

/// The validated configuration of an agent.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting that is on or off")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where objects come from.
    pub source: Source,
    /// Name of this node, lower case.
    pub node_name: String,
    /// Takes the place of the Node's primary address of its family.
    pub bind_address: Option<IpAddr>,
    /// Seed of backend selection, the same in the whole cluster.
    pub select_seed: u64,
    /// Addresses that serve NodePorts.
    pub nodeport_addresses: NodePortAddresses,
    /// Serve the external addresses of Services.
    pub external_ips: bool,
    /// Ports for SNAT.
    pub snat_ports: RangeInclusive<u16>,
    /// Leave TCP segments without a flow to the stack.
    pub takeover: bool,
    /// Take no new flow; the node goes back to another proxy.
    pub drain: bool,
    /// Answer pings to VIPs.
    pub ping: bool,
    /// How TCP is refused.
    pub refuse_with: RefuseWith,
    /// How packets go from pod to pod.
    pub host_routing: HostRouting,
    /// Answers a second on each CPU.
    pub answer_rate: u32,
    /// Overrides of interface roles.
    pub interfaces: InterfacePatterns,
    /// How programs are attached.
    pub attach: Attach,
    /// Where programs run at XDP.
    pub xdp: Xdp,
    /// Flows that each table is made for, a power of two; also the number of its sets.
    pub flow_entries: u32,
    /// Idle times of flows.
    pub timeouts: Timeouts,
    /// Settings of netfilter.
    pub conntrack: Conntrack,
    /// A change that is not programmed for twice this long makes probes fail.
    pub sync_period: Duration,
    /// Least pause between two changes of the tables.
    pub min_sync_period: Duration,
    /// Metrics tell of each service port.
    pub service_metrics: bool,
    /// Where probes and metrics are answered.
    pub listen: Addresses,
    /// Pins, lock and socket.
    pub places: Places,
    /// Logs.
    pub log: Log,
    /// Values that were given and have no effect.
    pub unused: Vec<Unused>,
    /// The file whose change ends the agent: one of kube-proxy's kind.
    pub file: Option<ReadFile>,
}

/// What the command line gave.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Settings by their flags.
    pub layer: Layer,
    /// Flags of kube-proxy's that are no settings of ours, with their texts.
    pub kube_proxy: BTreeMap<&'static str, Vec<String>>,
}

impl From<Layer> for Arguments {
    fn from(layer: Layer) -> Self {
        Self {
            layer,
            ..Self::default()
        }
    }
}

/// Joins the layers: arguments (ours over kube-proxy's) over environment over the file at `config` (the flag or variable
/// `config`) over defaults.
///
/// # Errors
/// The file cannot be read, is no configuration, or has unknown fields; a flag of kube-proxy's cannot be understood.
pub fn gather(
    arguments: impl Into<Arguments>,
    config: Option<&Path>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Settings, ConfigErrors> {
    let arguments: Arguments = arguments.into();
    let flags = kube_proxy::of_flags(&arguments.kube_proxy);
    if !flags.errors.is_empty() {
        return Err(ConfigErrors(flags.errors));
    }
    let from_variable = || variable("STEERWAY_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = config.map(Path::to_path_buf).or_else(from_variable);
    let file = match path {
        None => Translated::default(),
        Some(file) => {
            let text = std::fs::read_to_string(&file).map_err(|source| {
                ConfigErrors(vec![ConfigError::Read {
                    file: file.clone(),
                    source,
                }])
            })?;
            file::parse(&file, &text).map_err(ConfigErrors)?
        }
    };
    let arguments = flags.layer.into_iter().chain(arguments.layer).collect();
    let mut settings = Settings::merge(arguments, environment(&variable), file.layer);
    settings.unused = file.unused.into_iter().chain(flags.unused).collect();
    settings.file = file.read;
    Ok(settings)
}

/// Reads an environment variable of this process; not UTF-8 counts as unset.
pub fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Config {
    /// Validates settings. `host_name` names the node where no layer does.
    ///
    /// # Errors
    /// Every wrong or missing value.
    pub fn validate(settings: &Settings, host_name: Option<&str>) -> Result<Self, ConfigErrors> {
        let mut read = parse::Reader::new(settings);
        let bind_address = read.optional("bind-address", parse::address);
        let conntrack = conntrack(&mut read);
        let pods = read.unused("cluster-cidr", parse::cidr, PODS);
        let unused = settings.unused.iter().cloned().chain(pods).collect();
        let config = Self {
            source: source(&mut read),
            node_name: node_name(&mut read, host_name),
            bind_address,
            select_seed: read.one("select-seed", 0, parse::seed),
            nodeport_addresses: read.whole(
                "nodeport-addresses",
                NodePortAddresses::Primary,
                parse::nodeport_addresses,
            ),
            external_ips: read.one("external-ips", true, parse::truth),
            snat_ports: read.one("snat-ports", 1..=1, parse::ports),
            takeover: read.one("takeover", false, parse::truth),
            drain: read.one("drain", false, parse::truth),
            ping: !read.one("no-ping", false, parse::truth),
            refuse_with: read.one("refuse-with", RefuseWith::Reset, |text| {
                parse::word(text, &RefuseWith::WORDS)
            }),
            host_routing: read.one("host-routing", HostRouting::Kernel, |text| {
                parse::word(text, &HostRouting::WORDS)
            }),
            answer_rate: read.one("answer-rate", 0, parse::rate),
            interfaces: InterfacePatterns {
                uplink: read.list("uplink", parse::pattern),
                tunnel: read.list("tunnel", parse::pattern),
                pod: read.list("pod", parse::pattern),
                ignore: read.list("ignore", parse::pattern),
            },
            attach: read.one("attach", Attach::Auto, |text| parse::word(text, &Attach::WORDS)),
            xdp: read.one("xdp", Xdp::Auto, |text| parse::word(text, &Xdp::WORDS)),
            flow_entries: read.one("flow-entries", 0, parse::flow_entries),
            timeouts: timeouts(&mut read, conntrack),
            conntrack,
            sync_period: read.one("sync-period", Duration::ZERO, parse::timeout),
            min_sync_period: read.one("min-sync-period", Duration::ZERO, parse::duration),
            service_metrics: read.one("service-metrics", false, parse::truth),
            listen: listen(&mut read, bind_address),
            places: places(&mut read),
            log: log(&mut read),
            unused,
            file: settings.file.clone(),
        };
        read.finish(config)
    }
}

impl Places {
    /// Validates the folders alone, for commands that only read.
    ///
    /// # Errors
    /// Every wrong value among them.
    pub fn validate(settings: &Settings) -> Result<Self, ConfigErrors> {
        let mut read = parse::Reader::new(settings);
        let found = places(&mut read);
        read.finish(found)
    }
}

fn source(read: &mut parse::Reader<'_>) -> Source {
    let folder = read.optional("folder", parse::path);
    let kubeconfig = read.optional("kubeconfig", parse::path);
    let server = read.optional("api-server", parse::api_server);
    let named = read.optional("source", |text| {
        parse::word(text, &[("folder", false), ("kubernetes", true)])
    });
    let of_api = |flag| read.is_given(flag);
    let kubernetes =
        named.unwrap_or_else(|| !read.is_given("folder") && (of_api("kubeconfig") || of_api("api-server")));
    if !kubernetes {
        if folder.is_none() {
            read.missing(
                "folder",
                "name a folder of Kubernetes YAML or JSON files, for example --folder /etc/steerway/objects",
            );
        }
        return Source::Folder(folder.unwrap_or_default());
    }
    if let Some(file) = kubeconfig {
        return Source::Kubernetes(Access::Kubeconfig { file, server });
    }
    if server.is_none() {
        read.missing(
            "api-server",
            "name the API server's own address, for example --api-server https://192.0.2.1:6443, or give a --kubeconfig; \
             the address in a pod's environment is a ClusterIP, which this agent has to serve first",
        );
    }
    Source::Kubernetes(Access::ServiceAccount {
        server: server.unwrap_or_default(),
    })
}

fn conntrack(read: &mut parse::Reader<'_>) -> Conntrack {
    Conntrack {
        max_per_core: read.one("conntrack-max-per-core", 0, parse::count),
        min: read.one("conntrack-min", 0, parse::count),
        tcp_established: read.one("conntrack-tcp-timeout-established", Duration::ZERO, parse::duration),
        tcp_close_wait: read.one("conntrack-tcp-timeout-close-wait", Duration::ZERO, parse::duration),
        tcp_be_liberal: read.one("conntrack-tcp-be-liberal", false, parse::truth),
        udp: read.one("conntrack-udp-timeout", Duration::ZERO, parse::duration),
        udp_stream: read.one("conntrack-udp-timeout-stream", Duration::ZERO, parse::duration),
    }
}

/// The times of flows: their own settings, else what netfilter was given.
fn timeouts(read: &mut parse::Reader<'_>, conntrack: Conntrack) -> Timeouts {
    let mut own = |flag, of_netfilter: Duration| {
        let time = read.one(flag, Duration::ZERO, parse::timeout);
        if read.is_given(flag) || of_netfilter.is_zero() {
            time
        } else {
            of_netfilter.clamp(parse::SHORTEST, parse::LONGEST)
        }
    };
    Timeouts {
        tcp_half_open: own("tcp-half-open-timeout", Duration::ZERO),
        tcp_established: own("tcp-established-timeout", conntrack.tcp_established),
        tcp_half_closed: own("tcp-half-closed-timeout", conntrack.tcp_close_wait),
        tcp_closed: own("tcp-closed-timeout", Duration::ZERO),
        udp_unreplied: own("udp-unreplied-timeout", conntrack.udp),
        udp_replied: own("udp-replied-timeout", conntrack.udp_stream),
    }
}

/// Where to listen; without a setting in the family of the bind address, as kube-proxy does.
fn listen(read: &mut parse::Reader<'_>, bind_address: Option<IpAddr>) -> Addresses {
    let mut address = |flag, port, v6: &str| {
        let address: Option<SocketAddr> = read.one(flag, None, |text| parse::listen_address(text, port));
        if read.is_given(flag) || !bind_address.is_some_and(|address| address.is_ipv6()) {
            return address;
        }
        v6.parse().ok().map(|v6: IpAddr| SocketAddr::new(v6, port))
    };
    Addresses {
        healthz: address("healthz-bind-address", 10256, "::"),
        metrics: address("metrics-bind-address", 10249, "::1"),
        hard_fail: read.one("bind-address-hard-fail", false, parse::truth),
    }
}

fn node_name(read: &mut parse::Reader<'_>, host_name: Option<&str>) -> String {
    let given = read.optional("node-name", parse::node_name);
    let name = given.or_else(|| host_name.and_then(|host| parse::node_name(host).ok()));
    if name.is_none() {
        read.missing(
            "node-name",
            "the host name is no node name; give --node-name as `kubectl get nodes` shows it",
        );
    }
    name.unwrap_or_default()
}

fn places(read: &mut parse::Reader<'_>) -> Places {
    let pin_dir: PathBuf = read.one("pin-dir", PathBuf::new(), parse::path);
    let run_dir = read.optional("run-dir", parse::path);
    Places {
        run_dir: run_dir.unwrap_or_else(|| default_run_dir(&pin_dir)),
        pin_dir,
    }
}

/// The run folder that belongs to a pin folder: its path below `/run/steerway`, so that each pin folder has its own.
pub fn default_run_dir(pin_dir: &Path) -> PathBuf {
    let name = pin_dir.to_string_lossy().trim_matches('/').replace('/', "-");
    Path::new("/run/steerway").join(name)
}

fn log(read: &mut parse::Reader<'_>) -> Log {
    use tracing::Level;
    Log {
        format: read.one("log-format", LogFormat::Text, |text| {
            parse::word(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
        }),
        level: read.one("log-level", Level::INFO, |text| {
            let levels = [
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ];
            parse::word(text, &levels)
        }),
    }
}

#[cfg(test)]
mod tests;
