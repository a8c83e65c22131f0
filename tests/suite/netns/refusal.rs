//! What is refused is refused at once; what is not ours is untouched.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectErrorKind, tcp_request, udp_request};
use lb_tests::world::{World, WorldBuilder};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::scene::{NODE_PORT, PORT, Scene, at, families};

const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_service_without_endpoints_and_an_unknown_port_refuse_pods_the_node_and_clients() {
    all_are_refused(&World::builder());
}

#[test]
fn who_sums_up_its_packets_itself_is_refused_alike() {
    all_are_refused(&World::builder().no_tx_checksum());
}

#[track_caller]
pub(super) fn all_are_refused(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[]);
    scene.settle();
    for addresses in families() {
        for to in [
            at(addresses.cluster, PORT),
            at(addresses.balancer, PORT),
            at(addresses.external, PORT),
            at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT),
            at(addresses.cluster, 81),
        ] {
            for (who, place) in [
                ("a pod", scene.world.pod("pod1-1").ns.clone()),
                ("the node", scene.world.node(1).ns.clone()),
                ("a client", scene.world.client().ns.clone()),
            ] {
                let tcp = tcp_request(&place, to, None, LIMIT).expect_err("a refusal over TCP");
                assert_eq!(tcp.kind, ConnectErrorKind::Refused, "{who} to {to} over TCP: {tcp:?}");
                assert!(
                    tcp.after < Duration::from_secs(1),
                    "{who} to {to}: refused after {:?}",
                    tcp.after
                );
                let udp = udp_request(&place, to, None, LIMIT).expect_err("a refusal over UDP");
                assert_eq!(udp.kind, ConnectErrorKind::Refused, "{who} to {to} over UDP: {udp:?}");
            }
        }
    }
    scene
}

#[test]
fn refusing_by_icmp_works_as_well() {
    let mut scene = Scene::of(&World::builder(), &["--refuse-with", "icmp"]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[]);
    scene.settle();
    for addresses in families() {
        let to = at(addresses.cluster, PORT);
        for place in [scene.world.pod("pod1-1").ns.clone(), scene.world.node(1).ns.clone()] {
            let error = tcp_request(&place, to, None, LIMIT).expect_err("a refusal");
            assert_eq!(error.kind, ConnectErrorKind::Refused, "{error:?}");
        }
    }
}

/// Refusals that a CPU may send in a second, in the test below.
const RATE: usize = 5;
/// The second of a window.
const WINDOW: Duration = Duration::from_secs(1);
/// Time for an answer that comes at all; a window holds many.
const ANSWER: Duration = Duration::from_millis(100);

/// Sends datagrams from one CPU, one after another, until answers have ceased for the second time. When each was sent, and
/// whether it was refused; nothing else may become of it.
#[track_caller]
fn ask_for_two_windows(from: &Netns, to: SocketAddr) -> Vec<(Instant, bool)> {
    let asking = || {
        let mut one = CpuSet::new();
        one.set(0).expect("the first CPU");
        // What this thread sends is met on its CPU, and so by one window.
        sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU of one's own");
        let started = Instant::now();
        let mut asked: Vec<(Instant, bool)> = Vec::new();
        let ceased = |asked: &[(Instant, bool)]| asked.windows(2).filter(|pair| pair[0].1 && !pair[1].1).count();
        while ceased(&asked) < 2 && started.elapsed() < 5 * WINDOW {
            let sent = Instant::now();
            let error = udp_request(from, to, None, ANSWER).expect_err("nobody is there to answer");
            let refused = error.kind == ConnectErrorKind::Refused;
            assert!(refused || error.kind == ConnectErrorKind::Timeout, "{to}: {error}");
            asked.push((sent, refused));
        }
        asked
    };
    thread::scope(|scope| scope.spawn(asking).join().expect("a thread that asks"))
}

#[test]
fn so_many_are_refused_a_second_then_none_until_the_second_is_over() {
    let mut scene = Scene::of(&World::builder(), &["--answer-rate", &RATE.to_string()]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[]);
    scene.settle();
    let (pod, client) = (&scene.world.pod("pod1-1").ns, &scene.world.client().ns);
    for addresses in families() {
        for (from, to) in [
            (pod, at(addresses.cluster, PORT)),
            (client, at(addresses.balancer, PORT)),
        ] {
            let before = scene.counted("rate_limited");
            let asked = ask_for_two_windows(from, to);
            // A window that others have used up is over first.
            let first = asked.iter().position(|(_, refused)| *refused).expect("a refusal");
            let runs: Vec<&[(Instant, bool)]> = asked[first..].chunk_by(|one, next| one.1 == next.1).collect();
            let [answered, silent, again, ..] = &runs[..] else {
                panic!("{to}: {asked:?}");
            };
            assert_eq!(answered.len(), RATE, "{to}: {asked:?}");
            assert_eq!(again.len(), RATE, "{to}: {asked:?}");
            let resumed = again[0].0.duration_since(answered[0].0);
            assert!(
                resumed + ANSWER > WINDOW,
                "{to}: answers again after {resumed:?}: {asked:?}"
            );
            assert!(
                resumed < WINDOW + 2 * ANSWER,
                "{to}: no answer for {resumed:?}: {asked:?}"
            );
            let counted = scene.counted("rate_limited") - before;
            assert!(counted >= silent.len() as u64, "{to}: {counted} counted, {asked:?}");
        }
    }
}
