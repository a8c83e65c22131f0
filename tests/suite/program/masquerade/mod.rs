//! kube-proxy's golden table (TestInternalExternalMasquerade; specification section 3.2): 27 flows in four settings, 108 rows.
//!
//! Each row says which endpoints a flow may reach and whether its source is masqueraded. The flows run on the kernel's programs and on
//! the host's pipeline, which have to agree. Endpoints and verdicts have to be kube-proxy's; where we differ, [`DIFFERENCES`] says so with the reason, and
//! the test fails for a difference that is not listed and for a listed one that is none. Our programs have neither of the two
//! settings: what a pod is follows from its device, and sources are translated where replies need it, nowhere else.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::layout::config;
use lb_tests::objects::{ServiceObject, service, slice};
use lb_tests::packet::Decoded;
use steerway::datapath::load::ProgramName::{LoOut, PodIn, SteerOut, UplinkIn};

use super::World;
use super::case::End;
use super::flow::Transport;
use super::node::{Addresses, NODE};
use super::objects::Objects;
use super::xdp::Place;

use self::table::Differs::{KeepsLocal, KeepsRemote, MasqueradesLocal, MasqueradesRemote, OtherEndpoints};
use self::table::Frontend::{Balancer, ClusterIp, NodePort};
use self::table::Policy::{Cluster, ExternalLocal, InternalLocal};
use self::table::Source::{Node, Outside, Pod};
use self::table::{DIFFERENCES, Differs, Expected, Policy, Row, SETTINGS, TABLE};

/// Flows tried a row: enough to meet both endpoints. Their ports and the seeds are always the same, and so are their endpoints.
const TRIES: u16 = 16;
const PORT: u16 = 80;

impl Policy {
    const ALL: [Self; 3] = [Cluster, ExternalLocal, InternalLocal];

    fn number(self) -> u16 {
        self as u16 + 1
    }

    fn cluster_ip(self, family: Addresses) -> String {
        let number = self.number();
        family
            .pick(&format!("10.96.0.4{number}"), &format!("fd00:96::4{number}"))
            .to_owned()
    }

    fn balancer(self, family: Addresses) -> String {
        let number = self.number();
        family
            .pick(&format!("203.0.113.4{number}"), &format!("2001:db8:5::4{number}"))
            .to_owned()
    }

    fn node_port(self) -> u16 {
        30_000 + self.number()
    }

    fn service(self, family: Addresses) -> ServiceObject {
        let service = service("ns1", &format!("svc{}", self.number()))
            .cluster_ip(&self.cluster_ip(family))
            .load_balancer_ip(&self.balancer(family))
            .port("p80", PORT, "TCP")
            .node_port(self.node_port());
        match self {
            Cluster => service,
            ExternalLocal => service.external_local().health_check_node_port(30_900),
            InternalLocal => service.internal_local(),
        }
    }
}

fn objects(family: Addresses) -> Objects {
    let slice_of = |policy: Policy| {
        let name = format!("svc{}", policy.number());
        slice("ns1", &format!("{name}-1"), &name)
            .address_type(family.pick("IPv4", "IPv6"))
            .port("p80", PORT)
            .endpoint(family.local_pod())
            .node(NODE)
            .ready(true)
            .endpoint(family.remote_pod())
            .node("node-b")
            .ready(true)
    };
    Objects {
        services: Policy::ALL.map(|policy| policy.service(family)).to_vec(),
        slices: Policy::ALL.map(slice_of).to_vec(),
    }
}

/// What becomes of the flows of a row: for each endpoint that they reach, whether the client's address and port stay. From outside
/// they come once to tc alone and once to XDP, where the same becomes of them.
fn observe(world: &World, family: Addresses, row: Row) -> BTreeMap<IpAddr, bool> {
    let hook = match row {
        (Pod, ..) => PodIn,
        (Outside, ..) => UplinkIn,
        (Node, NodePort, _) => LoOut,
        (Node, ClusterIp | Balancer, _) => SteerOut,
    };
    let reached = observe_at(Place::Tc(hook), world, family, row);
    if hook == UplinkIn {
        assert_eq!(observe_at(Place::Xdp, world, family, row), reached, "{row:?} at XDP");
    }
    reached
}

fn observe_at(
    place: Place,
    world: &World,
    family: Addresses,
    (source, frontend, policy): Row,
) -> BTreeMap<IpAddr, bool> {
    let client = match source {
        Pod => family.pod(),
        Node => family.node(),
        Outside => family.client(),
    };
    let address = |text: String| text.parse().expect("an address");
    let to: (IpAddr, u16) = match frontend {
        ClusterIp => (address(policy.cluster_ip(family)), PORT),
        Balancer => (address(policy.balancer(family)), PORT),
        NodePort => (family.node(), policy.node_port()),
    };
    world.forget_flows();
    let mut reached = BTreeMap::new();
    for number in 0..TRIES {
        let from = (client, 40_000 + number);
        let packet = Transport::Tcp.packet(from, to, "S");
        let outcome = place
            .both(world, &packet)
            .unwrap_or_else(|wrong| panic!("{place:?} {source:?} {frontend:?} {policy:?}: {wrong}"));
        assert_ne!(
            outcome.end,
            End::Drop,
            "{source:?} {frontend:?} {policy:?}: {outcome:?}"
        );
        let decoded = Decoded::frame(&outcome.frame).expect("a packet");
        // The node's own address tells nothing of a client on the node; its port does.
        let kept = decoded.ip.source == from.0 && (source != Node || decoded.source_port() == Some(from.1));
        let before = reached.insert(decoded.ip.destination, kept);
        assert!(
            before.is_none_or(|before| before == kept),
            "{source:?} {frontend:?} {policy:?}: not the same for every flow"
        );
    }
    reached
}

/// In what an observation differs from kube-proxy's answer. Endpoints that are neither set fail the test.
fn differences(reached: &BTreeMap<IpAddr, bool>, expected: Expected, family: Addresses) -> BTreeSet<Differs> {
    let (local, remote) = (family.local_pod(), family.remote_pod());
    let mut found = BTreeSet::new();
    let allowed: BTreeSet<IpAddr> = if expected.local_only {
        [local].into()
    } else {
        [local, remote].into()
    };
    let met: BTreeSet<IpAddr> = reached.keys().copied().collect();
    if met != allowed {
        assert_eq!(
            met,
            [local, remote].into(),
            "neither the local nor the cluster's endpoints"
        );
        found.insert(OtherEndpoints);
    }
    let ways = [
        (local, KeepsLocal, MasqueradesLocal),
        (remote, KeepsRemote, MasqueradesRemote),
    ];
    for (endpoint, keeps, masquerades) in ways {
        match reached.get(&endpoint) {
            Some(true) if expected.masquerade => found.insert(keeps),
            Some(false) if !expected.masquerade => found.insert(masquerades),
            _ => false,
        };
    }
    found
}

#[test]
fn all_27_flows_reach_kube_proxys_endpoints_and_differ_from_it_only_where_listed() {
    let rows: BTreeSet<Row> = TABLE.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows.len(), 27, "a flow stands twice in the table");
    let mut listed = BTreeMap::new();
    for difference in DIFFERENCES {
        assert!(!difference.reason.is_empty());
        for row in difference.rows {
            for setting in difference.settings {
                let differs: BTreeSet<_> = difference.differs.iter().copied().collect();
                let before = listed.insert((*row, *setting), differs);
                assert!(before.is_none(), "{row:?} {setting:?} is listed twice");
            }
        }
    }
    let mut world = World::shared();
    for family in Addresses::BOTH {
        world.clear();
        world.publish(&objects(family), &[(config::PORT_COUNT, 1000)]);
        let mut found = BTreeMap::new();
        for (row, answers) in TABLE {
            let reached = observe(&world, family, row);
            for (setting, expected) in SETTINGS.into_iter().zip(answers) {
                let differs = differences(&reached, expected, family);
                if !differs.is_empty() {
                    found.insert((row, setting), differs);
                }
            }
        }
        for (key, differs) in &found {
            assert_eq!(listed.get(key), Some(differs), "{key:?} differs, but not as listed");
        }
        for key in listed.keys() {
            assert!(found.contains_key(key), "{key:?} is listed, but does not differ");
        }
    }
}
