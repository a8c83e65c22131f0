//! What pinned maps hold, byte for byte, whatever their types and sizes are. Per-CPU maps cannot be read this way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::maps::MapData;

use crate::syscall::lookup_batch;

/// Entries of a map: values by key.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// The entries of every map that is pinned in `folder`, by the pin's name, but for those called one of `without`. Values of
/// zeros are left out: arrays are full of them.
#[track_caller]
pub fn entries_of_all(folder: &Path, without: &[&str]) -> BTreeMap<String, Entries> {
    let mut all = BTreeMap::new();
    for pin in fs::read_dir(folder).expect("the folder of the pins") {
        let pin = pin.expect("a pin");
        let name = pin.file_name().to_string_lossy().into_owned();
        if !without.contains(&name.as_str()) {
            all.insert(name, entries(&pin.path()));
        }
    }
    all
}

#[track_caller]
fn entries(pin: &Path) -> Entries {
    let map = MapData::from_pin(pin).unwrap_or_else(|error| panic!("{}: {error}", pin.display()));
    let mut entries = Entries::new();
    let mut from = None;
    loop {
        let batch = lookup_batch(&map, from.as_deref());
        let batch = batch.unwrap_or_else(|error| panic!("read {}: {error}", pin.display()));
        let filled = batch.entries.into_iter();
        entries.extend(filled.filter(|(_, value)| value.iter().any(|byte| *byte != 0)));
        match batch.next {
            Some(next) => from = Some(next),
            None => return entries,
        }
    }
}
