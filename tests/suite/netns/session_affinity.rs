//! sessionAffinity ClientIP: kept for its time, shared by frontends, switched live, independent of other endpoints.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::traffic::{distribution, tcp_request, udp_request};
use lb_tests::world::{World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families, web};

#[test]
fn a_client_stays_on_its_backend_by_every_frontend_and_affinity_switches_live() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().affinity(600));
    scene.settle();
    let (pod, node) = (scene.world.pod("pod1-1").ns.clone(), scene.world.node(1).ns.clone());
    let askers = [("a pod", pod), ("the node", node)];
    for (who, from) in &askers {
        for addresses in families() {
            let node_port = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let first = distribution(from, at(addresses.cluster, PORT), 15);
            assert_eq!(first.len(), 1, "{who} has one backend: {first:?}");
            for to in [at(addresses.balancer, PORT), at(addresses.external, PORT), node_port] {
                let other = distribution(from, to, 15);
                assert_eq!(
                    other.keys().collect::<Vec<_>>(),
                    first.keys().collect::<Vec<_>>(),
                    "{who} to {to}"
                );
            }
        }
    }
    scene.put_service(&web());
    scene.settle();
    for ((who, from), addresses) in askers
        .iter()
        .flat_map(|asker| families().map(|addresses| (asker, addresses)))
    {
        let free = distribution(from, at(addresses.cluster, PORT), 40);
        assert!(free.len() > 1, "affinity of {who} is off: {free:?}");
    }
    scene.put_service(&web().affinity(600));
    scene.settle();
    for ((who, from), addresses) in askers
        .iter()
        .flat_map(|asker| families().map(|addresses| (asker, addresses)))
    {
        let again = distribution(from, at(addresses.cluster, PORT), 15);
        assert_eq!(again.len(), 1, "{who}: {again:?}");
    }
}

#[test]
fn affinity_survives_changes_of_other_endpoints_and_moves_when_its_own_goes() {
    let all = ["pod1-1", "pod1-2", "pod2-1", "pod2-2"];
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().affinity(600));
    for addresses in families() {
        scene.put_endpoints(&all);
        scene.settle();
        let to = at(addresses.cluster, PORT);
        let kept = distribution(scene.world.pod("pod1-1"), to, 5)
            .into_keys()
            .next()
            .expect("a backend");
        let other = all.into_iter().find(|pod| *pod != kept).expect("another pod");
        scene.put_endpoints(&all.into_iter().filter(|pod| *pod != other).collect::<Vec<_>>());
        scene.settle();
        assert_eq!(
            distribution(scene.world.pod("pod1-1"), to, 10)
                .into_keys()
                .collect::<Vec<_>>(),
            std::slice::from_ref(&kept),
            "{to}"
        );
        scene.put_endpoints(&all.into_iter().filter(|pod| *pod != kept).collect::<Vec<_>>());
        scene.settle();
        let moved = distribution(scene.world.pod("pod1-1"), to, 10);
        assert!(moved.len() == 1 && !moved.contains_key(&kept), "{to}: {moved:?}");
    }
}

/// The time-out of the test below.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of each client, for each of which one of three backends is remembered: that all meet theirs again by chance is less
/// than one case in a hundred thousand.
const ADDRESSES: u8 = 12;

/// A place with further addresses.
struct Client<'a> {
    netns: &'a Netns,
    own: Vec<IpAddr>,
}

impl<'a> Client<'a> {
    /// Gives a pod of node 1 more addresses, to which its node has routes.
    fn inside(scene: &'a Scene) -> Self {
        let (pod, node) = (scene.world.pod("pod1-1"), scene.world.node(1));
        let own = addresses_in(["10.244.1.", "fd00:10:244:1::"]);
        for address in &own {
            node.ns.ip(&format!("route add {address} dev {}", pod.veth));
        }
        Self::with(&pod.ns, own)
    }

    /// Gives the client outside more addresses.
    fn outside(scene: &'a Scene) -> Self {
        Self::with(&scene.world.client().ns, addresses_in(["192.0.2.", "2001:db8:2::"]))
    }

    fn with(netns: &'a Netns, own: Vec<IpAddr>) -> Self {
        for address in &own {
            let rest = if address.is_ipv4() { "/32" } else { "/128 nodad" };
            netns.ip(&format!("address add dev eth0 {address}{rest}"));
        }
        Self { netns, own }
    }

    /// Makes a new connection and a new UDP flow from each address to the frontend of its family; who answered.
    #[track_caller]
    fn ask(&self, frontends: [SocketAddr; 2]) -> Vec<String> {
        const LIMIT: Duration = Duration::from_secs(5);
        let ask = |address: &IpAddr| {
            let to = frontends[usize::from(address.is_ipv6())];
            let bind = Some(at(*address, 0));
            let tcp = tcp_request(self.netns, to, bind, LIMIT).unwrap_or_else(|e| panic!("{address} to {to} TCP: {e}"));
            let udp = udp_request(self.netns, to, bind, LIMIT).unwrap_or_else(|e| panic!("{address} to {to} UDP: {e}"));
            [tcp.backend, udp.backend]
        };
        self.own.iter().flat_map(ask).collect()
    }
}

/// [`ADDRESSES`] of each family.
fn addresses_in(prefixes: [&str; 2]) -> Vec<IpAddr> {
    let hosts = 150..150 + ADDRESSES;
    let all = prefixes
        .iter()
        .flat_map(|prefix| hosts.clone().map(move |host| format!("{prefix}{host}")));
    all.map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn affinity_lasts_for_its_time_from_each_new_connection_on_and_no_longer() {
    affinity_lasts(&World::builder());
}

#[track_caller]
pub(super) fn affinity_lasts(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().affinity(TIMEOUT.as_secs() as u32));
    // Not the pod that asks: by another address than its endpoint's it does not reach itself.
    scene.put_endpoints(&["pod1-2", "pod2-1", "pod2-2"]);
    scene.settle();
    let [v4, v6] = families();
    let own = [v4, v6].map(|addresses| at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT));
    let clients = [
        (
            "a pod",
            Client::inside(&scene),
            [at(v4.cluster, PORT), at(v6.cluster, PORT)],
        ),
        ("a client outside", Client::outside(&scene), own),
    ];
    for (who, client, frontends) in clients {
        // Three rounds within the time-out of the one before, all of them together longer than it.
        let kept = eventually(Duration::from_mins(1), "a machine that is fast enough", || {
            let mut rounds = Vec::new();
            let mut begun = Vec::new();
            for round in 0..3_u32 {
                if let Some(first) = begun.first() {
                    thread::sleep((TIMEOUT * 6 / 10 * round).saturating_sub(Instant::elapsed(first)));
                }
                begun.push(Instant::now());
                rounds.push(client.ask(frontends));
                // Nothing is said of rounds that took too long.
                if round > 0 && begun[round as usize - 1].elapsed() >= TIMEOUT {
                    return Err(format!(
                        "round {round} ended after {:?}",
                        begun[round as usize - 1].elapsed()
                    ));
                }
            }
            Ok(rounds)
        });
        assert_eq!(kept[0], kept[1], "{who}");
        assert_eq!(kept[0], kept[2], "{who}: new connections make the time begin anew");
        // It is the passing of time that is tried.
        thread::sleep(TIMEOUT + Duration::from_millis(100));
        let chosen = client.ask(frontends);
        // Every address of a family, over TCP and over UDP.
        let (per_family, protocols) = (usize::from(ADDRESSES) * 2, ["TCP", "UDP"]);
        for (family, range) in [(4, 0..per_family), (6, per_family..2 * per_family)] {
            for (offset, protocol) in protocols.iter().enumerate() {
                let of = |answers: &[String]| -> Vec<String> {
                    answers[range.clone()].iter().skip(offset).step_by(2).cloned().collect()
                };
                assert_ne!(
                    of(&kept[0]),
                    of(&chosen),
                    "{who}: IPv{family}, {protocol}: all as before"
                );
            }
        }
    }
    scene
}
