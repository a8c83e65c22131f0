//! The pinned maps of the kernel programs as a [`MapStore`].
//!
//! Every map is checked against its [`Geometry`] before anything is read or written: aya and the kernel take a pin of other
//! sizes without a word. Published tables are plain memory; the few hash maps go through bpf(2), many entries a call.
//! The `names` map is made here when it is absent, because no program refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use ipnet::IpNet;
use lb_common::layout::{DEVICE_WORDS, Device, NAME_BYTES, RANGE_ID_BITS, config};
use lb_common::verdict::REASONS;

use super::memory::store_words;
use super::syscall::{Entries, RawMap};
use super::table::{AFFINITY, DEVICES, NAMES, RANGES, REASON_COUNTERS, geometries};
use super::{Geometry, Grace, MapError, MapKind, MapStore, OpenError, SourceRange, Table, Values, Words};

/// Entries a batch call moves at most; larger gains nothing.
const CHUNK: usize = 1000;

/// The tables in the kernel.
#[derive(Debug)]
pub struct BpfStore {
    tables: Vec<Words>,
    ranges: [RawMap; 2],
    devices: RawMap,
    names: RawMap,
    affinity: [RawMap; 2],
    reasons: RawMap,
    cpus: usize,
    grace: Grace,
    operations: AtomicU64,
}

/// Checks every pin of a directory that is a map of ours; gives the names of those that are absent. A pin that does not fit
/// is an error, and must not be given to a loader.
pub fn check_pins(directory: &Path) -> Result<Vec<&'static str>, OpenError> {
    let mut absent = Vec::new();
    for geometry in geometries() {
        match open_pin(directory, &geometry)? {
            Some(map) => check(&map, &geometry).map(drop)?,
            None => absent.push(geometry.name),
        }
    }
    Ok(absent)
}

/// The seed of the tables that are pinned in a directory; `None` where there is none, or the pin is no configuration of this
/// layout.
pub fn pinned_seed(directory: &Path) -> Option<u64> {
    let geometry = Geometry::of_table(Table::Config);
    let map = open_pin(directory, &geometry).ok()??;
    let values = check(&map, &geometry).ok()?;
    let words = Words::of_map(map.fd().as_fd(), values as usize * Table::Config.value_words()).ok()?;
    Some(words.load(config::TABLE_SEED)).filter(|seed| *seed != 0)
}

impl BpfStore {
    /// Opens the maps that are pinned in `directory` under their names. Makes and pins `names` if there is none.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::assemble(|geometry| match open_pin(directory, geometry)? {
            Some(map) => Ok(map),
            None if geometry.name == NAMES.name => {
                let path = directory.join(NAMES.name);
                let map = MapData::from_fd(make_names()?).map_err(|source| OpenError::Pin {
                    path: path.clone(),
                    source,
                })?;
                map.pin(&path)
                    .map_err(|error| prepare("pin", NAMES.name)(io::Error::other(error)))?;
                Ok(map)
            }
            None => Err(OpenError::Missing { map: geometry.name }),
        })
    }

    /// Uses the maps of a loaded object, which keeps them. `names` is made anew.
    pub fn of_object(object: &Ebpf) -> Result<Self, OpenError> {
        Self::assemble(|geometry| {
            let fd = if geometry.name == NAMES.name {
                make_names()?
            } else {
                let map = object
                    .map(geometry.name)
                    .and_then(data)
                    .ok_or(OpenError::Missing { map: geometry.name })?;
                map.fd()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(prepare("open", geometry.name))?
            };
            MapData::from_fd(fd).map_err(|source| OpenError::Information {
                map: geometry.name,
                source,
            })
        })
    }

    fn assemble(mut open: impl FnMut(&Geometry) -> Result<MapData, OpenError>) -> Result<Self, OpenError> {
        let mut table = |table: Table| {
            let geometry = Geometry::of_table(table);
            let map = open(&geometry)?;
            let values = check(&map, &geometry)?;
            Words::of_map(map.fd().as_fd(), values as usize * table.value_words())
                .map_err(prepare("map", geometry.name))
        };
        let tables = Table::ALL.into_iter().map(&mut table).collect::<Result<_, _>>()?;
        let mut raw = |geometry: &Geometry| {
            let map = open(geometry)?;
            check(&map, geometry)?;
            let fd = map
                .fd()
                .as_fd()
                .try_clone_to_owned()
                .map_err(prepare("open", geometry.name))?;
            Ok(RawMap::new(fd, geometry.key, geometry.value))
        };
        Ok(Self {
            tables,
            ranges: [raw(&RANGES[0])?, raw(&RANGES[1])?],
            devices: raw(&DEVICES)?,
            names: raw(&NAMES)?,
            affinity: [raw(&AFFINITY[0])?, raw(&AFFINITY[1])?],
            reasons: raw(&REASON_COUNTERS)?,
            cpus: aya::util::nr_cpus().map_err(|(file, source)| OpenError::Cpus {
                file: file.into(),
                source,
            })?,
            grace: Grace(Some(Arc::new(GraceMap::new().map_err(prepare("make", "grace"))?))),
            operations: AtomicU64::new(0),
        })
    }

    fn operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }
}

fn open_pin(directory: &Path, geometry: &Geometry) -> Result<Option<MapData>, OpenError> {
    let path = directory.join(geometry.name);
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => MapData::from_pin(&path)
            .map(Some)
            .map_err(|source| OpenError::Pin { path, source }),
        Err(error) => Err(prepare("look for", geometry.name)(error)),
    }
}

fn data(map: &Map) -> Option<&MapData> {
    if let Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::LruHashMap(data) | Map::PerCpuArray(data) =
        map
    {
        Some(data)
    } else {
        None
    }
}

fn make_names() -> Result<OwnedFd, OpenError> {
    let Values::Exactly(entries) = NAMES.values else {
        return Err(OpenError::Missing { map: NAMES.name });
    };
    RawMap::create(
        MapKind::Hash,
        NAMES.key,
        NAMES.value,
        entries,
        NAMES.flags,
        NAMES.name,
        None,
    )
    .map(RawMap::into_fd)
    .map_err(prepare("make", NAMES.name))
}

/// Compares a map with what it must be; gives its number of values.
fn check(map: &MapData, geometry: &Geometry) -> Result<u32, OpenError> {
    let name = geometry.name;
    let information = |source| OpenError::Information { map: name, source };
    let info = map.info().map_err(information)?;
    let found = info.max_entries();
    let expected = geometry.values_like(found);
    for (property, found, expected) in [
        (
            "type",
            info.map_type().map_err(information)? as u32,
            geometry.kind as u32,
        ),
        ("key size", info.key_size(), geometry.key),
        ("value size", info.value_size(), geometry.value),
        ("number of values", found, expected),
        ("flags", info.map_flags(), geometry.flags),
    ] {
        if found != expected {
            return Err(OpenError::Geometry {
                map: name,
                property,
                found,
                expected,
            });
        }
    }
    Ok(found)
}

fn prepare(operation: &'static str, map: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Prepare { operation, map, source }
}

fn kernel(operation: &'static str, map: &'static str) -> impl Fn(io::Error) -> MapError {
    move |source| MapError::Kernel { operation, map, source }
}

/// A map of maps whose only use is that the kernel waits for a grace period after changing it
/// (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`).
#[derive(Debug)]
pub(super) struct GraceMap {
    outer: RawMap,
    inner: RawMap,
}

impl GraceMap {
    fn new() -> io::Result<Self> {
        let inner = RawMap::create(MapKind::Array, 4, 4, 1, 0, "grace_inner", None)?;
        let outer = RawMap::create(MapKind::ArrayOfMaps, 4, 4, 1, 0, "grace", Some(&inner))?;
        Ok(Self { outer, inner })
    }

    pub(super) fn wait(&self) -> io::Result<()> {
        self.outer
            .update(&0u32.to_ne_bytes(), &self.inner.number().to_ne_bytes())
    }
}

/// The key of a source range: prefix length, service port id (big-endian, so that it is a prefix), network.
fn range_key(range: &SourceRange) -> Vec<u8> {
    let bits = RANGE_ID_BITS + u32::from(range.range.prefix_len());
    let mut key = bits.to_ne_bytes().to_vec();
    key.extend_from_slice(&range.service.to_be_bytes());
    match range.range.network() {
        IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => key.extend_from_slice(&address.octets()),
    }
    key
}

/// The inverse of [`range_key`]; `None` for a key that no range has.
fn range_of_key(key: &[u8]) -> Option<SourceRange> {
    let (bits, rest) = key.split_first_chunk::<4>()?;
    let (service, address) = rest.split_first_chunk::<4>()?;
    let address = match *address {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let length = u32::from_ne_bytes(*bits).checked_sub(RANGE_ID_BITS)?;
    let range = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
    Some(SourceRange {
        service: u32::from_be_bytes(*service),
        range,
    })
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

impl MapStore for BpfStore {
    fn words(&self, table: Table) -> &Words {
        &self.tables[table as usize]
    }

    fn write(&self, table: Table, index: u32, words: &[u64]) -> Result<(), MapError> {
        self.operation();
        store_words(self.words(table), table, index, words)
    }

    fn put_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.operation();
        ranges.iter().try_for_each(|range| {
            let family = usize::from(range.range.addr().is_ipv6());
            let present = 1u32.to_ne_bytes();
            self.ranges[family]
                .update(&range_key(range), &present)
                .map_err(kernel("insert", RANGES[family].name))
        })
    }

    fn remove_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.operation();
        ranges.iter().try_for_each(|range| {
            let family = usize::from(range.range.addr().is_ipv6());
            self.ranges[family]
                .delete(&range_key(range))
                .map(drop)
                .map_err(kernel("delete", RANGES[family].name))
        })
    }

    fn ranges(&self) -> Result<BTreeSet<SourceRange>, MapError> {
        let mut ranges = BTreeSet::new();
        for (map, geometry) in self.ranges.iter().zip(&RANGES) {
            let keys = map.keys().map_err(kernel("walk", geometry.name))?;
            ranges.extend(keys.chunks_exact(geometry.key as usize).filter_map(range_of_key));
        }
        Ok(ranges)
    }

    fn put_device(&self, ifindex: u32, device: Device) -> Result<(), MapError> {
        self.operation();
        let value: Vec<u8> = device.words().into_iter().flat_map(u64::to_ne_bytes).collect();
        self.devices
            .update(&ifindex.to_ne_bytes(), &value)
            .map_err(kernel("insert", DEVICES.name))
    }

    fn remove_device(&self, ifindex: u32) -> Result<(), MapError> {
        self.operation();
        self.devices
            .delete(&ifindex.to_ne_bytes())
            .map(drop)
            .map_err(kernel("delete", DEVICES.name))
    }

    fn devices(&self) -> Result<BTreeMap<u32, Device>, MapError> {
        let entries = self.devices.entries(CHUNK).map_err(kernel("walk", DEVICES.name))?;
        let values = entries.values.chunks_exact(DEVICES.value as usize).map(|value| {
            let mut words = [0; DEVICE_WORDS];
            for (to, from) in words.iter_mut().zip(value.chunks_exact(8)) {
                *to = word(from);
            }
            Device::from_words(words)
        });
        Ok(entries.keys.chunks_exact(4).map(number).zip(values).collect())
    }

    fn put_names(&self, names: &[(u32, Arc<str>)]) -> Result<(), MapError> {
        self.operation();
        names.chunks(CHUNK).try_for_each(|chunk| {
            let mut entries = Entries {
                keys: Vec::new(),
                values: vec![0; chunk.len() * NAME_BYTES],
            };
            for ((id, name), value) in chunk.iter().zip(entries.values.chunks_exact_mut(NAME_BYTES)) {
                let Some(value) = value.get_mut(..name.len()) else {
                    return Err(MapError::NameTooLong {
                        id: *id,
                        name: name.as_ref().into(),
                    });
                };
                value.copy_from_slice(name.as_bytes());
                entries.keys.extend_from_slice(&id.to_ne_bytes());
            }
            self.names
                .update_batch(&entries, chunk.len())
                .map_err(kernel("insert", NAMES.name))
        })
    }

    fn remove_names(&self, ids: &[u32]) -> Result<(), MapError> {
        self.operation();
        let keys: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        self.names
            .delete_batch(&keys, ids.len())
            .map_err(kernel("delete", NAMES.name))
    }

    fn names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        let entries = self.names.entries(CHUNK).map_err(kernel("walk", NAMES.name))?;
        let text = |value: &[u8]| {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            String::from_utf8_lossy(&value[..end]).into_owned()
        };
        Ok(entries
            .keys
            .chunks_exact(4)
            .map(number)
            .zip(entries.values.chunks_exact(NAME_BYTES).map(text))
            .collect())
    }

    fn forget_affinity(&self, backends: &[u64]) -> Result<(), MapError> {
        self.operation();
        for (map, geometry) in self.affinity.iter().zip(&AFFINITY) {
            let entries = map.entries(CHUNK).map_err(kernel("walk", geometry.name))?;
            let (key, value) = (geometry.key as usize, geometry.value as usize);
            let mut gone = Vec::new();
            for (key, value) in entries.keys.chunks_exact(key).zip(entries.values.chunks_exact(value)) {
                if backends.binary_search(&word(value)).is_ok() {
                    gone.extend_from_slice(key);
                }
            }
            map.delete_batch(&gone, gone.len() / key)
                .map_err(kernel("delete", geometry.name))?;
        }
        Ok(())
    }

    fn reasons(&self) -> Result<Vec<u64>, MapError> {
        let mut values = vec![0u8; self.cpus * 8];
        (0..REASONS as u32)
            .map(|reason| {
                self.reasons
                    .lookup_of_cpus(&reason.to_ne_bytes(), &mut values, self.cpus)
                    .map_err(kernel("read", REASON_COUNTERS.name))?;
                Ok(values.chunks_exact(8).map(word).fold(0, u64::wrapping_add))
            })
            .collect()
    }

    fn grace(&self) -> Grace {
        self.grace.clone()
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_its_key() {
        for (service, text) in [
            (1, "10.0.0.0/8"),
            (0x0102_0304, "192.0.2.1/32"),
            (7, "2001:db8::/33"),
            (9, "0.0.0.0/0"),
        ] {
            let range = SourceRange {
                service,
                range: text.parse().unwrap(),
            };
            let key = range_key(&range);
            assert_eq!(key.len() as u32, RANGES[usize::from(range.range.addr().is_ipv6())].key);
            assert_eq!(range_of_key(&key), Some(range));
        }
        assert_eq!(range_of_key(&[0; 12]), None, "shorter than a service port id");
        assert_eq!(range_of_key(&[0; 11]), None);
    }

    #[test]
    fn the_id_comes_before_the_network() {
        let range = SourceRange {
            service: 0x0102_0304,
            range: "10.9.0.0/16".parse().unwrap(),
        };
        assert_eq!(range_key(&range)[4..], [1, 2, 3, 4, 10, 9, 0, 0]);
    }
}
