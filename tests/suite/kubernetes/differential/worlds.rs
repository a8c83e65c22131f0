//! Random worlds: Services with their slices, valid to the API server, made from a seed alone.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Answer, Answers};

/// The zone of the node that is asked.
pub(super) const NODE_ZONE: &str = "zone-a";
const ZONES: [&str; 3] = [NODE_ZONE, "zone-b", "zone-c"];
const NODES: [&str; 3] = ["node1", "node2", "node3"];
const PORTS: [(&str, u16, &str); 3] = [("http", 80, "TCP"), ("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")];

/// The worlds of a seed.
pub(super) struct Worlds {
    objects: Vec<Value>,
}

impl Worlds {
    /// `count` worlds, of one or two Services each.
    pub(super) fn new(seed: u64, count: u16) -> Self {
        let mut maker = Maker {
            random: Random(seed),
            outside: 0,
            objects: Vec::new(),
        };
        for world in 0..count {
            for letter in ["a", "b"].iter().take(1 + usize::from(maker.random.one_in(2))) {
                maker.service(&format!("w{world}-{letter}"));
            }
        }
        Self { objects: maker.objects }
    }

    /// All objects.
    pub(super) fn objects(&self) -> Vec<Value> {
        self.objects.clone()
    }

    /// Fails unless the worlds have led to every kind of answer often enough for a comparison that means something.
    #[track_caller]
    pub(super) fn assert_varied(&self, answers: &Answers) {
        let count = |wanted: &dyn Fn(&Answer) -> bool| answers.flows.values().filter(|answer| wanted(answer)).count();
        for (what, found) in [
            (
                "endpoints",
                count(&|answer| matches!(answer, Answer::Endpoints(set, None) if set.len() > 1)),
            ),
            (
                "affinity",
                count(&|answer| matches!(answer, Answer::Endpoints(_, Some(_)))),
            ),
            ("refusals", count(&|answer| *answer == Answer::Refused)),
            ("drops", count(&|answer| *answer == Answer::Dropped)),
            ("source ranges", answers.admitted.values().flatten().count()),
        ] {
            assert!(found > 10, "{what}: only {found} in {} objects", self.objects.len());
        }
    }
}

/// Numbers by a fixed rule (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// How the endpoints of a Service are hinted for.
#[derive(Clone, Copy)]
struct Hints {
    /// Not at all, for zones, for zones and nodes.
    how: usize,
    /// The endpoint that has no hint, if there is such a one.
    forgotten: usize,
    /// Which zone the first endpoint is for.
    shift: usize,
}

struct Maker {
    random: Random,
    /// Addresses outside that are taken.
    outside: u16,
    objects: Vec<Value>,
}

impl Maker {
    /// A Service, and slices that are or only look like its own.
    fn service(&mut self, name: &str) {
        const FAMILIES: [&[&str]; 4] = [&["IPv4"], &["IPv6"], &["IPv4", "IPv6"], &["IPv6", "IPv4"]];
        let families = self.random.pick(&FAMILIES);
        let ports: Vec<(&str, u16, &str)> = PORTS.into_iter().take(1 + self.random.below(3)).collect();
        let kind = self.random.pick(&["ClusterIP", "NodePort", "LoadBalancer"]);
        let mut spec = json!({ "type": kind, "ipFamilies": families,
            "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": ports.iter().map(|(name, port, protocol)| json!({ "name": name, "port": port, "protocol": protocol })).collect::<Vec<_>>() });
        if kind == "LoadBalancer" && self.random.one_in(4) {
            spec["allocateLoadBalancerNodePorts"] = false.into();
        }
        let external = (0..self.random.below(3)).map(|_| self.outside()).collect::<Vec<_>>();
        if (kind != "ClusterIP" || !external.is_empty()) && self.random.one_in(2) {
            spec["externalTrafficPolicy"] = "Local".into();
        }
        if !external.is_empty() {
            spec["externalIPs"] = json!(external);
        }
        if self.random.one_in(3) {
            spec["internalTrafficPolicy"] = "Local".into();
        }
        if self.random.one_in(4) {
            let seconds = 60 + self.random.below(10_000);
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
        let mut object =
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" } });
        if kind == "LoadBalancer" {
            if self.random.one_in(2) {
                spec["loadBalancerSourceRanges"] = json!(self.ranges());
            }
            let ingress: Vec<Value> = (0..=self.random.below(3)).map(|_| self.ingress()).collect();
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object["spec"] = spec;
        if self.random.one_in(15) {
            object["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "another" });
        }
        self.objects.push(object);
        let hints = Hints {
            how: self.random.below(3),
            forgotten: self.random.below(16),
            shift: self.random.below(3),
        };
        for number in 0..self.random.below(4) {
            self.slice(name, number, hints);
        }
    }

    /// An address that nothing else has.
    fn outside(&mut self) -> String {
        self.outside += 1;
        if self.random.one_in(2) {
            format!("2001:db8:18::{:x}", self.outside)
        } else {
            let [high, low] = self.outside.to_be_bytes();
            format!("198.18.{high}.{low}")
        }
    }

    fn ingress(&mut self) -> Value {
        let address = self.outside();
        match self.random.below(6) {
            0 => json!({ "ip": address, "ipMode": "Proxy" }),
            1 => json!({ "hostname": "balancer.example" }),
            2 | 3 => json!({ "ip": address }),
            _ => json!({ "ip": address, "ipMode": "VIP" }),
        }
    }

    fn ranges(&mut self) -> Vec<&'static str> {
        // The second is the node's own network, the last admits all.
        const RANGES: [&str; 7] = [
            "192.0.2.0/24",
            "172.31.0.0/24",
            "203.0.113.7/32",
            "2001:db8:2::/64",
            "fd00:31::/64",
            "10.244.0.0/16",
            "0.0.0.0/0",
        ];
        let count = 1 + self.random.below(3);
        let mut ranges = BTreeSet::new();
        for _ in 0..count {
            // The last is rarer.
            let limit = RANGES.len() - usize::from(!self.random.one_in(4));
            ranges.insert(RANGES[self.random.below(limit)]);
        }
        ranges.into_iter().collect()
    }

    fn slice(&mut self, service: &str, number: usize, hints: Hints) {
        let v6 = self.random.one_in(2);
        let mut labels = Map::new();
        labels.insert("kubernetes.io/service-name".to_owned(), service.into());
        if self.random.one_in(15) {
            labels.insert("service.kubernetes.io/headless".to_owned(), "".into());
        }
        let mut ports = Vec::new();
        for (name, port, protocol) in PORTS {
            if !self.random.one_in(5) {
                // A name may stand for other numbers in other slices.
                let target = port + 8000 + self.random.below(2) as u16;
                ports.push(json!({ "name": name, "port": target, "protocol": protocol }));
            }
        }
        let mut used = BTreeSet::new();
        let mut endpoints = Vec::new();
        for _ in 0..self.random.below(5) {
            let host = 1 + self.random.below(6);
            if used.insert(host) {
                endpoints.push(self.endpoint(host, v6, hints));
            }
        }
        self.objects
            .push(json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("{service}-{number}"), "namespace": "default", "labels": labels },
            "addressType": if v6 { "IPv6" } else { "IPv4" }, "ports": ports, "endpoints": endpoints }));
    }

    /// An endpoint whose node, hints and readiness follow from its address, so that slices agree on it but for `terminating`.
    fn endpoint(&mut self, host: usize, v6: bool, hints: Hints) -> Value {
        let node = host % 4;
        let address = if v6 {
            format!("fd00:10:244:{}::{host}", node + 1)
        } else {
            format!("10.244.{}.{host}", node + 1)
        };
        let mut conditions = json!({});
        let terminating = self.random.one_in(3);
        match host {
            1 | 2 => conditions["ready"] = (!terminating).into(),
            3 => conditions["ready"] = false.into(),
            4 => {
                conditions["ready"] = (!terminating).into();
                conditions["serving"] = true.into();
            }
            5 => {
                conditions["ready"] = false.into();
                conditions["serving"] = false.into();
            }
            _ => {}
        }
        if terminating {
            conditions["terminating"] = true.into();
        }
        let mut endpoint = json!({ "addresses": [address], "conditions": conditions });
        if let Some(name) = NODES.get(node) {
            endpoint["nodeName"] = (*name).into();
        }
        if hints.how > 0 && host != hints.forgotten {
            let one = (host + hints.shift) % ZONES.len();
            endpoint["hints"] = json!({ "forZones": [{ "name": ZONES[one] }] });
            if hints.how > 1 {
                endpoint["hints"]["forNodes"] = json!([{ "name": NODES[one] }]);
            }
        }
        endpoint
    }
}
