//! Every setting of the agent once: flag, environment variable, file field, default and help in one table.
//!
//! In: values as text from arguments, environment, file and defaults. Out: for each setting the values of the strongest
//! layer that has it, with their place, so that an error can name where a wrong value stands. Nothing is interpreted here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// How a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Value,
    /// Several values, separated by commas or given repeatedly.
    List,
    /// True or false; the bare flag means true.
    Switch,
}

/// The section of the help text that a setting stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Where the Services come from and who this node is.
    Cluster,
    /// What happens to packets.
    Traffic,
    /// Which interfaces are hooked, and how.
    Interfaces,
    /// How long flows live and how much memory they have.
    Flows,
    /// Folders and logs.
    Agent,
}

impl Section {
    /// The heading in the help text.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Traffic => "Traffic",
            Self::Interfaces => "Interfaces",
            Self::Flows => "Flows",
            Self::Agent => "Agent",
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name of the flag without its dashes; the names of variable and field follow from it.
    pub flag: &'static str,
    /// How it is written.
    pub shape: Shape,
    /// What stands for its value in the help text.
    pub value_name: &'static str,
    /// Value where no layer has one; empty where the default depends on the machine or there is none.
    pub default: &'static str,
    /// Its section in the help text.
    pub section: Section,
    /// One or two sentences for the help text.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable: `STEERWAY_` and the flag in capitals.
    pub fn variable(&self) -> String {
        format!("STEERWAY_{}", self.flag.replace('-', "_").to_uppercase())
    }

    /// The field of the configuration file: the flag in camel case.
    pub fn field(&self) -> String {
        let mut field = String::with_capacity(self.flag.len());
        for (i, word) in self.flag.split('-').enumerate() {
            match word.chars().next() {
                Some(first) if i > 0 => {
                    field.extend(first.to_uppercase());
                    field.push_str(&word[first.len_utf8()..]);
                }
                _ => field.push_str(word),
            }
        }
        field
    }

    /// The setting with this flag.
    pub fn by_flag(flag: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|s| s.flag == flag)
    }

    /// The setting with this field name.
    pub fn by_field(field: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|s| s.field() == field)
    }
}

const fn setting(
    section: Section,
    flag: &'static str,
    shape: Shape,
    value_name: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        flag,
        shape,
        value_name,
        default,
        section,
        help,
    }
}

use Section::{Agent, Cluster, Flows, Interfaces, Traffic};
use Shape::{List, Switch, Value};

/// All settings in the order of the help text.
pub const SETTINGS: &[Setting] = &[
    setting(
        Cluster,
        "source",
        Value,
        "SOURCE",
        "folder",
        "Where Services, EndpointSlices and Nodes come from: folder or kubernetes (an API server)",
    ),
    setting(
        Cluster,
        "folder",
        Value,
        "DIR",
        "",
        "Folder of Kubernetes YAML or JSON files that the source `folder` reads and watches",
    ),
    setting(
        Cluster,
        "kubeconfig",
        Value,
        "FILE",
        "",
        "Kubeconfig by which the source `kubernetes` reaches the API server [default: the ServiceAccount of the agent's pod]",
    ),
    setting(
        Cluster,
        "api-server",
        Value,
        "URL",
        "",
        "Address of the API server, never a ClusterIP: those are served by this agent; needed without a kubeconfig, and stronger than the kubeconfig's",
    ),
    setting(
        Cluster,
        "node-name",
        Value,
        "NAME",
        "",
        "Name of this node as in Node objects and EndpointSlices [default: the host name in lower case]",
    ),
    setting(
        Cluster,
        "cluster-cidr",
        List,
        "CIDR,...",
        "",
        "Addresses of pods, as kube-proxy takes them. Changes nothing here: a pod is known by its interface, and one of another node counts as outside",
    ),
    setting(
        Cluster,
        "select-seed",
        Value,
        "NUMBER",
        "0x5374656572776179",
        "Seed of backend selection; every node of a cluster must use the same",
    ),
    setting(
        Traffic,
        "nodeport-addresses",
        List,
        "CIDR,...",
        "primary",
        "Node addresses that serve NodePorts: CIDRs (0.0.0.0/0 and ::/0 for all), or `primary` for the addresses of the Node object",
    ),
    setting(
        Traffic,
        "snat-ports",
        Value,
        "FIRST-LAST",
        "16384-29999",
        "Source ports for flows that the node must translate; keep them apart from NodePorts and ip_local_port_range",
    ),
    setting(
        Traffic,
        "takeover",
        Switch,
        "BOOL",
        "false",
        "Leave TCP segments of connections that Steerway did not see start to the stack, where netfilter may own them; for a node that changes from kube-proxy",
    ),
    setting(
        Traffic,
        "no-ping",
        Switch,
        "BOOL",
        "false",
        "Do not answer pings to Service addresses",
    ),
    setting(
        Traffic,
        "refuse-with",
        Value,
        "rst|icmp",
        "rst",
        "How TCP connections to unserved ports are refused: by a reset, or by ICMP port unreachable as kube-proxy does",
    ),
    setting(
        Traffic,
        "answer-rate",
        Value,
        "NUMBER",
        "1000",
        "Refusals, ICMP errors and echo replies that each CPU may send in a second",
    ),
    setting(
        Interfaces,
        "uplink",
        List,
        "PATTERN,...",
        "",
        "Interfaces to treat as uplinks whatever they look like; `*` and `?` match as in a shell",
    ),
    setting(
        Interfaces,
        "tunnel",
        List,
        "PATTERN,...",
        "",
        "Interfaces to treat as tunnels",
    ),
    setting(
        Interfaces,
        "pod",
        List,
        "PATTERN,...",
        "",
        "Interfaces to treat as the host's end of a pod's link",
    ),
    setting(
        Interfaces,
        "ignore",
        List,
        "PATTERN,...",
        "",
        "Interfaces never to hook; stronger than the other patterns",
    ),
    setting(
        Interfaces,
        "attach",
        Value,
        "auto|tcx|clsact",
        "auto",
        "How programs are attached: tcx where the kernel has it (6.6 and newer), else clsact filters",
    ),
    setting(
        Interfaces,
        "xdp",
        Value,
        "auto|native|generic|off",
        "auto",
        "Where uplinks forward before the kernel makes a socket buffer: in drivers that can (veth pairs excepted), in the driver of every uplink, behind every driver (for tests), or nowhere",
    ),
    setting(
        Flows,
        "flow-entries",
        Value,
        "NUMBER",
        "262144",
        "Flows of each address family that the table is made for, a power of two; 256 bytes each for IPv4 and 512 for IPv6, reserved at the start; with another number the table starts anew",
    ),
    setting(
        Flows,
        "tcp-half-open-timeout",
        Value,
        "TIME",
        "60s",
        "Idle time of a TCP flow that was never established",
    ),
    setting(
        Flows,
        "tcp-established-timeout",
        Value,
        "TIME",
        "24h",
        "Idle time of an established TCP flow",
    ),
    setting(
        Flows,
        "tcp-half-closed-timeout",
        Value,
        "TIME",
        "1h",
        "Idle time of a TCP flow closed by one side",
    ),
    setting(
        Flows,
        "tcp-closed-timeout",
        Value,
        "TIME",
        "60s",
        "Idle time of a TCP flow closed by both sides or reset",
    ),
    setting(
        Flows,
        "udp-unreplied-timeout",
        Value,
        "TIME",
        "30s",
        "Idle time of a UDP flow without a reply",
    ),
    setting(
        Flows,
        "udp-replied-timeout",
        Value,
        "TIME",
        "120s",
        "Idle time of a UDP flow with replies",
    ),
    setting(
        Agent,
        "healthz-bind-address",
        Value,
        "ADDRESS:PORT",
        "0.0.0.0:10256",
        "Where /healthz (for load balancers) and /livez (for liveness probes) answer over HTTP, `none` for nowhere",
    ),
    setting(
        Agent,
        "metrics-bind-address",
        Value,
        "ADDRESS:PORT",
        "127.0.0.1:10249",
        "Where /metrics answers in Prometheus' format, `none` for nowhere",
    ),
    setting(
        Agent,
        "pin-dir",
        Value,
        "DIR",
        "/sys/fs/bpf/steerway",
        "Folder on a BPF file system that keeps programs and tables while no agent runs; one agent a folder",
    ),
    setting(
        Agent,
        "run-dir",
        Value,
        "DIR",
        "",
        "Folder of the agent's lock and socket [default: below /run/steerway, by the pin folder]",
    ),
    setting(
        Agent,
        "log-format",
        Value,
        "text|json",
        "text",
        "Form of the log lines on standard error",
    ),
    setting(
        Agent,
        "log-level",
        Value,
        "LEVEL",
        "info",
        "Least severe lines to log: error, warn, info, debug or trace",
    ),
];

/// Where a value was given; prints as a user would name the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A flag of the command line.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
    /// A field of a configuration file.
    Field {
        /// The field.
        field: String,
        /// The file.
        file: PathBuf,
    },
    /// Nowhere: the setting's default, named by its flag.
    Default(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Field { field, file } => write!(f, "field {field} in {}", file.display()),
            Self::Default(flag) => write!(f, "default of --{flag}"),
        }
    }
}

/// Values of one layer by flag.
pub type Layer = BTreeMap<&'static str, (Place, Vec<String>)>;

/// The merged values of all layers.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Layer,
}

impl Settings {
    /// Merges arguments over environment over file over the defaults of [`SETTINGS`]. A setting's values are never mixed from
    /// two layers.
    pub fn merge(arguments: Layer, environment: Layer, file: Layer) -> Self {
        let mut values: Layer = SETTINGS
            .iter()
            .filter(|s| !s.default.is_empty())
            .map(|s| (s.flag, (Place::Default(s.flag), vec![s.default.to_owned()])))
            .collect();
        values.extend(file);
        values.extend(environment);
        values.extend(arguments);
        Self { values }
    }

    /// Gives a value to a setting that no layer has and that has no default.
    #[must_use]
    pub fn or(mut self, flag: &'static str, value: &str) -> Self {
        self.values
            .entry(flag)
            .or_insert_with(|| (Place::Default(flag), vec![value.to_owned()]));
        self
    }

    /// Place and values of a setting, `None` where nobody gave one and there is no default.
    pub(super) fn get(&self, flag: &str) -> Option<&(Place, Vec<String>)> {
        self.values.get(flag)
    }
}

/// The layer of the environment. A variable that is set but empty counts as unset, so that a manifest may blank it.
pub fn environment(read: impl Fn(&str) -> Option<String>) -> Layer {
    SETTINGS
        .iter()
        .filter_map(|s| {
            let name = s.variable();
            let value = read(&name).filter(|v| !v.is_empty())?;
            Some((s.flag, (Place::Variable(name), vec![value])))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_flag() {
        let setting = Setting::by_flag("nodeport-addresses").unwrap();
        assert_eq!(setting.variable(), "STEERWAY_NODEPORT_ADDRESSES");
        assert_eq!(setting.field(), "nodeportAddresses");
        assert_eq!(
            Setting::by_field("nodeportAddresses").unwrap().flag,
            "nodeport-addresses"
        );
    }

    #[test]
    fn every_flag_variable_and_field_is_unique() {
        let mut flags = std::collections::BTreeSet::new();
        for s in SETTINGS {
            assert!(flags.insert(s.flag), "--{} twice", s.flag);
            assert!(
                flags.insert(Box::leak(s.variable().into_boxed_str())),
                "{} twice",
                s.variable()
            );
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let layer = environment(|name| match name {
            "STEERWAY_FOLDER" => Some(String::new()),
            "STEERWAY_NODE_NAME" => Some("n1".to_owned()),
            _ => None,
        });
        assert_eq!(layer.keys().copied().collect::<Vec<_>>(), ["node-name"]);
    }
}
