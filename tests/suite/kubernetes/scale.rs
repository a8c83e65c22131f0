//! As many Services as an agent is made for, ten endpoints each, at a real API server.

use std::net::Ipv4Addr;

use lb_tests::assert::OnFailure;
use lb_tests::memory;
use lb_tests::objects::{Manifest as _, slice};
use lb_tests::traffic::HeldConnections;
use lb_tests::world::World;
use serde_json::Value;

use super::{PORT, SERVER_PORT, Scene, at, names, web};

const SERVICES: u32 = 10_000;
/// Endpoints of each that nobody answers at; the first and the last Service have a pod alone.
const ENDPOINTS: u32 = 10;
/// Anonymous memory that an agent may take for them.
const MOST_MEMORY: u64 = 60_000_000;

fn name(number: u32) -> String {
    format!("s{number}")
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 2, 0).to_bits() + number)
}

/// A Service and its slice.
fn objects(number: u32, pod: Ipv4Addr) -> [Value; 2] {
    let service = name(number);
    let object = slice("default", &format!("{service}-1"), &service).port("http", SERVER_PORT);
    let slice = if number == 0 || number == SERVICES - 1 {
        object.endpoint(pod).node("node1").condition("ready", true)
    } else {
        let first = Ipv4Addr::new(10, 128, 0, 0).to_bits() + number * 256;
        (first..first + ENDPOINTS).fold(object, |object, address| {
            let object = object.endpoint(Ipv4Addr::from_bits(address)).node("node2");
            object.condition("ready", true)
        })
    };
    [slice.to_json(), web(&service, &vip(number).to_string()).to_json()]
}

#[test]
fn ten_thousand_services_are_served_within_the_agents_memory() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    let pod = scene.world.pod("pod1-2").ip4;
    scene.cluster.store(&objects(0, pod));
    scene.settle();
    let mut held = HeldConnections::start(scene.world.pod("pod1-1"), at(&vip(0).to_string(), PORT), 50);
    let served = |scene: &Scene, held: &mut HeldConnections| {
        assert_eq!(scene.agents[0].json(&["status"])["source"]["services"], SERVICES + 1);
        for number in [0, SERVICES - 1] {
            assert_eq!(names(&scene.backends(at(&vip(number).to_string(), PORT))), ["pod1-2"]);
        }
        held.all_alive().expect("the first Service's connections");
    };

    // One by one: each is a change that the agent sees by itself. The API server has them from etcd: to take them would need minutes.
    let rest: Vec<Value> = (1..SERVICES).flat_map(|number| objects(number, pod)).collect();
    let pid = scene.agents[0].pid().expect("an agent that runs");
    let ((), created) = memory::most_while(pid, || {
        scene.cluster.store(&rest);
        scene.settle();
    })
    .expect("an agent that runs");
    served(&scene, &mut held);

    // All at once: a start with an initial list.
    scene.agents[0].kill9();
    scene.agents[0].restart();
    let pid = scene.agents[0].pid().expect("an agent that runs");
    let ((), listed) = memory::most_while(pid, || scene.settle()).expect("an agent that runs");
    served(&scene, &mut held);
    println!("{created} bytes at most while they were created, {listed} while they were listed");
    assert!(created.max(listed) <= MOST_MEMORY, "{created} created, {listed} listed");
}
