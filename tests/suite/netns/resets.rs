//! Resets that neither end of a connection has sent: both ignore them, and so the connection goes on through the VIP.

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::{OnFailure, throughout};
use lb_tests::netns::Netns;
use lb_tests::packet::Packet;
use lb_tests::traffic::{HeldConnections, send_packet};
use lb_tests::world::{World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};

/// How long a flow lives on after a reset, while none of its packets comes.
const CLOSED: &str = "6s";
/// Longer than that by far.
const WATCHED: Duration = Duration::from_secs(14);

/// Sends a reset with a sequence number that no window holds.
#[track_caller]
fn forge(place: &Netns, from: SocketAddr, to: SocketAddr) {
    let reset = Packet::new(from.ip(), to.ip())
        .tcp(from.port(), to.port(), "R")
        .sequence(7, 0);
    send_packet(place, &reset);
}

#[test]
fn a_connection_that_goes_on_after_a_forged_reset_is_kept_beyond_the_time_of_closed_ones() {
    forged_resets_end_nothing(&World::builder());
}

#[track_caller]
pub(super) fn forged_resets_end_nothing(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &["--tcp-closed-timeout", CLOSED]);
    let _dump = OnFailure::of(&scene.world);
    let (mut all, mut forged) = (Vec::new(), Vec::new());
    for backend in ["pod1-2", "pod2-1"] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        let world = &scene.world;
        for addresses in families() {
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            for (who, from, to) in [
                ("the pod", &world.pod("pod1-1").ns, at(addresses.cluster, PORT)),
                ("the node", &world.node(1).ns, at(addresses.cluster, PORT)),
                ("the client", &world.client().ns, node_port),
            ] {
                for reset_by in ["the client", "the backend"] {
                    let who = format!("{who} to {to} at {backend}, reset by {reset_by}");
                    let held = HeldConnections::start(from, to, 1);
                    let reply = held.replies().next().expect("a connection").clone();
                    forged.push(if reset_by == "the client" {
                        (from.clone(), reply.local, to)
                    } else {
                        let server = world.pod(backend);
                        (
                            server.ns.clone(),
                            at(server.ip_like(to.ip()), SERVER_PORT),
                            reply.client_seen,
                        )
                    });
                    all.push((who, reply.local, held));
                }
            }
        }
    }
    for (place, from, to) in forged {
        forge(&place, from, to);
    }
    throughout(WATCHED, "the connections", || {
        for (who, _, held) in &mut all {
            let report = held.check_all();
            if !report.lost.is_empty() {
                return Err(format!("{who}: {report:?}"));
            }
        }
        Ok(())
    });
    let closed = scene.agents[0].json(&["flows", "--state", "closed"]).to_string();
    for (who, client, _) in &all {
        assert!(
            closed.contains(&format!("\"{client}\"")),
            "{who}: no reset was seen: {closed}"
        );
    }
    scene
}
