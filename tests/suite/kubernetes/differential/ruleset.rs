//! kube-proxy's side: its nftables ruleset, walked as the kernel would for a new flow.
//!
//! Known is what kube-proxy 1.36 writes; anything else is an error that shows the rule, so that nothing is passed over in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use super::{Admitted, Answer, Class, Frontend};

/// Both tables.
pub(super) struct Ruleset {
    tables: [Table; 2],
}

/// The table of one family.
#[derive(Default)]
struct Table {
    /// Elements of each verdict map: what is matched, and the verdict.
    maps: BTreeMap<String, BTreeMap<Key, Value>>,
    /// Time-outs of sets, in seconds.
    timeouts: BTreeMap<String, u64>,
    /// The statements of each chain's rules.
    chains: BTreeMap<String, Vec<Vec<Value>>>,
}

/// An element of a map: its words, the address not among them for NodePorts.
type Key = Vec<String>;

/// What a walk through the chains of one frontend ends with.
#[derive(Default)]
struct Walk {
    endpoints: BTreeSet<SocketAddr>,
    affinity: Option<u64>,
}

impl Ruleset {
    /// Reads what `nft -j list table` printed for both families.
    pub(super) fn of(texts: [Value; 2]) -> Result<Self, String> {
        let [v4, v6] = texts;
        Ok(Self {
            tables: [Table::of(&v4)?, Table::of(&v6)?],
        })
    }

    /// What becomes of a new flow.
    pub(super) fn answer(&self, frontend: &Frontend, class: Class) -> Answer {
        let table = self.table(frontend);
        let (services, without) = match frontend.address {
            Some(_) => ("service-ips", "no-endpoint-services"),
            None => ("service-nodeports", "no-endpoint-nodeports"),
        };
        let key = key(frontend);
        if let Some(verdict) = table.element(services, &key) {
            let mut walk = Walk::default();
            if let Some(chain) = target(verdict) {
                table.walk(chain, class, &mut walk);
            }
            // A flow that got an endpoint has another destination when the other map is asked.
            if !walk.endpoints.is_empty() {
                return Answer::Endpoints(walk.endpoints, walk.affinity);
            }
        }
        match table.element(without, &key) {
            Some(verdict) if target(verdict) == Some("reject-chain") => Answer::Refused,
            Some(verdict) if verdict.get("drop").is_some() => Answer::Dropped,
            Some(verdict) => panic!("a verdict of kube-proxy that is not known: {verdict}"),
            None => Answer::Untouched,
        }
    }

    /// The sources that are not dropped before all else.
    pub(super) fn admitted(&self, frontend: &Frontend) -> Admitted {
        let table = self.table(frontend);
        let chain = target(table.element("firewall-ips", &key(frontend))?)?;
        let rules = table.chains.get(chain).unwrap_or_else(|| panic!("no chain {chain}"));
        let [rule] = rules.as_slice() else {
            panic!("{chain} has other rules than one: {rules:?}")
        };
        let matched = &rule[0]["match"];
        assert!(
            matched["op"] == "!=" && matched["left"]["payload"]["field"] == "saddr" && rule[1].get("drop").is_some(),
            "{chain} is not known: {rule:?}"
        );
        let ranges: Vec<IpNet> = match matched["right"]["set"].as_array() {
            Some(set) => set.iter().map(range).collect(),
            None => vec![range(&matched["right"])],
        };
        Some(IpNet::aggregate(&ranges).into_iter().collect())
    }

    /// Everything that is captured or refused, the API server's own Service aside.
    pub(super) fn frontends(&self) -> Vec<Frontend> {
        let mut all = Vec::new();
        for (table, v6) in self.tables.iter().zip([false, true]) {
            for name in [
                "service-ips",
                "no-endpoint-services",
                "service-nodeports",
                "no-endpoint-nodeports",
            ] {
                let elements = table.maps.get(name).into_iter().flatten();
                all.extend(elements.map(|(key, _)| frontend(key, v6)));
            }
        }
        all
    }

    fn table(&self, frontend: &Frontend) -> &Table {
        &self.tables[usize::from(frontend.v6)]
    }
}

impl Table {
    fn of(text: &Value) -> Result<Self, String> {
        let mut table = Self::default();
        for object in text["nftables"].as_array().ok_or("no list of nft")? {
            let name = |kind: &str| object[kind]["name"].as_str().unwrap_or_default().to_owned();
            if let Some(map) = object.get("map") {
                let elements = map["elem"].as_array().into_iter().flatten();
                let elements = elements.map(|element| (words(&element[0]), element[1].clone()));
                table.maps.insert(name("map"), elements.collect());
            } else if let Some(timeout) = object.get("set").and_then(|set| set["timeout"].as_u64()) {
                table.timeouts.insert(name("set"), timeout);
            } else if let Some(rule) = object.get("rule") {
                let chain = rule["chain"].as_str().unwrap_or_default().to_owned();
                let statements = rule["expr"].as_array().cloned().unwrap_or_default();
                table.chains.entry(chain).or_default().push(statements);
            }
        }
        Ok(table)
    }

    fn element(&self, map: &str, key: &Key) -> Option<&Value> {
        self.maps.get(map)?.get(key)
    }

    /// Goes through a chain; true if it ended by a verdict.
    fn walk(&self, chain: &str, class: Class, walk: &mut Walk) -> bool {
        let rules = self.chains.get(chain).map(Vec::as_slice).unwrap_or_default();
        rules.iter().any(|rule| self.rule(rule, class, walk))
    }

    /// Follows a rule; true if it ended the walk.
    fn rule(&self, rule: &[Value], class: Class, walk: &mut Walk) -> bool {
        for statement in rule {
            if let Some(matched) = statement.get("match") {
                if !self.matches(matched, class, walk) {
                    return false;
                }
            } else if let Some(chain) = statement["goto"]["target"].as_str() {
                self.walk(chain, class, walk);
                return true;
            } else if let Some(choices) = statement["vmap"]["data"]["set"].as_array() {
                for choice in choices {
                    let chain = target(&choice[1]).unwrap_or_else(|| panic!("a choice that is not known: {choice}"));
                    self.walk(chain, class, walk);
                }
                return true;
            } else if let Some(translation) = statement.get("dnat") {
                walk.endpoints.extend(destinations(translation));
                return true;
            } else {
                // Marks for masquerading, and the memory of session affinity, choose nothing.
                let known = ["mangle", "set"].iter().any(|name| statement.get(name).is_some());
                assert!(known, "a statement of kube-proxy that is not known: {statement}");
            }
        }
        false
    }

    fn matches(&self, matched: &Value, class: Class, walk: &mut Walk) -> bool {
        let (left, right) = (&matched["left"], &matched["right"]);
        if left["meta"]["key"] == "l4proto" {
            return true;
        }
        if left["fib"]["result"] == "type" && right == "local" {
            return class == Class::Node;
        }
        if left["payload"]["field"] == "saddr" {
            if let Some(set) = right.as_str().and_then(|text| text.strip_prefix("@affinity-")) {
                walk.affinity = self.timeouts.get(&format!("affinity-{set}")).copied();
                return false;
            }
            // The clusterCIDR, which is how pods are told.
            if right.get("prefix").is_some() && matched["op"] == "==" {
                return class == Class::Pod;
            }
        }
        panic!("a match of kube-proxy that is not known: {matched}")
    }
}

fn key(frontend: &Frontend) -> Key {
    let address = frontend.address.map(|address| address.to_string());
    let rest = [frontend.protocol.to_owned(), frontend.port.to_string()];
    address.into_iter().chain(rest).collect()
}

fn frontend(key: &Key, v6: bool) -> Frontend {
    let (address, protocol, port) = match key.as_slice() {
        [address, protocol, port] => (Some(address), protocol, port),
        [protocol, port] => (None, protocol, port),
        _ => panic!("an element of kube-proxy that is not known: {key:?}"),
    };
    let protocols = ["tcp", "udp", "sctp"];
    Frontend {
        address: address.map(|address| address.parse().expect("an address of nft")),
        v6,
        port: port.parse().expect("a port of nft"),
        protocol: protocols
            .into_iter()
            .find(|name| name == protocol)
            .expect("a protocol of nft"),
    }
}

/// The words of an element, with or without a comment.
fn words(element: &Value) -> Key {
    let value = element.pointer("/elem/val").unwrap_or(element);
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value["concat"].as_array() {
        Some(parts) => parts.iter().map(word).collect(),
        None => vec![word(value)],
    }
}

fn target(verdict: &Value) -> Option<&str> {
    verdict["goto"]["target"].as_str()
}

fn range(value: &Value) -> IpNet {
    if let Some(prefix) = value.get("prefix") {
        let address: IpAddr = prefix["addr"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address of nft");
        let length = prefix["len"]
            .as_u64()
            .and_then(|len| u8::try_from(len).ok())
            .expect("a length of nft");
        return IpNet::new(address, length).expect("a range of nft");
    }
    let address: Option<IpAddr> = value.as_str().and_then(|text| text.parse().ok());
    IpNet::from(address.unwrap_or_else(|| panic!("a range that is not known: {value}")))
}

/// Where a translation may lead: one endpoint, or a map of them.
fn destinations(translation: &Value) -> Vec<SocketAddr> {
    let socket = |address: &Value, port: &Value| {
        let address = address
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address of nft");
        let port = port
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .expect("a port of nft");
        SocketAddr::new(address, port)
    };
    match translation["addr"]["map"]["data"]["set"].as_array() {
        Some(elements) => elements
            .iter()
            .map(|element| socket(&element[1]["concat"][0], &element[1]["concat"][1]))
            .collect(),
        None => vec![socket(&translation["addr"], &translation["port"])],
    }
}
