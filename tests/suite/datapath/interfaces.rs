//! Roles follow the namespace live: links, addresses, routes, peers and the Node's addresses, each within a second.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_tests::netns::Netns;
use steerway::datapath::attach::{Attacher, Hook, Kind, Trust};
use steerway::datapath::interfaces::{Interface, InterfaceTable, InterfaceWatch, Role, Rules};
use tokio::sync::watch;

use super::{POD_LINK, Site, UPLINK, block_in};

/// What the table must follow within.
const LIMIT: Duration = Duration::from_secs(1);

type Tables = watch::Receiver<Arc<InterfaceTable>>;

fn find<'a>(table: &'a InterfaceTable, name: &str) -> Option<&'a Interface> {
    table.interfaces.iter().find(|interface| interface.name == name)
}

fn role(table: &InterfaceTable, name: &str) -> Option<Role> {
    find(table, name).map(|interface| interface.role)
}

/// Waits until the table is as wanted; the time runs from the call, which comes right after the change.
#[track_caller]
fn within<'a>(
    tables: &'a mut Tables,
    what: &'a str,
    mut wanted: impl FnMut(&InterfaceTable) -> bool + 'a,
) -> impl Future + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let result = tokio::time::timeout(LIMIT, tables.wait_for(|table| wanted(table))).await;
        let met = result.is_ok_and(|found| found.is_ok());
        assert!(met, "{caller}: not within {LIMIT:?}: {what}: {:#?}", tables.borrow());
    }
}

async fn follow() -> (watch::Sender<Rules>, InterfaceWatch, Tables) {
    let rules = watch::Sender::new(Rules::default());
    let watch = InterfaceWatch::start(rules.subscribe()).await.expect("the first table");
    let tables = watch.tables();
    (rules, watch, tables)
}

#[test]
fn links_addresses_and_routes_are_followed() {
    let site = Site::new("follow");
    let node = site.node.clone();
    site.block(|| async move {
        let (_rules, _watch, mut tables) = follow().await;
        {
            let table = tables.borrow();
            assert_eq!(table.generation, 1);
            let roles = ["lo", UPLINK, POD_LINK].map(|name| role(&table, name));
            assert_eq!(roles, [Some(Role::Lo), Some(Role::Uplink), Some(Role::Pod)]);
            let up = find(&table, UPLINK).expect("the uplink");
            assert_eq!((up.mtu, up.ethernet, up.up, up.mac.is_some()), (1500, true, true, true));
            assert_eq!(up.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
            assert!(table.local_addresses.contains(&"10.1.0.1".parse().unwrap()));
        }
        node.ip(&format!("link set {UPLINK} mtu 1400"));
        within(&mut tables, "another MTU", |table| table.smallest_mtu() == Some(1400)).await;
        node.ip(&format!("address add 192.0.2.77/24 dev {UPLINK}"));
        let added: IpAddr = "192.0.2.77".parse().unwrap();
        within(&mut tables, "an address", |table| {
            table.local_addresses.contains(&added)
        })
        .await;
        node.ip(&format!("address del 192.0.2.77/24 dev {UPLINK}"));
        within(&mut tables, "no address", |table| {
            !table.local_addresses.contains(&added)
        })
        .await;
        node.ip("route del default");
        within(&mut tables, "no uplink", |table| role(table, UPLINK) == Some(Role::Pod)).await;
        node.ip("route add default via 192.0.2.2");
        within(&mut tables, "an uplink", |table| {
            role(table, UPLINK) == Some(Role::Uplink)
        })
        .await;
        // The kernel removes the route without telling.
        node.ip(&format!("link set {UPLINK} down"));
        within(&mut tables, "no uplink", |table| role(table, UPLINK) == Some(Role::Pod)).await;
        node.ip(&format!("link set {UPLINK} name wan0"));
        within(&mut tables, "a new name", |table| {
            find(table, "wan0").is_some() && find(table, UPLINK).is_none()
        })
        .await;
        let generation = tables.borrow().generation;
        assert!(generation > 7, "{generation}");
    });
}

#[test]
fn a_peer_that_leaves_makes_a_pod_and_its_end_removes_it() {
    let (node, pod) = (Netns::new("leave"), Netns::new("leave-pod"));
    let inside = node.clone();
    block_in(&node, || async move {
        let (_rules, _watch, mut tables) = follow().await;
        inside.ip("link add host0 type veth peer name guest0");
        within(&mut tables, "a pair", |table| {
            role(table, "host0") == Some(Role::Unhooked)
        })
        .await;
        // Both ends are down, so that no event about host0 follows.
        inside.ip(&format!("link set guest0 netns {}", pod.name()));
        within(&mut tables, "a pod", |table| role(table, "host0") == Some(Role::Pod)).await;
        pod.ip("link del guest0");
        within(&mut tables, "no pod", |table| find(table, "host0").is_none()).await;
        inside.ip(&format!(
            "link add host1 type veth peer name guest1 netns {}",
            pod.name()
        ));
        within(&mut tables, "another pod", |table| {
            role(table, "host1") == Some(Role::Pod)
        })
        .await;
    });
}

#[test]
fn addresses_of_the_node_and_bridges_are_followed() {
    let site = Site::new("node-address");
    let node = site.node.clone();
    site.block(|| async move {
        let (rules, _watch, mut tables) = follow().await;
        node.ip("route del default");
        within(&mut tables, "no uplink", |table| role(table, UPLINK) == Some(Role::Pod)).await;
        let addresses = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
        rules.send_modify(|rules| rules.node_addresses = addresses);
        within(&mut tables, "an uplink by its address", |table| {
            role(table, UPLINK) == Some(Role::Uplink)
        })
        .await;
        node.ip_batch(&format!("link add br0 type bridge\nlink set {POD_LINK} master br0\n"));
        let is_port = |table: &InterfaceTable| {
            let bridge = find(table, "br0");
            let port = find(table, POD_LINK).and_then(|port| port.bridge);
            port.is_some_and(|port| bridge.is_some_and(|br| (br.ifindex, br.mac) == (port.ifindex, Some(port.mac))))
        };
        within(&mut tables, "a port of a bridge", is_port).await;
        node.ip("link set br0 address 02:00:00:00:00:99");
        within(&mut tables, "the bridge's new address", |table| {
            find(table, POD_LINK)
                .and_then(|port| port.bridge)
                .is_some_and(|bridge| bridge.mac == [2, 0, 0, 0, 0, 0x99])
        })
        .await;
        node.ip(&format!("link set {POD_LINK} nomaster"));
        within(&mut tables, "no port", |table| {
            find(table, POD_LINK).is_some_and(|port| port.bridge.is_none())
        })
        .await;
        rules.send_modify(|rules| rules.patterns.ignore = vec!["pod*".to_owned()]);
        within(&mut tables, "an ignored pod", |table| {
            role(table, POD_LINK) == Some(Role::Unhooked)
        })
        .await;
    });
}

#[test]
fn tunnels_are_known_by_their_kind() {
    let node = Netns::new("tunnels");
    node.ip_batch(
        "link add fixed type vxlan id 7 local 192.0.2.1 dstport 4789\n\
         link add loose type vxlan external dstport 4790\n\
         tuntap add l3 mode tun\n\
         tuntap add l2 mode tap\n",
    );
    block_in(&node, || async {
        let (_rules, _watch, tables) = follow().await;
        let table = tables.borrow();
        let found = |name: &str| find(&table, name).map(|found| (found.role, found.ethernet, found.metadata));
        assert_eq!(found("fixed"), Some((Role::Tunnel, true, false)));
        assert_eq!(found("loose"), Some((Role::Tunnel, true, true)));
        assert_eq!(found("l3"), Some((Role::Tunnel, false, false)));
        assert_eq!(found("l2"), Some((Role::Unhooked, true, false)));
    });
}

#[test]
fn events_that_were_lost_are_made_up_for() {
    let site = Site::new("storm");
    let node = site.node.clone();
    let mut storm: Vec<String> = (0..20_000)
        .map(|n: u32| format!("route add 10.{}.{}.0/24 dev {UPLINK}", 100 + n / 256, n % 256))
        .collect();
    storm.push("link set pod0 name pod9".to_owned());
    site.block(|| async move {
        let (_rules, _watch, mut tables) = follow().await;
        // On this thread, so that the watcher cannot read meanwhile.
        node.ip_batch(&storm.join("\n"));
        within(&mut tables, "what came last", |table| {
            role(table, "pod9") == Some(Role::Pod)
        })
        .await;
    });
}

#[test]
fn a_new_pod_is_hooked_at_once() {
    let site = Site::new("new-pod");
    let mut attacher = site.attach(Kind::Tcx);
    let (node, pod) = (site.node.clone(), site.pod.clone());
    let hooked = site.block(|| async move {
        let (_rules, _watch, mut tables) = follow().await;
        let name = pod.name().to_owned();
        let made = tokio::task::spawn_blocking(move || {
            node.ip(&format!("link add pod1 type veth peer name eth1 netns {name}"));
            std::time::Instant::now()
        });
        while !attacher.attached().iter().any(|found| found.ifname == "pod1") {
            tokio::time::timeout(LIMIT, tables.changed())
                .await
                .expect("a new pod")
                .expect("a watcher");
            let table = tables.borrow_and_update().clone();
            let errors = attacher.apply(&table, Trust::Known).await;
            assert!(errors.is_empty(), "{errors:?}");
        }
        let hooked = std::time::Instant::now();
        // The command's own end is part of the time that it took.
        hooked.saturating_duration_since(made.await.expect("a pod"))
    });
    assert_eq!(site.tcx("pod1", Hook::Ingress).len(), 1);
    println!("hooked {hooked:?} after the pod was there");
    assert!(
        hooked < Duration::from_millis(500),
        "hooked {hooked:?} after the pod was there"
    );
}

#[test]
fn each_apply_of_a_known_table_is_cheap_and_quiet() {
    let site = Site::new("quiet");
    let mut attacher: Attacher = site.attach(Kind::Tcx);
    let before = site.tcx(UPLINK, Hook::Ingress);
    let links = || {
        let pins = site.pins.link_pins().expect("the pinned links");
        pins.iter().map(|pin| pin.ifname.clone()).collect::<Vec<_>>()
    };
    let pinned = links();
    site.block(|| async move {
        let table = super::table().await;
        for trust in [Trust::Known, Trust::Nothing, Trust::Known] {
            assert!(attacher.apply(&table, trust).await.is_empty());
        }
    });
    assert_eq!(site.tcx(UPLINK, Hook::Ingress), before);
    assert_eq!(links(), pinned);
}
