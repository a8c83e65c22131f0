//! By tcx: programs stay when the agent goes, are replaced without a gap, and leave others alone.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use aya::programs::TcAttachType;
use lb_tests::assert::eventually;
use lb_tests::tiny_program::TinyProgram;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use steerway::datapath::attach::{AttachError, Attacher, Attachment, Hook, Kind, Trust};
use steerway::datapath::interfaces::{InterfaceTable, Role};

use super::stand_in::{LOST, PASSED};
use super::{POD_LINK, SERVED, Site, UPLINK, table};

/// Each hook runs exactly the attacher's program.
#[track_caller]
fn check_tcx(site: &Site, attacher: &Attacher) {
    for (interface, hook, program) in SERVED {
        let expected = attacher.programs().id(program).expect("a program");
        assert_eq!(site.tcx(interface, hook), [expected], "{interface} {}", hook.name());
    }
}

fn pins(site: &Site) -> Vec<String> {
    let links = site.pins.link_pins().expect("the pinned links");
    links
        .iter()
        .map(|pin| format!("{} {}", pin.ifname, pin.hook.name()))
        .collect()
}

/// Sends datagrams from the pod to the node until `stop`, and returns how many arrived of how many.
fn datagrams(site: &Site, stop: &AtomicBool) -> (u64, u64) {
    let receiver = site.node.run(|| UdpSocket::bind("10.1.0.1:9000").expect("a port"));
    // Room for all of them, should this thread not be run for long.
    setsockopt(&receiver, RcvBufForce, &(256 << 20)).expect("a large buffer");
    let sent = site.pod.run(|| {
        let socket = UdpSocket::bind("10.1.0.2:0").expect("a port");
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            socket.send_to(b"datagram", "10.1.0.1:9000").expect("a datagram");
            sent += 1;
            thread::sleep(Duration::from_micros(100));
        }
        sent
    });
    receiver
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a time-out");
    let mut received = 0;
    while received < sent && receiver.recv(&mut [0; 16]).is_ok() {
        received += 1;
    }
    (received, sent)
}

/// Replaces all programs again and again while datagrams pass one hook: each must arrive, and be counted once.
#[track_caller]
pub(super) fn check_replacement(site: &Site, kind: Kind, times: usize) {
    drop(site.attach(kind));
    let (before, stop) = (site.counter(PASSED), AtomicBool::new(false));
    let (received, sent) = thread::scope(|scope| {
        let load = scope.spawn(|| datagrams(site, &stop));
        for _ in 0..times {
            drop(site.attach(kind));
        }
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load")
    });
    assert!(sent > 1000, "only {sent} datagrams");
    assert_eq!(received, sent, "datagrams were lost");
    assert_eq!(
        site.counter(PASSED) - before,
        sent,
        "packets passed without a program, or with two"
    );
    assert_eq!(site.counter(LOST), 0, "packets found no stage");
}

#[test]
fn programs_stay_when_the_agent_goes_and_the_next_one_replaces_them() {
    let site = Site::new("stay");
    let first = site.attach(Kind::Tcx);
    let old: Vec<u32> = SERVED
        .map(|(_, _, program)| first.programs().id(program).expect("a program"))
        .to_vec();
    let expected = |name: &str, hook, role| Attachment {
        ifindex: site.node.ifindex(name).expect("an interface"),
        ifname: name.to_owned(),
        role,
        hook,
        kind: Some(Kind::Tcx),
    };
    let attached = first.attached();
    assert_eq!(attached.len(), SERVED.len(), "{attached:?}");
    assert!(
        attached.contains(&expected(UPLINK, Hook::Ingress, Role::Uplink)),
        "{attached:?}"
    );
    assert!(
        attached.contains(&expected(POD_LINK, Hook::Egress, Role::Pod)),
        "{attached:?}"
    );
    check_tcx(&site, &first);
    drop(first);
    for ((interface, hook, _), id) in SERVED.iter().zip(&old) {
        assert_eq!(site.tcx(interface, *hook), [*id], "{interface} {}", hook.name());
    }
    let links = pins(&site);
    let second = site.attach(Kind::Tcx);
    check_tcx(&site, &second);
    assert!(!old.contains(&site.tcx(UPLINK, Hook::Ingress)[0]));
    assert_eq!(pins(&site), links);
}

#[test]
fn programs_are_replaced_without_a_gap() {
    check_replacement(&Site::new("gap"), Kind::Tcx, 10);
}

#[test]
fn stages_of_former_loads_are_removed_and_the_current_ones_stay() {
    let site = Site::new("stages");
    let stages = || {
        fs::read_dir(site.pins.root().join("stages"))
            .expect("the stages")
            .count()
    };
    for _ in 0..3 {
        // Loaded and never attached, as by agents that died in between.
        drop(site.load().expect("programs"));
        assert_eq!(stages(), 1);
    }
    drop(site.attach(Kind::Tcx));
    assert_eq!(stages(), 1, "new ones were never used");
    drop(site.load().expect("programs"));
    assert_eq!(stages(), 2, "those in use stay");
    let (loaded, pins, run_dir) = (site.load().expect("programs"), site.pins.clone(), site.run_dir.clone());
    site.block(|| async move {
        let mut attacher = Attacher::new(loaded.programs, pins, run_dir, Kind::Tcx).expect("netlink");
        assert!(attacher.apply(&table().await, Trust::Known).await.is_empty());
        assert_eq!(stages(), 2, "packets may still be on their way");
        let deadline = Instant::now() + Duration::from_secs(10);
        while stages() != 1 {
            assert!(Instant::now() < deadline, "{} are left", stages());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_removed_pin_of_the_stages_in_use_is_put_back() {
    let site = Site::new("stages-pin");
    let mut attacher = site.attach(Kind::Tcx);
    let folder = site.pins.root().join("stages");
    let name = fs::read_dir(&folder)
        .expect("the stages")
        .flatten()
        .next()
        .expect("one")
        .file_name();
    fs::remove_file(folder.join(&name)).expect("the pin");
    let lost = site.counter(LOST);
    site.block(|| async move {
        assert!(attacher.apply(&table().await, Trust::Known).await.is_empty());
    });
    assert!(folder.join(&name).exists());
    site.pod.run(|| {
        UdpSocket::bind("10.1.0.2:0")
            .expect("a port")
            .send_to(b"x", "10.1.0.1:9")
            .expect("a datagram")
    });
    assert_eq!(site.counter(LOST), lost);
    assert!(site.counter(PASSED) > 0);
}

#[test]
fn our_program_is_first_at_ingress_and_last_at_egress_beside_others() {
    let site = Site::new("order");
    let mut foreign = [TinyProgram::marking(7, -1), TinyProgram::marking(8, -1)];
    for program in &mut foreign {
        program.attach_tcx(&site.node, UPLINK, TcAttachType::Ingress);
        program.attach_tcx(&site.node, UPLINK, TcAttachType::Egress);
    }
    let ids = foreign
        .each_ref()
        .map(|program| program.program().info().expect("its properties").id());
    let attacher = site.attach(Kind::Tcx);
    let ours = |at: usize| attacher.programs().id(SERVED[at].2).expect("a program");
    assert_eq!(site.tcx(UPLINK, Hook::Ingress), [ours(1), ids[0], ids[1]]);
    assert_eq!(site.tcx(UPLINK, Hook::Egress), [ids[0], ids[1], ours(2)]);
    drop(attacher);
    let next = site.attach(Kind::Tcx);
    assert_eq!(
        site.tcx(UPLINK, Hook::Ingress)[0],
        next.programs().id(SERVED[1].2).expect("a program")
    );
    assert_eq!(site.tcx(UPLINK, Hook::Egress).len(), 3);
}

#[test]
fn an_interface_that_lost_its_role_is_unhooked_and_a_renamed_one_keeps_its_link() {
    let site = Site::new("roles");
    drop(site.attach(Kind::Tcx));
    site.node.ip_batch(&format!(
        "link set {POD_LINK} name lxc.1-2\nlink set {UPLINK} down\nroute flush default\n"
    ));
    let (loaded, pin_dir, run_dir) = (site.load().expect("programs"), site.pins.clone(), site.run_dir.clone());
    let attached = site.block(|| async move {
        let mut attacher = Attacher::new(loaded.programs, pin_dir, run_dir, Kind::Tcx).expect("netlink");
        let mut table = table().await;
        for interface in &mut table.interfaces {
            if interface.name == UPLINK {
                interface.role = Role::Unhooked;
            }
        }
        let errors = attacher.apply(&table, Trust::Known).await;
        assert!(errors.is_empty(), "{errors:?}");
        attacher.attached()
    });
    assert_eq!(attached.len(), 3, "{attached:?}");
    assert_eq!(pins(&site), ["lo egress", "lxc.1-2 ingress", "lxc.1-2 egress"]);
    site.no_tcx(UPLINK, Hook::Ingress);
    assert_eq!(site.tcx("lxc.1-2", Hook::Ingress).len(), 1);
}

#[test]
fn the_pin_of_a_vanished_interface_is_not_taken_for_its_successor() {
    let site = Site::new("successor");
    drop(site.attach(Kind::Tcx));
    let ifindex = site.node.ifindex(POD_LINK).expect("the pod's link");
    site.node.ip(&format!("link del {POD_LINK}"));
    site.node.ip(&format!(
        "link add {POD_LINK} index {ifindex} type veth peer name eth0 netns {}",
        site.pod.name()
    ));
    site.no_tcx(POD_LINK, Hook::Ingress);
    check_tcx(&site, &site.attach(Kind::Tcx));
    assert_eq!(pins(&site).len(), SERVED.len());
    site.node.ip(&format!("link del {POD_LINK}"));
    drop(site.attach(Kind::Tcx));
    assert_eq!(pins(&site).len(), SERVED.len() - 2, "{:?}", pins(&site));
}

#[test]
fn a_link_to_another_namespace_is_given_up() {
    let site = Site::new("elsewhere");
    drop(site.attach(Kind::Tcx));
    let ifindex = site.node.ifindex(POD_LINK).expect("the pod's link");
    // The agent's next life is in another namespace, where the index belongs to another interface.
    let other = Site::new("here");
    other.node.ip(&format!(
        "link add twin0 index {} type veth peer name twin1 netns {}",
        ifindex + 100,
        other.pod.name()
    ));
    for hook in ["in", "out"] {
        let old = site
            .pins
            .root()
            .join("links")
            .join(format!("{ifindex}-{POD_LINK}-{hook}"));
        let new = site
            .pins
            .root()
            .join("links")
            .join(format!("{}-twin0-{hook}", ifindex + 100));
        fs::rename(old, new).expect("a pinned link");
    }
    let (loaded, pin_dir, run_dir) = (site.load().expect("programs"), site.pins.clone(), site.run_dir.clone());
    other.block(|| async move {
        let mut attacher = Attacher::new(loaded.programs, pin_dir, run_dir, Kind::Tcx).expect("netlink");
        let errors = attacher.apply(&table().await, Trust::Known).await;
        assert!(errors.is_empty(), "{errors:?}");
    });
    assert_eq!(other.tcx("twin0", Hook::Ingress).len(), 1);
    site.no_tcx(POD_LINK, Hook::Ingress);
}

#[test]
fn a_program_that_somebody_removed_is_attached_again_when_asked_to_look() {
    let site = Site::new("removed");
    let mut attacher = site.attach(Kind::Tcx);
    let path = site.pins.root().join("links");
    for entry in fs::read_dir(&path).expect("the links").flatten() {
        fs::remove_file(entry.path()).expect("a pinned link");
    }
    eventually(Duration::from_secs(5), "programs are gone", || {
        let left = site.tcx(UPLINK, Hook::Ingress).len();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
    let attacher = site.block(|| async move {
        assert!(attacher.apply(&table().await, Trust::Known).await.is_empty());
        attacher
    });
    assert_eq!(
        site.tcx(UPLINK, Hook::Ingress),
        [0; 0],
        "what is known is not looked at"
    );
    let mut attacher = attacher;
    let attacher = site.block(|| async move {
        assert!(attacher.apply(&table().await, Trust::Nothing).await.is_empty());
        attacher
    });
    check_tcx(&site, &attacher);
}

#[test]
fn a_foreign_pin_among_the_links_is_refused_by_name_and_others_are_hooked() {
    let site = Site::new("foreign-link");
    drop(site.load().expect("a load, which makes the directory"));
    let ifindex = site.node.ifindex(UPLINK).expect("the uplink");
    let path = site.pins.root().join("links").join(format!("{ifindex}-{UPLINK}-in"));
    Array::<MapData, u32>::create(1, 0)
        .expect("a map")
        .pin(&path)
        .expect("a pin");
    let (loaded, pin_dir, run_dir) = (site.load().expect("programs"), site.pins.clone(), site.run_dir.clone());
    let (errors, attached) = site.block(|| async move {
        let mut attacher = Attacher::new(loaded.programs, pin_dir, run_dir, Kind::Tcx).expect("netlink");
        (attacher.apply(&table().await, Trust::Known).await, attacher.attached())
    });
    let [AttachError::Foreign { path: named, .. }] = errors.as_slice() else {
        panic!("{errors:?}")
    };
    assert_eq!(*named, path);
    assert!(errors[0].to_string().contains("remove the file"), "{}", errors[0]);
    assert_eq!(attached.len(), SERVED.len() - 1);
    assert!(path.exists());
}

#[test]
fn an_interface_that_vanished_meanwhile_is_no_error_and_leaves_no_pin() {
    let site = Site::new("vanished");
    drop(site.attach(Kind::Tcx));
    let (loaded, pin_dir, run_dir) = (site.load().expect("programs"), site.pins.clone(), site.run_dir.clone());
    let old: InterfaceTable = site.block(table);
    site.node.ip(&format!("link del {POD_LINK}"));
    site.block(|| async move {
        let mut attacher = Attacher::new(loaded.programs, pin_dir, run_dir, Kind::Tcx).expect("netlink");
        for table in [old, table().await] {
            let errors = attacher.apply(&table, Trust::Known).await;
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(attacher.attached().len(), SERVED.len() - 2);
        }
    });
    assert_eq!(pins(&site).len(), SERVED.len() - 2, "{:?}", pins(&site));
}
