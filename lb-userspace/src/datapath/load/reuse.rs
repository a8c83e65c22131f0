//! Which pinned maps can go on and which must be made anew: a pure decision over what the object wants and what is pinned.
//!
//! aya takes a pin of any size without a word, so every property is compared here. Maps of the *image* (all but those of
//! [`APART`]) refer to each other by id, generation and seed: if one of them cannot go on, none can, nor the flows and
//! affinities that refer to them. The others are replaced one by one; so are flow tables whose size the operator changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lb_common::layout::map;

/// What the kernel knows of a map's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Elements.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            map_type,
            key_size,
            value_size,
            max_entries,
            flags,
        } = self;
        write!(
            f,
            "type {map_type}, key {key_size} B, value {value_size} B, {max_entries} entries, flags {flags:#x}"
        )
    }
}

/// What becomes of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The pinned map goes on.
    Reuse,
    /// There is none: a new one is pinned.
    Create,
    /// A new one takes the place of the pinned one, for this reason.
    Replace(String),
}

/// Names (without the ending of their family) of the maps that user space and kernel share, and that outlive a load.
const SHARED: [&str; 14] = [
    map::FRONTENDS,
    map::SERVICES,
    map::ARENA,
    map::BACKENDS,
    map::CONFIG,
    map::FORWARD_BITS,
    map::REPLY_BITS,
    map::DEVICES,
    map::RANGES,
    map::FLOWS,
    map::AFFINITY,
    map::FRAGMENTS,
    map::REASONS,
    map::EPOCH,
];

/// Names (as above) of maps outside the image, and whether they refer to it: what refers cannot
/// outlive it. `reasons` are counters, `devices` are written whole at each start, `epoch` only rises, `fragments` live for seconds.
const APART: [(&str, bool); 6] = [
    (map::FLOWS, true),
    (map::AFFINITY, true),
    (map::FRAGMENTS, false),
    (map::DEVICES, false),
    (map::REASONS, false),
    (map::EPOCH, false),
];

/// Decides about each wanted map.
///
/// `same_layout` is false if the pins are of another layout version or of an unknown one.
pub(super) fn decide(
    wanted: &BTreeMap<String, Shape>,
    pinned: &BTreeMap<String, Shape>,
    same_layout: bool,
) -> BTreeMap<String, Fate> {
    let alone = |name: &str, shape: &Shape| match pinned.get(name) {
        None => Fate::Create,
        Some(_) if !same_layout => Fate::Replace("it is of another layout version".to_owned()),
        Some(found) if found == shape => Fate::Reuse,
        Some(found) => Fate::Replace(format!("it is [{found}] but must be [{shape}]")),
    };
    let mut fates: BTreeMap<String, Fate> = wanted
        .iter()
        .map(|(name, shape)| (name.clone(), alone(name, shape)))
        .collect();
    let broken: BTreeSet<&str> = fates
        .iter()
        .filter(|(name, fate)| apart(name).is_none() && **fate != Fate::Reuse)
        .map(|(name, _)| name.as_str())
        .collect();
    let Some(first) = broken.first().map(|name| (*name).to_owned()) else {
        return fates;
    };
    for (name, fate) in &mut fates {
        if apart(name).unwrap_or(true) && *fate == Fate::Reuse {
            *fate = Fate::Replace(format!("it belongs to {first}, which is new"));
        }
    }
    fates
}

/// True for maps that are pinned.
pub(super) fn is_shared(name: &str) -> bool {
    SHARED.contains(&base(name))
}

/// For maps outside the image: whether they refer to it.
fn apart(name: &str) -> Option<bool> {
    APART
        .iter()
        .find(|(apart, _)| *apart == base(name))
        .map(|&(_, refers)| refers)
}

fn base(name: &str) -> &str {
    name.strip_suffix("_v4")
        .or_else(|| name.strip_suffix("_v6"))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        map_type: 2,
        key_size: 4,
        value_size: 256,
        max_entries: 1024,
        flags: 0x400,
    };
    const NAMES: [&str; 6] = ["affinity_v6", "backends", "config", "devices", "flows_v4", "reasons"];

    fn maps(names: &[&str]) -> BTreeMap<String, Shape> {
        names.iter().map(|name| ((*name).to_owned(), SHAPE)).collect()
    }

    fn with(name: &str, change: impl Fn(&mut Shape)) -> BTreeMap<String, Shape> {
        let mut pinned = maps(&NAMES);
        change(pinned.get_mut(name).unwrap());
        pinned
    }

    /// One letter a map of [`NAMES`]: r(euse), c(reate), n(ew in place of the old).
    #[track_caller]
    fn check(pinned: &BTreeMap<String, Shape>, same_layout: bool, expected: &str) {
        let fates = decide(&maps(&NAMES), pinned, same_layout);
        let letters: String = fates
            .values()
            .map(|fate| match fate {
                Fate::Reuse => 'r',
                Fate::Create => 'c',
                Fate::Replace(_) => 'n',
            })
            .collect();
        assert_eq!(letters, expected, "{fates:?}");
    }

    #[test]
    fn equal_maps_go_on() {
        check(&maps(&NAMES), true, "rrrrrr");
    }

    #[test]
    fn an_empty_directory_gets_new_maps() {
        check(&BTreeMap::new(), true, "cccccc");
    }

    #[test]
    fn another_layout_gets_new_maps() {
        check(&maps(&NAMES), false, "nnnnnn");
    }

    #[test]
    fn flow_tables_of_another_size_are_replaced_alone() {
        check(&with("flows_v4", |shape| shape.max_entries = 2048), true, "rrrrnr");
    }

    #[test]
    fn every_property_counts() {
        let changes: [fn(&mut Shape); 5] = [
            |shape| shape.map_type = 1,
            |shape| shape.key_size = 8,
            |shape| shape.value_size = 8,
            |shape| shape.max_entries = 1,
            |shape| shape.flags = 0,
        ];
        for change in changes {
            check(&with("reasons", change), true, "rrrrrn");
        }
    }

    #[test]
    fn a_broken_image_takes_with_it_what_refers_to_it() {
        check(&with("backends", |shape| shape.value_size = 8), true, "nnnrnr");
        let mut pinned = maps(&NAMES);
        pinned.remove("config");
        check(&pinned, true, "nncrnr");
    }

    #[test]
    fn the_reason_names_both_forms() {
        let fates = decide(&maps(&NAMES), &with("flows_v4", |shape| shape.max_entries = 2048), true);
        let Fate::Replace(reason) = &fates["flows_v4"] else {
            panic!("{fates:?}")
        };
        assert!(
            reason.contains("2048 entries") && reason.contains("1024 entries"),
            "{reason}"
        );
    }
}
