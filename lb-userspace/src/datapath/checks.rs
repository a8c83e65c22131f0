//! What this kernel, these rights and this node's settings allow, and what to do about each lack: the body of `steerway check`.
//!
//! Each check is a fact with a judgement; none changes anything, and one that cannot be made says so. The port checks are
//! pure functions over texts of /proc/sys (Documentation/networking/ip-sysctl.rst).

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::attach::{Finding, Hook, Left, method_name};
use super::clock::Clock;
use super::interfaces::{InterfaceTable, Role};
use super::load::Shape;
use super::probe::Features;
use super::sysctl;

/// NodePorts unless the API server is told otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but look.
    Warn,
    /// Steerway cannot work like this.
    Fail,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Judgement.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warn,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Fail,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

/// What the checks depend on.
#[derive(Clone, Debug)]
pub struct CheckInput<'a> {
    /// Ports for SNAT.
    pub snat_ports: RangeInclusive<u16>,
    /// Forms of the tables, as [`super::load::wanted_shapes`] tells; empty leaves the memory check out.
    pub tables: BTreeMap<String, Shape>,
    /// Interfaces with their roles.
    pub interfaces: &'a InterfaceTable,
    /// What stands at XDP of each uplink.
    pub xdp: Vec<(String, Finding)>,
    /// An uplink without XDP is an error, as the settings have it.
    pub xdp_insists: bool,
}

/// Makes every check, in the order in which they matter. Blocks for about 100 ms.
pub fn run(input: &CheckInput<'_>) -> Vec<Check> {
    let mut checks = vec![rights(effective_capabilities())];
    let features = Features::probe();
    checks.extend(kernel(features));
    checks.push(clock());
    checks.extend(memory(&input.tables));
    checks.extend(interfaces(input.interfaces));
    checks.extend(xdp(&input.xdp, input.xdp_insists));
    checks.push(reverse_path(input.interfaces));
    checks.extend(forwarding());
    checks.push(local_ports(
        &input.snat_ports,
        &sysctl::read("net/ipv4/ip_local_port_range").unwrap_or_default(),
        &sysctl::read("net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
    ));
    checks.push(snat_and_node_ports(&input.snat_ports));
    checks.push(netfilter(&input.snat_ports));
    checks
}

/// Bits of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// The capabilities that the agent needs and this process lacks. CAP_SYS_ADMIN holds the two of BPF.
pub fn lacking_capabilities() -> Vec<&'static str> {
    lacking(effective_capabilities())
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    let needed = [
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
    ];
    let lacking = needed.into_iter().filter(|(_, there)| !there);
    lacking.map(|(name, _)| name).collect()
}

fn rights(effective: u64) -> Check {
    let lacking = lacking(effective);
    if lacking.is_empty() {
        Check::ok("rights", "programs may be loaded and attached")
    } else {
        Check::fail(
            "rights",
            format!("missing: {}", lacking.join(", ")),
            "run as root, or give what is missing",
        )
    }
}

fn kernel(features: Features) -> Vec<Check> {
    let required = |name, there, what: &str| {
        if there {
            Check::ok(name, "there")
        } else {
            Check::fail(name, "missing", format!("use {what} or newer"))
        }
    };
    let jit = sysctl::read("net/core/bpf_jit_enable").unwrap_or_else(|_| "1".to_owned());
    vec![
        required("mapped arrays", features.mappable_arrays, "Linux 5.15"),
        required("bpf_redirect_neigh", features.redirect_neigh, "Linux 5.15"),
        if features.tcx {
            Check::ok("attachment", "tcx links")
        } else {
            Check::ok("attachment", "clsact filters (tcx needs Linux 6.6)")
        },
        Check::ok(
            "checksum flag for IPv6",
            if features.csum_ipv6 {
                "there"
            } else {
                "missing; done without"
            },
        ),
        if features.fib_source {
            Check::ok("source of routes", "told by the kernel")
        } else {
            let detail = "not told by the kernel (Linux 6.7): SNAT uses an address of the way out, or the node's";
            Check::warn(
                "source of routes",
                detail,
                "check nodes whose interfaces have several addresses",
            )
        },
        if jit == "0" {
            let remedy = "sysctl -w net.core.bpf_jit_enable=1";
            Check::warn("JIT compiler", "off: every packet costs several times as much", remedy)
        } else {
            Check::ok("JIT compiler", "on")
        },
    ]
}

fn clock() -> Check {
    match Clock::open().and_then(|clock| clock.measure_hz()) {
        Ok(hz) => Check::ok("clock", format!("{hz} jiffies a second")),
        Err(error) => Check::fail(
            "clock",
            error.to_string(),
            "see rights; else report the kernel's configuration",
        ),
    }
}

fn memory(tables: &BTreeMap<String, Shape>) -> Option<Check> {
    if tables.is_empty() {
        return None;
    }
    let bytes: u64 = tables.values().map(table_bytes).sum();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Some(judge_memory(bytes, available_bytes(&meminfo), group_limit()))
}

fn judge_memory(bytes: u64, available: Option<u64>, limit: Option<u64>) -> Check {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let detail = format!("tables take {} MiB, charged to the agent's memory limit", mib(bytes));
    let remedy = "lower --flow-entries, or give the agent more memory";
    let room = available.into_iter().chain(limit).min();
    match room {
        Some(room) if bytes > room => Check::fail("memory", format!("{detail}; {} MiB are there", mib(room)), remedy),
        Some(room) if bytes > room / 2 => {
            Check::warn("memory", format!("{detail}; {} MiB are there", mib(room)), remedy)
        }
        Some(_) | None => Check::ok("memory", detail),
    }
}

/// Memory of a table as the kernel allocates it when it is created (kernel/bpf/{arraymap,hashtab}.c); an estimate for hashes.
pub fn table_bytes(shape: &Shape) -> u64 {
    // `enum bpf_map_type`.
    const HASH: u32 = 1;
    const LRU_HASH: u32 = 9;
    const PERCPU_ARRAY: u32 = 6;
    const LPM_TRIE: u32 = 11;
    const ELEMENT_OVERHEAD: u64 = 64;
    let round = |bytes: u32| u64::from(bytes).next_multiple_of(8);
    let element = match shape.map_type {
        HASH | LRU_HASH => round(shape.key_size) + round(shape.value_size) + ELEMENT_OVERHEAD,
        // Allocated element by element.
        LPM_TRIE => return 0,
        PERCPU_ARRAY => round(shape.value_size) * processors(),
        _ => round(shape.value_size),
    };
    element * u64::from(shape.max_entries)
}

fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

/// The memory limit of our control group, version 2 or 1, where one is set.
fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let file: PathBuf = match controllers {
            "" => Path::new("/sys/fs/cgroup").join(path).join("memory.max"),
            "memory" => Path::new("/sys/fs/cgroup/memory")
                .join(path)
                .join("memory.limit_in_bytes"),
            _ => return None,
        };
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

fn interfaces(table: &InterfaceTable) -> Vec<Check> {
    let names = |role| {
        table
            .with_role(role)
            .map(|found| found.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut checks = Vec::new();
    if table.with_role(Role::Uplink).next().is_none() {
        let detail = "none: no default route, and no interface with an address of the Node";
        checks.push(Check::warn(
            "uplinks",
            detail,
            "wait for the network, or name the interfaces with --uplink",
        ));
    } else {
        checks.push(Check::ok("uplinks", names(Role::Uplink)));
    }
    let pods = table.with_role(Role::Pod).count();
    checks.push(Check::ok("pods", format!("{pods} links of pods")));
    let unsupported: Vec<&str> = table
        .with_role(Role::Tunnel)
        .filter(|found| found.metadata)
        .map(|found| found.name.as_str())
        .collect();
    if unsupported.is_empty() {
        checks.push(Check::ok(
            "tunnels",
            Some(names(Role::Tunnel))
                .filter(|text| !text.is_empty())
                .unwrap_or("none".into()),
        ));
    } else {
        let detail = format!(
            "{} take their far end from each packet's metadata",
            unsupported.join(", ")
        );
        let remedy = "backends behind them are not reached by traffic from outside; use per-tunnel far ends or routes";
        checks.push(Check::warn("tunnels", detail, remedy));
    }
    checks
}

fn xdp(uplinks: &[(String, Finding)], insists: bool) -> Option<Check> {
    let mode = |hook: &Hook| method_name(*hook, None);
    let told: Vec<String> = uplinks
        .iter()
        .map(|(name, finding)| match finding {
            Finding::Runs(hook) => format!("{name}: {}, ours", mode(hook)),
            Finding::Wanted(hook) => format!("{name}: nothing yet, an agent asks for {}", mode(hook)),
            Finding::Left(left) => format!("{name}: tc alone, because {left}"),
            Finding::Told(why) => format!("{name}: tc alone, because {why}, says the agent"),
            Finding::Taken => format!("{name}: tc alone, because {}", Left::Taken),
        })
        .collect();
    let told = told.join("; ");
    let without = |(_, finding): &(String, Finding)| matches!(finding, Finding::Left(_) | Finding::Told(_));
    if told.is_empty() {
        None
    } else if uplinks.iter().any(|(_, finding)| *finding == Finding::Taken) {
        Some(Check::warn("XDP", told, Left::Taken.fix()))
    } else if insists && uplinks.iter().any(without) {
        Some(Check::warn("XDP", told, Left::RELAX))
    } else {
        Some(Check::ok("XDP", told))
    }
}

/// Works with every value; told because it is the first thing that people ask.
fn reverse_path(table: &InterfaceTable) -> Check {
    let value = |name: &str| {
        sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter"))
            .ok()
            .and_then(|text| text.parse::<u8>().ok())
            .unwrap_or(0)
    };
    let all = value("all");
    let hooked = table.interfaces.iter().filter(|found| found.role != Role::Unhooked);
    let strict: Vec<&str> = hooked
        .filter(|found| all.max(value(&found.name)) == 1)
        .map(|found| found.name.as_str())
        .collect();
    if strict.is_empty() {
        Check::ok("rp_filter", format!("all={all}; strict nowhere"))
    } else {
        Check::ok(
            "rp_filter",
            format!("all={all}; strict on {}, which works", strict.join(", ")),
        )
    }
}

fn forwarding() -> Vec<Check> {
    let check = |name, key: &str, setting: &str| match sysctl::read(key).as_deref() {
        Ok("0") => Check::warn(
            name,
            "off: traffic from outside does not reach backends on other nodes, nor pods each other",
            format!("sysctl -w {setting}=1"),
        ),
        Ok(_) => Check::ok(name, "on"),
        Err(_) => Check::ok(name, "this kernel runs without it"),
    };
    vec![
        check("IPv4 forwarding", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        check(
            "IPv6 forwarding",
            "net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ),
    ]
}

/// A port that a local process connects from must not be given to a SNATed flow, nor be a NodePort.
fn local_ports(snat: &RangeInclusive<u16>, local: &str, reserved: &str) -> Check {
    const NAME: &str = "local ports";
    let mut bounds = local.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else {
        return Check::warn(NAME, format!("ip_local_port_range is {local:?}"), "");
    };
    let reserved = ranges(reserved);
    let hit = |range: &RangeInclusive<u16>| {
        let (from, to) = (low.max(*range.start()), high.min(*range.end()));
        (from..=to).any(|port| !reserved.iter().any(|range| range.contains(&port)))
    };
    let both = [(snat, "SNAT"), (&NODE_PORTS, "NodePorts")];
    let hits: Vec<String> = both
        .iter()
        .filter(|(range, _)| hit(range))
        .map(|(range, what)| format!("{what} ({}-{})", range.start(), range.end()))
        .collect();
    if hits.is_empty() {
        return Check::ok(NAME, format!("{low}-{high}, apart from SNAT and NodePorts"));
    }
    let list: Vec<String> = both
        .iter()
        .map(|(range, _)| format!("{}-{}", range.start(), range.end()))
        .collect();
    Check::warn(
        NAME,
        format!(
            "local processes connect from {low}-{high}, which overlaps {}",
            hits.join(" and ")
        ),
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", list.join(",")),
    )
}

/// Reads `8080,9000-9100`.
fn ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}

fn snat_and_node_ports(snat: &RangeInclusive<u16>) -> Check {
    let text = format!("{}-{}", snat.start(), snat.end());
    if snat.start() > NODE_PORTS.end() || snat.end() < NODE_PORTS.start() {
        Check::ok("SNAT ports", text)
    } else {
        Check::warn(
            "SNAT ports",
            format!("{text} overlap NodePorts"),
            "choose others with --snat-ports",
        )
    }
}

/// Masquerading keeps a client's port where it is free to its knowledge, and it knows nothing of our flows.
fn netfilter(snat: &RangeInclusive<u16>) -> Check {
    if Path::new("/sys/module/nf_nat").exists() {
        let detail = format!(
            "netfilter's NAT is loaded; its masquerading may choose ports of {}-{}",
            snat.start(),
            snat.end()
        );
        Check::warn(
            "netfilter NAT",
            detail,
            "give masquerade rules `to :32768-60999` (nft) or `--to-ports` (iptables)",
        )
    } else {
        Check::ok("netfilter NAT", "not loaded as a module")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports_must_not_be_ours_unless_reserved() {
        let snat = 16384..=29999;
        for (local, reserved, verdict) in [
            ("32768\t60999", "", Verdict::Ok),
            ("1024\t65535", "", Verdict::Warn),
            ("1024 65535", "16384-29999,30000-32767", Verdict::Ok),
            ("1024 65535", "16384-29999", Verdict::Warn),
            ("29999 29999", "8080,29999", Verdict::Ok),
            ("32767 60999", "", Verdict::Warn),
            ("", "", Verdict::Warn),
        ] {
            assert_eq!(
                local_ports(&snat, local, reserved).verdict,
                verdict,
                "{local} {reserved}"
            );
        }
        let check = local_ports(&snat, "1024 65535", "");
        assert_eq!(
            check.remedy,
            "sysctl -w net.ipv4.ip_local_reserved_ports=16384-29999,30000-32767"
        );
    }

    #[test]
    fn snat_ports_must_not_be_node_ports() {
        assert_eq!(snat_and_node_ports(&(16384..=29999)).verdict, Verdict::Ok);
        assert_eq!(snat_and_node_ports(&(29000..=30000)).verdict, Verdict::Warn);
        assert_eq!(snat_and_node_ports(&(32768..=40000)).verdict, Verdict::Ok);
    }

    #[test]
    fn rights_name_what_is_missing() {
        let bits = |bits: &[u32]| bits.iter().fold(0_u64, |all, bit| all | 1 << bit);
        assert_eq!(rights(bits(&[CAP_NET_ADMIN, CAP_SYS_ADMIN])).verdict, Verdict::Ok);
        assert_eq!(
            rights(bits(&[CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON])).verdict,
            Verdict::Ok
        );
        let without = |bits| lacking(bits).join(" ");
        assert_eq!(without(bits(&[CAP_BPF, CAP_PERFMON])), "CAP_NET_ADMIN");
        assert_eq!(without(bits(&[CAP_NET_ADMIN, CAP_PERFMON])), "CAP_BPF");
        assert_eq!(without(bits(&[CAP_NET_ADMIN, CAP_BPF])), "CAP_PERFMON");
        assert_eq!(without(0), "CAP_NET_ADMIN CAP_BPF CAP_PERFMON");
        assert_eq!(rights(bits(&[CAP_SYS_ADMIN])).detail, "missing: CAP_NET_ADMIN");
    }

    #[test]
    fn xdp_is_told_with_the_reason_and_its_lack_is_wrong_only_where_it_is_insisted_on() {
        let found = |finding: &Finding, insists| xdp(&[("eth0".to_owned(), finding.clone())], insists);
        let no_driver = Left::NoDriver.to_string();
        for (finding, detail, [relaxed, insisting]) in [
            (Finding::Runs(Hook::Xdp), "eth0: native, ours", [Verdict::Ok; 2]),
            (
                Finding::Wanted(Hook::XdpGeneric),
                "eth0: nothing yet, an agent asks for generic",
                [Verdict::Ok; 2],
            ),
            (
                Finding::Left(Left::NoEthernet),
                "eth0: tc alone, because its packets have no Ethernet header",
                [Verdict::Ok, Verdict::Warn],
            ),
            (
                Finding::Told(no_driver),
                "eth0: tc alone, because its driver has no native XDP, says the agent",
                [Verdict::Ok, Verdict::Warn],
            ),
            (
                Finding::Taken,
                "eth0: tc alone, because somebody else's XDP program runs there, and is left alone",
                [Verdict::Warn; 2],
            ),
        ] {
            for (insists, verdict) in [(false, relaxed), (true, insisting)] {
                let check = found(&finding, insists).expect("a check of an uplink");
                assert_eq!((check.detail.as_str(), check.verdict), (detail, verdict), "{insists}");
                assert_eq!(check.verdict == Verdict::Ok, check.remedy.is_empty(), "{check:?}");
            }
        }
        assert_eq!(xdp(&[], true), None);
    }

    #[test]
    fn tables_must_fit_into_memory() {
        let mib = 1 << 20;
        assert_eq!(judge_memory(100 * mib, Some(1000 * mib), None).verdict, Verdict::Ok);
        assert_eq!(judge_memory(100 * mib, Some(150 * mib), None).verdict, Verdict::Warn);
        assert_eq!(
            judge_memory(100 * mib, Some(1000 * mib), Some(64 * mib)).verdict,
            Verdict::Fail
        );
        assert_eq!(judge_memory(100 * mib, None, None).verdict, Verdict::Ok);
    }

    #[test]
    fn the_memory_of_the_default_flow_table_is_64_mib() {
        let shape = Shape {
            map_type: 2,
            key_size: 4,
            value_size: 256,
            max_entries: 1 << 18,
            flags: 0x400,
        };
        assert_eq!(table_bytes(&shape), 64 << 20);
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            available_bytes("MemTotal: 5 kB\nMemAvailable:    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(available_bytes(""), None);
    }
}
