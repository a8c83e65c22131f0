//! Without tcx: clsact filters stay, are replaced in place, and go alone; and the way from one kind to the other.

use std::time::Duration;

use aya::programs::TcAttachType;
use lb_tests::assert::eventually;
use lb_tests::tiny_program::TinyProgram;
use steerway::datapath::attach::{Attacher, Hook, Kind, Trust};
use steerway::datapath::interfaces::Role;

use super::attach::check_replacement;
use super::{POD_LINK, SERVED, Site, UPLINK, table};
use crate::kernels::machine;

/// Each hook has exactly one filter, with the attacher's program, and no tcx program.
#[track_caller]
fn check_filters(site: &Site, attacher: &Attacher) {
    for (interface, hook, program) in SERVED {
        let id = attacher.programs().id(program).expect("a program");
        let filters = site.filters(interface, hook);
        assert_eq!(filters.len(), 1, "{interface} {}: {filters:?}", hook.name());
        let wanted = format!(" {} direct-action not_in_hw id {id} ", program.name());
        assert!(
            filters[0].contains(&wanted),
            "{interface} {}: {} lacks {wanted}",
            hook.name(),
            filters[0]
        );
        site.no_tcx(interface, hook);
    }
}

fn qdiscs(site: &Site) -> usize {
    site.node
        .ok(&["tc", "qdisc", "show"])
        .lines()
        .filter(|line| line.contains("clsact"))
        .count()
}

#[test]
fn filters_stay_when_the_agent_goes_and_the_next_one_replaces_them() {
    let site = Site::new("filters");
    drop(site.attach(Kind::Clsact));
    let before = site.filters(UPLINK, Hook::Ingress);
    assert_eq!(before.len(), 1);
    let second = site.attach(Kind::Clsact);
    check_filters(&site, &second);
    assert_ne!(site.filters(UPLINK, Hook::Ingress), before);
    assert!(site.filters(UPLINK, Hook::Ingress)[0].contains("pref 1 "));
    assert!(site.filters(UPLINK, Hook::Egress)[0].contains("pref 65535 "));
    assert_eq!(site.pins.link_pins().expect("the pinned links"), []);
}

#[test]
fn filters_are_replaced_without_a_gap() {
    // Each is a load of all programs, and takes a verifier on an emulated processor a quarter of a minute.
    let times = if machine::is_here() { 3 } else { 10 };
    check_replacement(&Site::new("filter-gap"), Kind::Clsact, times);
}

#[test]
fn each_kind_takes_over_from_the_other() {
    let site = Site::new("kinds");
    drop(site.attach(Kind::Tcx));
    check_filters(&site, &site.attach(Kind::Clsact));
    assert_eq!(qdiscs(&site), 3);
    let last = site.attach(Kind::Tcx);
    for (interface, hook, program) in SERVED {
        let expected = last.programs().id(program).expect("a program");
        assert_eq!(site.tcx(interface, hook), [expected], "{interface} {}", hook.name());
        assert_eq!(site.filters(interface, hook), [""; 0], "{interface} {}", hook.name());
    }
    assert_eq!(qdiscs(&site), 0, "the qdiscs were ours and are empty");
}

#[test]
fn filters_and_qdiscs_of_others_are_left_alone() {
    let site = Site::new("others");
    let mut foreign = TinyProgram::marking(7, -1);
    foreign.attach_clsact(&site.node, UPLINK, TcAttachType::Ingress, 1);
    let id = foreign.program().info().expect("its properties").id();
    let attacher = site.attach(Kind::Clsact);
    let filters = site.filters(UPLINK, Hook::Ingress);
    assert_eq!(filters.len(), 2, "{filters:?}");
    assert!(
        filters.iter().any(|line| line.contains(&format!("id {id} "))),
        "{filters:?}"
    );
    drop(attacher);
    drop(site.attach(Kind::Tcx));
    let filters = site.filters(UPLINK, Hook::Ingress);
    assert_eq!(filters.len(), 1, "{filters:?}");
    assert!(filters[0].contains(&format!("id {id} ")), "{filters:?}");
    assert_eq!(qdiscs(&site), 1, "this qdisc was there before us");
}

#[test]
fn a_priority_that_another_kind_of_filter_has_is_passed_over() {
    let site = Site::new("priority");
    site.node.ok(&["tc", "qdisc", "add", "dev", UPLINK, "clsact"]);
    let matchall = [
        "tc", "filter", "add", "dev", UPLINK, "ingress", "pref", "1", "matchall", "action", "continue",
    ];
    if !site.node.cmd(&matchall).status.success() {
        // Kernels without that classifier: u32 is the other kind then.
        let u32_filter = [
            "pref", "1", "protocol", "all", "u32", "match", "u32", "0", "0", "classid", "1:1",
        ];
        let argv: Vec<&str> = matchall[..6].iter().copied().chain(u32_filter).collect();
        site.node.ok(&argv);
    }
    drop(site.attach(Kind::Clsact));
    let filters = site.filters(UPLINK, Hook::Ingress);
    assert!(
        filters
            .iter()
            .any(|line| line.contains("pref 2 ") && line.contains("uplink_in")),
        "{filters:?}"
    );
}

#[test]
fn a_filter_that_lost_its_interface_role_goes_with_our_qdisc() {
    let site = Site::new("filter-role");
    let mut attacher = site.attach(Kind::Clsact);
    site.block(|| async move {
        let mut table = table().await;
        for interface in &mut table.interfaces {
            if interface.name == POD_LINK {
                interface.role = Role::Unhooked;
            }
        }
        let errors = attacher.apply(&table, Trust::Known).await;
        assert!(errors.is_empty(), "{errors:?}");
    });
    assert_eq!(site.filters(POD_LINK, Hook::Ingress), [""; 0]);
    assert_eq!(site.filters(UPLINK, Hook::Ingress).len(), 1);
    assert_eq!(qdiscs(&site), 2);
}

#[test]
fn a_removed_qdisc_is_made_again_when_asked_to_look() {
    let site = Site::new("qdisc");
    let mut attacher = site.attach(Kind::Clsact);
    site.node.ok(&["tc", "qdisc", "del", "dev", UPLINK, "clsact"]);
    eventually(Duration::from_secs(5), "the qdisc is gone", || match qdiscs(&site) {
        2 => Ok(()),
        other => Err(other),
    });
    let attacher = site.block(|| async move {
        let errors = attacher.apply(&table().await, Trust::Nothing).await;
        assert!(errors.is_empty(), "{errors:?}");
        attacher
    });
    check_filters(&site, &attacher);
}
