//! Programs of others on a pod's link run beside ours, by tcx and by clsact, whether they came before us or after.
//!
//! One that goes on marks packets, which netfilter counts; one that drops has the last word.

use aya::programs::TcAttachType::{self, Egress, Ingress};
use lb_tests::assert::OnFailure;
use lb_tests::netfilter::{rule_hits, set_rules};
use lb_tests::tiny_program::TinyProgram;
use lb_tests::world::World;

use super::outcome::{DROPPED, by, check};
use super::scene::{PORT, Scene, at, families, web};

const TABLE: &str = "inet marked";
const MARK: i32 = 0x51;
/// `TC_ACT_UNSPEC`, `TCX_NEXT`.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`, `TCX_DROP`.
const SHOT: i32 = 2;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tcx,
    Clsact,
}

/// Attaches a program to the link of `pod1-1`.
#[track_caller]
fn attach(scene: &Scene, program: &mut TinyProgram, kind: Kind, direction: TcAttachType) {
    let (node, veth) = (scene.world.node(1), scene.world.pod("pod1-1").veth.clone());
    match kind {
        Kind::Tcx => program.attach_tcx(node, &veth, direction),
        Kind::Clsact => program.attach_clsact(node, &veth, direction, 1),
    }
}

/// A program of each kind on the pod's link: at ingress it marks what the pod sends, at egress it just goes on.
#[track_caller]
fn neighbours(scene: &Scene) -> Vec<TinyProgram> {
    let mut all = Vec::new();
    for (bit, kind) in [(0, Kind::Tcx), (8, Kind::Clsact)] {
        for direction in [Ingress, Egress] {
            let mut program = TinyProgram::marking(MARK << bit, NEXT);
            attach(scene, &mut program, kind, direction);
            all.push(program);
        }
    }
    all
}

/// The pod's flows are served, and the last mark that was set, clsact's, is seen by netfilter on translated packets.
#[track_caller]
fn served_and_marked(scene: &Scene, mark: i32) {
    let world = &scene.world;
    let server = world.pod("pod2-1");
    for addresses in families() {
        let backend = server.ip_like(addresses.cluster);
        let family = if backend.is_ipv6() { "ip6" } else { "ip" };
        let rule = format!("meta mark {mark} {family} daddr {backend} counter name hits");
        set_rules(world.node(1), TABLE, "filter hook prerouting priority filter", &rule);
        check(
            "the pod",
            world.pod("pod1-1"),
            at(addresses.cluster, PORT),
            &by(&["pod2-1"]),
        );
        assert!(
            rule_hits(world.node(1), TABLE) > 0,
            "no translated packet with mark {mark:#x}"
        );
    }
}

#[test]
fn programs_that_came_before_and_after_ours_run_beside_it() {
    for before in [true, false] {
        let mut scene = Scene::silent(&World::builder());
        let _dump = OnFailure::of(&scene.world);
        scene.put_service(&web());
        scene.put_endpoints(&["pod2-1"]);
        let _early = if before { neighbours(&scene) } else { Vec::new() };
        scene.start(&[]);
        let _late = if before { Vec::new() } else { neighbours(&scene) };
        served_and_marked(&scene, MARK << 8);
    }
}

#[test]
fn a_program_that_drops_has_the_last_word_in_either_direction() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    scene.put_endpoints(&["pod2-1"]);
    scene.start(&[]);
    for kind in [Kind::Tcx, Kind::Clsact] {
        for direction in [Ingress, Egress] {
            let mut program = TinyProgram::marking(MARK, SHOT);
            attach(&scene, &mut program, kind, direction);
            for addresses in families() {
                let pod = scene.world.pod("pod1-1");
                check(
                    &format!("the pod behind a drop by {kind:?}"),
                    pod,
                    at(addresses.cluster, PORT),
                    &DROPPED,
                );
            }
            drop(program);
            for addresses in families() {
                let pod = scene.world.pod("pod1-1");
                check("the pod again", pod, at(addresses.cluster, PORT), &by(&["pod2-1"]));
            }
        }
    }
}

#[test]
fn ours_as_a_clsact_filter_runs_beside_filters_of_others() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    scene.put_endpoints(&["pod2-1"]);
    scene.start(&["--attach", "clsact"]);
    let mut program = TinyProgram::marking(MARK, NEXT);
    let (node, veth) = (scene.world.node(1), scene.world.pod("pod1-1").veth.clone());
    program.attach_clsact(node, &veth, Ingress, 40_000);
    served_and_marked(&scene, MARK);
}
