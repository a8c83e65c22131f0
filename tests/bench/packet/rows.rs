//! The rows of `packet`: figures without the loop around them, each with its yardstick and goal.

use super::{All, HOOKS, MOST_FLOWS, SIZES};
use crate::figures::Figures;
use crate::report::{Bound, Report, Row};

/// Kinds of traffic by name.
const KINDS: [&str; 4] = ["TCP v4", "TCP v6", "UDP v4", "UDP v6"];
/// Goals of established TCP over IPv4 at XDP, by the number of flows, in look-ups; all else may cost so much more.
const ESTABLISHED: [f64; 4] = [2.8, 1.5, 1.0, 1.0];
const MORE: f64 = 1.3;

/// All of them.
pub(super) fn report(all: &All) -> Report {
    let figures = Taken(all);
    let mut rows = yardsticks(&figures);
    for place in ["Xdp", "Tc"] {
        for traffic in KINDS {
            established(&figures, place, traffic, &mut rows);
            opened(&figures, place, traffic, &mut rows);
        }
    }
    strangers(&figures, &mut rows);
    few_and_many(&figures, &mut rows);
    for traffic in KINDS {
        let (dump, sweep) = (
            figures.of(&format!("dump {traffic}")),
            figures.of(&format!("sweep {traffic}")),
        );
        rows.push(Row::below(
            &format!("dump of a million flows, {traffic}"),
            "ms",
            dump,
            100.0,
        ));
        rows.push(Row::below(
            &format!("sweep of a million flows, {traffic}"),
            "ms",
            sweep,
            20.0,
        ));
    }
    Report {
        section: "packet",
        about: "Nanoseconds a packet inside the kernel, the programs alone; the bare loop is part of both sides of a ratio. Dump and sweep \
                read tables that are made for two million flows of each family.",
        rows,
    }
}

/// Figures by name.
struct Taken<'a>(&'a All);

impl Taken<'_> {
    fn of(&self, name: &str) -> &Figures {
        self.0.get(name).unwrap_or_else(|| panic!("no figures of {name}"))
    }

    /// A row's figures with the bare loop in place of the loop that they were taken in.
    fn net(&self, place: &str, what: &str, traffic: &str, flows: usize) -> Figures {
        let empty = self.of(&format!("{place} empty {traffic} {flows}"));
        self.of(&format!("{place} {what}")).less(empty, self.of("loop"))
    }
}

fn shown(place: &str) -> &'static str {
    if place == "Xdp" { "XDP" } else { "tc" }
}

fn yardsticks(figures: &Taken<'_>) -> Vec<Row> {
    let bare = figures.of("loop");
    let mut rows = vec![
        Row::plain("bare loop", "ns", bare),
        Row::plain("I: one insertion of a million, kernel LRU hash", "ns", figures.of("I")),
        Row::plain(
            "the two checksum helpers of tc, loop included",
            "ns",
            figures.of("checksums"),
        ),
    ];
    rows.extend(SIZES.map(|flows| {
        Row::plain(
            &format!("L({flows}): one look-up, kernel LRU hash"),
            "ns",
            figures.of(&format!("L({flows})")),
        )
    }));
    rows
}

/// Packets of flows that stand. At tc the cost of the helpers that mend checksums is taken off before it is compared.
fn established(figures: &Taken<'_>, place: &str, traffic: &str, rows: &mut Vec<Row>) {
    for direction in ["forward", "reply"] {
        for (flows, goal) in SIZES.into_iter().zip(ESTABLISHED) {
            let net = figures.net(place, &format!("{direction} {traffic} {flows}"), traffic, flows);
            let name = format!("established {traffic}, {direction}, {flows} flows, {}", shown(place));
            let (look_up, yardstick) = (figures.of(&format!("L({flows})")), format!("L({flows})"));
            let goal = if (place, traffic, direction) == ("Xdp", "TCP v4", "forward") {
                goal
            } else {
                goal * MORE
            };
            if place == "Tc" {
                rows.push(Row::plain(&name, "ns", &net));
                let net = net.less(figures.of("checksums"), figures.of("loop"));
                let name = format!("{name}, less the checksum helpers");
                rows.push(Row::ratio(&name, "ns", &net, &yardstick, look_up, Bound::AtMost(goal)));
            } else {
                rows.push(Row::ratio(&name, "ns", &net, &yardstick, look_up, Bound::AtMost(goal)));
            }
        }
    }
}

/// First packets, and refused ones.
fn opened(figures: &Taken<'_>, place: &str, traffic: &str, rows: &mut Vec<Row>) {
    let net = figures.net(place, &format!("new {traffic}"), traffic, MOST_FLOWS);
    rows.push(Row::ratio(
        &format!("new {traffic}, a million, {}", shown(place)),
        "ns",
        &net,
        "I",
        figures.of("I"),
        Bound::AtMost(1.7),
    ));
    if traffic.starts_with("TCP") {
        let net = figures.net(place, &format!("refused {traffic}"), traffic, 1);
        rows.push(Row::plain(&format!("refused {traffic}, {}", shown(place)), "ns", &net));
    }
}

fn strangers(figures: &Taken<'_>, rows: &mut Vec<Row>) {
    for traffic in ["TCP v4", "TCP v6"] {
        for hook in HOOKS {
            let place = if hook == "uplink_xdp" { "Xdp" } else { "Tc" };
            let empty = figures.of(&format!("{place} empty {traffic} 1"));
            let net = figures
                .of(&format!("stranger {traffic} {hook}"))
                .less(empty, figures.of("loop"));
            rows.push(Row::ratio(
                &format!("no Service's, {traffic}, {hook}"),
                "ns",
                &net,
                "L(1)",
                figures.of("L(1)"),
                Bound::AtMost(1.0),
            ));
        }
    }
}

fn few_and_many(figures: &Taken<'_>, rows: &mut Vec<Row>) {
    for (name, what) in [("hot", "established"), ("opened", "repeated SYN")] {
        let (few, many) = (
            figures.of(&format!("{name} 10 Services")),
            figures.of(&format!("{name} 10,000 Services")),
        );
        rows.push(Row::plain(&format!("{what}, 1,000 flows, 10 Services"), "ns", few));
        rows.push(Row::ratio(
            &format!("{what}, 1,000 flows, 10000 Services"),
            "ns",
            many,
            "10 Services",
            few,
            Bound::AtMost(1.1),
        ));
    }
}
