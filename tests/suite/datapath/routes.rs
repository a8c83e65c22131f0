//! Routes of VIPs: a diff against the kernel, ours alone, thousands at a time.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_tests::netns::Netns;
use nix::errno::Errno;
use steerway::datapath::netlink::Netlink;
use steerway::datapath::run_dir::RunDir;
use steerway::datapath::steer::{RouteError, RouteNeeds, RouteReport, SteerDevice, VipRoutes};

use super::{block_in, table};

struct Node {
    netns: Netns,
    steer_ifindex: u32,
    _files: tempfile::TempDir,
}

fn node() -> Node {
    let netns = Netns::new("routes");
    netns.ip_batch(
        "link add up0 type veth peer name out0\nlink set up0 up\nlink set out0 up\n\
         address add 192.0.2.1/24 dev up0\naddress add 192.0.2.2/24 dev up0\naddress add fd00::1/64 dev up0 nodad\n",
    );
    let files = tempfile::tempdir().expect("a temporary directory");
    let run_dir = RunDir::new(files.path());
    let device = block_in(&netns, || async move {
        SteerDevice::ensure(Netlink::open().expect("netlink").handle(), &run_dir, None)
            .await
            .expect("a device")
    });
    Node {
        netns,
        steer_ifindex: device.ifindex,
        _files: files,
    }
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|text| text.parse().expect("an address")).collect()
}

async fn sync(routes: &mut VipRoutes, node: &Node, vips: &BTreeSet<IpAddr>, source: [u8; 4]) -> RouteReport {
    sync_with_ranges(routes, node, vips, &[], source).await
}

async fn sync_with_ranges(
    routes: &mut VipRoutes,
    node: &Node,
    vips: &BTreeSet<IpAddr>,
    ranges: &[IpNet],
    source: [u8; 4],
) -> RouteReport {
    try_sync(routes, node, vips, ranges, source).await.expect("routes")
}

async fn try_sync(
    routes: &mut VipRoutes,
    node: &Node,
    vips: &BTreeSet<IpAddr>,
    ranges: &[IpNet],
    source: [u8; 4],
) -> Result<RouteReport, RouteError> {
    let needs = RouteNeeds {
        steer_ifindex: node.steer_ifindex,
        vips: Arc::new(vips.clone()),
        ranges: ranges.to_vec(),
        local: table().await.local_addresses,
        may_go: None,
        source_v4: Some(Ipv4Addr::from(source)),
        source_v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
    };
    routes.sync(needs).await
}

fn ours(node: &Node) -> Vec<String> {
    let shown = ["-4", "-6"]
        .map(|family| node.netns.ip(&format!("{family} route show proto 83")))
        .concat();
    let mut lines: Vec<String> = shown.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn routes_follow_the_wanted_set_and_the_node_s_address() {
    let node = node();
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        // An address of the node itself gets none.
        let vips = set(&["10.96.0.1", "fd00:96::1", "192.0.2.2"]);
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        assert_eq!(
            report,
            RouteReport {
                added: 2,
                ..RouteReport::default()
            }
        );
        assert_eq!(
            ours(&node),
            [
                "10.96.0.1 dev steer0 scope link src 192.0.2.1",
                "fd00:96::1 dev steer0 src fd00::1 metric 1024 pref medium"
            ]
        );
        assert_eq!(
            sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await,
            RouteReport::default()
        );
        // Another agent knows nothing and asks the kernel.
        let mut routes = VipRoutes::new().expect("netlink");
        assert_eq!(
            sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await,
            RouteReport::default()
        );
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 2]).await;
        assert_eq!(
            report,
            RouteReport {
                changed: 1,
                ..RouteReport::default()
            }
        );
        assert_eq!(ours(&node)[0], "10.96.0.1 dev steer0 scope link src 192.0.2.2");
        // An address that the node does not have yet is no source.
        sync(&mut routes, &node, &vips, [192, 0, 2, 3]).await;
        assert_eq!(ours(&node)[0], "10.96.0.1 dev steer0 scope link");
        let report = sync(&mut routes, &node, &set(&["10.96.0.9"]), [192, 0, 2, 1]).await;
        assert_eq!(
            report,
            RouteReport {
                added: 1,
                removed: 2,
                ..RouteReport::default()
            }
        );
        assert_eq!(ours(&node), ["10.96.0.9 dev steer0 scope link src 192.0.2.1"]);
    });
}

#[test]
fn routes_of_others_are_left_alone_and_named() {
    let node = node();
    node.netns
        .ip_batch("route add 10.96.0.1/32 dev up0\nroute add 10.96.0.7/32 dev up0 proto static\n");
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        let vips = set(&["10.96.0.1", "10.96.0.2"]);
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        let conflicts = vec!["10.96.0.1".parse().unwrap()];
        assert_eq!(
            report,
            RouteReport {
                added: 1,
                conflicts,
                ..RouteReport::default()
            }
        );
        // Once the other one is gone, the next look finds the way free.
        node.netns.ip("route del 10.96.0.1/32 dev up0");
        routes.distrust();
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        assert_eq!(
            report,
            RouteReport {
                added: 1,
                ..RouteReport::default()
            }
        );
        sync(&mut routes, &node, &BTreeSet::new(), [192, 0, 2, 1]).await;
    });
    assert_eq!(ours(&node), [""; 0]);
    assert!(node.netns.ip("route show").contains("10.96.0.7 dev up0 proto static"));
}

#[test]
fn ranges_get_routes_that_give_way_to_somebody_elses() {
    let node = node();
    let ranges: Vec<IpNet> = ["10.96.0.0/16", "fd00:96::/112"]
        .map(|range| range.parse().expect("a range"))
        .into();
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        let vips = set(&["10.96.0.0", "10.96.0.1"]);
        let report = sync_with_ranges(&mut routes, &node, &vips, &ranges, [192, 0, 2, 1]).await;
        assert_eq!(report.added, 4, "{report:?}");
        assert_eq!(
            ours(&node),
            [
                "10.96.0.0 dev steer0 scope link src 192.0.2.1",
                "10.96.0.0/16 dev steer0 scope link src 192.0.2.1 metric 4294967294",
                "10.96.0.1 dev steer0 scope link src 192.0.2.1",
                "fd00:96::/112 dev steer0 src fd00::1 metric 4294967294 pref medium",
            ]
        );
        // Another agent finds them again.
        let mut routes = VipRoutes::new().expect("netlink");
        let report = sync_with_ranges(&mut routes, &node, &vips, &ranges, [192, 0, 2, 1]).await;
        assert_eq!(report, RouteReport::default());
        node.netns.ip("route add 10.96.0.0/16 dev up0 metric 100");
        assert!(node.netns.ip("route get 10.96.7.7").contains("dev up0"));
        assert!(node.netns.ip("route get 10.96.0.1").contains("dev steer0"));
        let report = sync_with_ranges(&mut routes, &node, &vips, &ranges[1..], [192, 0, 2, 2]).await;
        assert_eq!((report.removed, report.changed), (1, 2), "{report:?}");
    });
    assert!(node.netns.ip("route show").contains("10.96.0.0/16 dev up0"));
}

#[test]
fn a_route_that_somebody_removed_comes_back_after_a_look() {
    let node = node();
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        let vips = set(&["10.96.0.1", "10.96.0.2"]);
        sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        node.netns.ip("route del 10.96.0.1/32 dev steer0");
        routes.distrust();
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        assert_eq!(
            report,
            RouteReport {
                added: 1,
                ..RouteReport::default()
            }
        );
    });
}

/// As many addresses of each family.
fn many(each: u16) -> BTreeSet<IpAddr> {
    let both = |number| {
        let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number);
        [Ipv4Addr::from_bits(0x0a60_0000 + u32::from(number)).into(), v6.into()]
    };
    (1..=each).flat_map(both).collect()
}

#[test]
fn of_thousands_of_routes_one_that_is_refused_is_named_and_all_others_are_made() {
    let node = node();
    let vips = many(2000);
    let taken = "10.96.3.232".parse().expect("an address");
    node.netns.ip("route add 10.96.3.232/32 dev up0");
    // Bits behind its prefix: the kernel takes no such range of IPv4.
    let refused: IpNet = "10.97.0.1/16".parse().expect("a range");
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        let told = try_sync(&mut routes, &node, &vips, &[refused], [192, 0, 2, 1]).await;
        let RouteError::Change {
            failed,
            address,
            source,
        } = told.expect_err("a range that is none")
        else {
            panic!("routes cannot be listed");
        };
        assert_eq!((failed, address, source), (1, refused, Errno::EINVAL));
        assert_eq!(ours(&node).len(), 3999, "all but the refused one and somebody else's");
        // What was made is found again.
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        let expected = RouteReport {
            conflicts: vec![taken],
            ..RouteReport::default()
        };
        assert_eq!(report, expected);
        // One that went meanwhile is no failure of those that go.
        node.netns.ip("route del 10.96.7.7/32 dev steer0");
        let report = sync(&mut routes, &node, &set(&["10.96.0.1"]), [192, 0, 2, 1]).await;
        let expected = RouteReport {
            removed: 3998,
            ..RouteReport::default()
        };
        assert_eq!(report, expected);
    });
    assert_eq!(ours(&node), ["10.96.0.1 dev steer0 scope link src 192.0.2.1"]);
    assert!(node.netns.ip("route show").contains("10.96.3.232 dev up0"));
}

#[test]
fn ten_thousand_routes_take_a_moment() {
    let node = node();
    let vips = many(5000);
    block_in(&node.netns, || async {
        let mut routes = VipRoutes::new().expect("netlink");
        let started = Instant::now();
        let report = sync(&mut routes, &node, &vips, [192, 0, 2, 1]).await;
        let took = started.elapsed();
        assert_eq!(
            report,
            RouteReport {
                added: 10_000,
                ..RouteReport::default()
            }
        );
        assert!(took < Duration::from_secs(5), "{took:?}");
        let started = Instant::now();
        let mut next = VipRoutes::new().expect("netlink");
        assert_eq!(
            sync(&mut next, &node, &vips, [192, 0, 2, 1]).await,
            RouteReport::default()
        );
        let looked = started.elapsed();
        assert!(looked < Duration::from_secs(2), "{looked:?}");
        assert_eq!(ours(&node).len(), 10_000);
        let started = Instant::now();
        let report = sync(&mut next, &node, &BTreeSet::new(), [192, 0, 2, 1]).await;
        let gone = started.elapsed();
        assert_eq!(report.removed, 10_000);
        assert!(gone < Duration::from_secs(5), "{gone:?}");
        println!("10,000 routes: {took:?} to add, {looked:?} to find again, {gone:?} to remove");
    });
    assert_eq!(ours(&node), [""; 0]);
}
