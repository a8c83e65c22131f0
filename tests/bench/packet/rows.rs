//! The rows of `packet`: figures without the loop around them, each with its yardstick and goal.

use super::services::{self, HOT, family};
use super::{All, HOOKS, READERS, SIZES, steps};
use crate::figures::Figures;
use crate::report::{Bound, Report, Row};

/// Kinds of traffic by name.
const KINDS: [&str; 4] = ["TCP v4", "TCP v6", "UDP v4", "UDP v6"];
/// Goals of established TCP over IPv4 at XDP, by the number of flows, in look-ups; all else may cost so much more.
const ESTABLISHED: [f64; 4] = [2.8, 1.5, 1.0, 1.0];
const MORE: f64 = 1.3;
/// How much more the same hot flows may cost over more Services than the fewest.
const BY_SERVICES: f64 = 1.1;

/// All of them.
pub(super) fn report(all: &All) -> Report {
    let figures = Taken(all);
    let mut rows = Vec::new();
    for traffic in KINDS {
        yardsticks(&figures, traffic, &mut rows);
    }
    for place in ["Xdp", "Tc"] {
        for traffic in KINDS {
            established(&figures, place, traffic, &mut rows);
            opened(&figures, place, traffic, &mut rows);
        }
    }
    strangers(&figures, &mut rows);
    parts(&figures, &mut rows);
    few_and_many(&figures, &mut rows);
    for traffic in KINDS {
        whole_tables(&figures, "", "", traffic, &mut rows);
    }
    for traffic in [false, true].map(family) {
        whole_tables(&figures, "full ", " in tables for as many", traffic, &mut rows);
    }
    Report {
        section: "packet",
        about: "Nanoseconds per packet inside the kernel, the programs alone: the loop around them, shown as empty loop, is taken off, and the \
                bare loop is part of both sides of a ratio. A row is taken several times a round, each time beside its yardstick, and its ratio is \
                the median of theirs; yardsticks have rows of their own, taken beside each kind of traffic. L(n) looks up n keys that are spread over a million, in an order that is not that of their insertion. Dump and sweep read tables \
                that are made for two million flows of each family where nothing else is said, by as many threads as there are processors. Established packets let go early show where the time goes: parsing alone is \
                what a packet costs that is no Service's. Programs are counted on the running kernel.",
        rows,
    }
}

/// What reads whole tables. `of` tells the tables in the names of figures, `shown` in those of rows.
fn whole_tables(figures: &Taken<'_>, of: &str, shown: &str, traffic: &str, rows: &mut Vec<Row>) {
    for (what, most) in [("dump", 100.0), ("sweep", 20.0)] {
        let name = format!("{what} of a million flows{shown}, {traffic}");
        let taken = figures.of(&format!("{of}{what} {traffic}"));
        rows.push(Row::below(&name, "ms", taken, most));
    }
    for threads in READERS {
        let name = format!("one word of each slot read{shown}, by {threads} threads, beside {traffic}");
        let taken = figures.of(&format!("{of}words {traffic} {threads}"));
        rows.push(Row::plain(&name, "ms", taken));
    }
}

/// The name of the row of a look-up among so many flows.
pub(crate) fn yardstick_row(flows: usize, traffic: &str) -> String {
    format!("L({flows}): one look-up, kernel LRU hash, beside {traffic}")
}

/// The name of the row of packets of flows that stand.
pub(crate) fn established_row(traffic: &str, direction: &str, flows: usize, place: &str) -> String {
    format!("established {traffic}, {direction}, {flows} flows, {place}")
}

/// The name of the row of hot flows over so many Services.
pub(crate) fn services_row(what: &str, traffic: &str, services: usize, place: &str) -> String {
    format!("{what} {traffic}, {HOT} hot flows, {services} Services, {place}")
}

/// Figures by name.
struct Taken<'a>(&'a All);

impl Taken<'_> {
    fn of(&self, name: &str) -> &Figures {
        self.0.of(name)
    }

    fn bare(&self, traffic: &str) -> &Figures {
        self.of(&format!("loop {traffic}"))
    }

    fn look_up(&self, flows: usize, traffic: &str) -> &Figures {
        self.of(&format!("L({flows}) {traffic}"))
    }

    fn line(&self, flows: usize, traffic: &str) -> &Figures {
        self.of(&format!("line({flows}) {traffic}"))
    }

    /// The row of a name against its look-up, less the helpers that mend checksums.
    fn against_look_up(&self, figures: &str, row: &str, flows: usize, goal: f64) -> Row {
        let (less, ratio) = (
            self.of(&format!("{figures} less")),
            self.of(&format!("{figures} ratio")),
        );
        Row::taken_beside(row, "ns", less, &format!("L({flows})"), ratio, Bound::AtMost(goal))
    }
}

fn shown(place: &str) -> &'static str {
    if place == "Xdp" { "XDP" } else { "tc" }
}

fn yardsticks(figures: &Taken<'_>, traffic: &str, rows: &mut Vec<Row>) {
    let mut plain = |name: &str, figures: &Figures| rows.push(Row::plain(name, "ns", figures));
    plain(&format!("bare loop, beside {traffic}"), figures.bare(traffic));
    for place in ["Xdp", "Tc"] {
        plain(
            &format!(
                "I: one insertion of a million, kernel LRU hash, beside {traffic}, {}",
                shown(place)
            ),
            figures.of(&format!("{place} I {traffic}")),
        );
    }
    plain(
        &format!("the two checksum helpers of tc, bare loop included, beside {traffic}"),
        figures.of(&format!("checksums {traffic}")),
    );
    for flows in SIZES {
        plain(&yardstick_row(flows, traffic), figures.look_up(flows, traffic));
    }
    for flows in SIZES {
        let name = format!("one look-up among {flows} keys, each known after the one before, beside {traffic}");
        plain(&name, figures.of(&format!("in turn({flows}) {traffic}")));
    }
    for flows in SIZES {
        let name = format!("one look-up among {flows} keys in the order of their insertion, beside {traffic}");
        plain(&name, figures.of(&format!("in order({flows}) {traffic}")));
    }
    for flows in SIZES {
        let name =
            format!("one of {flows} lines of memory over a table as large as that of the flows, beside {traffic}");
        plain(&name, figures.line(flows, traffic));
    }
    for place in ["Xdp", "Tc"] {
        for flows in SIZES {
            let name = format!("empty loop, {traffic}, {flows} flows, {}", shown(place));
            plain(&name, figures.of(&format!("{place} empty {traffic} {flows}")));
        }
    }
}

/// Packets of flows that stand. At tc the cost of the helpers that mend checksums is taken off before it is compared.
fn established(figures: &Taken<'_>, place: &str, traffic: &str, rows: &mut Vec<Row>) {
    for direction in ["forward", "reply"] {
        for (flows, goal) in SIZES.into_iter().zip(ESTABLISHED) {
            let taken = format!("{place} {direction} {traffic} {flows}");
            let name = established_row(traffic, direction, flows, shown(place));
            let goal = if (place, traffic, direction) == ("Xdp", "TCP v4", "forward") {
                goal
            } else {
                goal * MORE
            };
            if (place, direction) == ("Xdp", "forward") && flows > 1 {
                // What one flow costs, with a line of memory among so many in place of one that is always at hand.
                let [far, near] = [flows, 1].map(|flows| figures.line(flows, traffic));
                let least = figures.of(&format!("{place} {direction} {traffic} 1")).less(near, far);
                let name = format!("the cost of one flow of {traffic} and of one of {flows} such lines, XDP");
                let yardstick = format!("L({flows})");
                rows.push(Row::beside(
                    &name,
                    "ns",
                    &least,
                    &yardstick,
                    figures.look_up(flows, traffic),
                ));
            }
            let mut name = name;
            if place == "Tc" {
                rows.push(Row::plain(&name, "ns", figures.of(&taken)));
                name.push_str(", less the checksum helpers");
            }
            rows.push(figures.against_look_up(&taken, &name, flows, goal));
        }
    }
}

/// First packets, and refused ones.
fn opened(figures: &Taken<'_>, place: &str, traffic: &str, rows: &mut Vec<Row>) {
    let insertion = figures.of(&format!("{place} I {traffic}"));
    rows.push(Row::ratio(
        &format!("new {traffic}, a million, {}", shown(place)),
        "ns",
        figures.of(&format!("{place} new {traffic}")),
        "I",
        insertion,
        Bound::AtMost(1.7),
    ));
    if place == "Xdp" {
        let name = format!("two slots taken on rolls and written, by nothing else, beside {traffic}");
        rows.push(Row::beside(
            &name,
            "ns",
            figures.of(&format!("entries {traffic}")),
            "I",
            insertion,
        ));
    }
    let by = if traffic.starts_with("TCP") {
        "by a reset"
    } else {
        "by port unreachable, taking it off again included"
    };
    rows.push(Row::plain(
        &format!("refused {traffic} {by}, {}", shown(place)),
        "ns",
        figures.of(&format!("{place} refused {traffic}")),
    ));
}

fn strangers(figures: &Taken<'_>, rows: &mut Vec<Row>) {
    for traffic in ["TCP v4", "TCP v6"] {
        for hook in HOOKS {
            let (taken, name) = (
                format!("stranger {traffic} {hook}"),
                format!("no Service's, {traffic}, {hook}"),
            );
            rows.push(figures.against_look_up(&taken, &name, 1, 1.0));
        }
    }
}

/// Packets of flows that stand, let go after some of the steps.
fn parts(figures: &Taken<'_>, rows: &mut Vec<Row>) {
    let traffic = steps::TRAFFIC;
    for (part, place, what) in [
        ("look-up", "Xdp", "parse, bit-sets, flow look-up"),
        ("way out", "Xdp", "all but rewrite"),
        ("look-up", "Tc", "parse, bit-sets, flow look-up"),
        ("rewrite", "Tc", "all but way out"),
    ] {
        for flows in steps::FLOWS {
            let name = format!("let go, {traffic}, {flows} flows, {}: {what}", shown(place));
            let taken = figures.of(&format!("{place} {part} {traffic} {flows}"));
            rows.push(Row::plain(&name, "ns", taken));
        }
    }
}

/// The same hot flows over more and more Services, each against the fewest.
fn few_and_many(figures: &Taken<'_>, rows: &mut Vec<Row>) {
    let [fewest, more @ ..] = services::NUMBERS;
    for place in ["Xdp", "Tc"] {
        for traffic in [false, true].map(family) {
            let told = if place == "Tc" { 2 } else { 1 };
            for what in ["established", "new"].into_iter().take(told) {
                let of = |what: &str, services: usize| figures.of(&format!("{place} hot {what} {traffic} {services}"));
                let name = |services| services_row(what, traffic, services, shown(place));
                let few = of(what, fewest);
                rows.push(Row::plain(&name(fewest), "ns", few));
                for services in more {
                    let (name, yardstick, many) = (name(services), format!("{fewest} Services"), of(what, services));
                    rows.push(if what == "established" {
                        let ratio = of("ratio", services);
                        Row::taken_beside(&name, "ns", many, &yardstick, ratio, Bound::AtMost(BY_SERVICES))
                    } else {
                        Row::beside(&name, "ns", many, &yardstick, few)
                    });
                }
            }
        }
    }
}
