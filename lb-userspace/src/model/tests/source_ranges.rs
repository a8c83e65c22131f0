//! `loadBalancerSourceRanges`: families, /0, padding, the node's own address (`TestLoadBalancer`).

use super::*;

#[track_caller]
fn ranges(texts: &[&str], family: Family) -> SourceRanges {
    let mut world = World::new();
    world.node(None, &["192.0.2.7", "2001:db8::7"]).service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": [CLUSTER_IP, "fd00::10"], "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{ "port": 80 }], "loadBalancerSourceRanges": texts,
        }),
    );
    world.port(&format!("default/web TCP {family}")).source_ranges
}

fn only(ranges: &[&str], allow_node: bool) -> SourceRanges {
    SourceRanges::Ranges {
        ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        allow_node,
    }
}

#[test]
fn no_ranges_allow_all() {
    assert_eq!(ranges(&[], Family::V4), SourceRanges::AllowAll);
    assert_eq!(ranges(&["", " "], Family::V4), SourceRanges::AllowAll);
}

#[test]
fn whitespace_in_ranges_is_trimmed() {
    assert_eq!(
        ranges(&[" 203.0.113.0/25", "10.0.0.0/8 "], Family::V4),
        only(&["10.0.0.0/8", "203.0.113.0/25"], false)
    );
}

#[test]
fn ranges_of_one_family_leave_the_other_open() {
    assert_eq!(ranges(&["2001:db8:1::/48"], Family::V4), SourceRanges::AllowAll);
    assert_eq!(
        ranges(&["2001:db8:1::/48"], Family::V6),
        only(&["2001:db8:1::/48"], false)
    );
}

#[test]
fn range_of_length_zero_allows_all_of_its_family() {
    assert_eq!(
        ranges(&["203.0.113.0/24", "0.0.0.0/0"], Family::V4),
        SourceRanges::AllowAll
    );
    assert_eq!(
        ranges(&["::/0", "2001:db8:1::/48", "203.0.113.0/24"], Family::V6),
        SourceRanges::AllowAll
    );
    assert_eq!(
        ranges(&["::/0", "203.0.113.0/24"], Family::V4),
        only(&["203.0.113.0/24"], false)
    );
}

#[test]
fn node_is_allowed_when_a_range_contains_its_primary_address() {
    assert_eq!(ranges(&["192.0.2.0/24"], Family::V4), only(&["192.0.2.0/24"], true));
    assert_eq!(
        ranges(&["203.0.113.0/24", "2001:db8::/64"], Family::V6),
        only(&["2001:db8::/64"], true)
    );
}

#[test]
fn unreadable_range_never_opens_the_address() {
    assert_eq!(ranges(&["10.0.0.0/33"], Family::V4), only(&[], false));
    assert_eq!(ranges(&["10.0.0.0/33"], Family::V6), SourceRanges::AllowAll);
    assert_eq!(
        ranges(&["10.0.0.0/33", "203.0.113.0/24"], Family::V4),
        only(&["203.0.113.0/24"], false)
    );
    assert_eq!(ranges(&["2001:db8::/129"], Family::V6), only(&[], false));
}
