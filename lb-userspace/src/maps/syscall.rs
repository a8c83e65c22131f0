//! The bpf(2) commands on map elements that shared memory cannot do, as safe calls on a [`RawMap`].
//!
//! A `RawMap` knows the sizes of its keys and values, so that no call can make the kernel read or write past a buffer.
//! Deleting what is absent is success. Errors are the kernel's, untouched; batches stop at the first one.
//!
//! Source: `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`; batches are in every kernel from 5.6.
#![expect(unsafe_code, reason = "bpf(2) takes pointers to keys, values and cursors")]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::table::MapKind;

/// A map's file descriptor and element sizes.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

const MAP_CREATE: c_long = 0;
const MAP_LOOKUP: c_long = 1;
const MAP_UPDATE: c_long = 2;
const MAP_DELETE: c_long = 3;
const MAP_NEXT_KEY: c_long = 4;
const MAP_LOOKUP_BATCH: c_long = 24;
const MAP_UPDATE_BATCH: c_long = 26;
const MAP_DELETE_BATCH: c_long = 27;

#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_cursor: u64,
    out_cursor: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` is the member of `union bpf_attr` that `command` reads, and every pointer in it is valid for what `command` does.
unsafe fn bpf<T>(command: c_long, attr: &mut T) -> io::Result<c_long> {
    // SAFETY: the caller's promise; the size is that of the very object.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Entries of a map, keys and values one after the other.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
}

impl RawMap {
    /// Makes a map. `inner` is the map that a map of maps takes as the pattern of its values.
    pub(super) fn create(
        kind: MapKind,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        name: &str,
        inner: Option<&Self>,
    ) -> io::Result<Self> {
        let mut attr = Create {
            kind: kind as u32,
            key_size: key,
            value_size: value,
            max_entries: entries,
            flags,
            inner_map: inner.map_or(0, Self::number),
            ..Create::default()
        };
        let shown = name.len().min(attr.name.len() - 1);
        attr.name[..shown].copy_from_slice(&name.as_bytes()[..shown]);
        // SAFETY: MAP_CREATE reads this member; it holds no pointer.
        let fd = unsafe { bpf(MAP_CREATE, &mut attr) }?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self {
            fd,
            key: key as usize,
            value: value as usize,
        })
    }

    /// A map that is open already, with the sizes that its information tells.
    pub(super) fn new(fd: OwnedFd, key: u32, value: u32) -> Self {
        Self {
            fd,
            key: key as usize,
            value: value as usize,
        }
    }

    /// Gives the descriptor away.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The descriptor as attributes hold it.
    pub(super) fn number(&self) -> u32 {
        self.fd.as_raw_fd().cast_unsigned()
    }

    fn check(&self, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
        let fits = keys.len() == count * self.key && (values.is_empty() || values.len() == count * self.value);
        if fits {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    fn element(&self, key: &[u8], second: u64) -> Element {
        Element {
            map: self.number(),
            pad: 0,
            key: key.as_ptr() as u64,
            value_or_next_key: second,
            flags: 0,
        }
    }

    /// Inserts or replaces an entry.
    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, value, 1)?;
        let mut attr = self.element(key, value.as_ptr() as u64);
        // SAFETY: `check` proved that both buffers have the map's sizes; the kernel only reads them.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }

    /// Reads the values of an entry of a per-CPU map, one for each of the `cpus` possible CPUs; false when there is none.
    /// The map's value size must be a multiple of 8.
    pub(super) fn lookup_of_cpus(&self, key: &[u8], values: &mut [u8], cpus: usize) -> io::Result<bool> {
        self.check(key, &[], 1)?;
        if !self.value.is_multiple_of(8) || values.len() != self.value * cpus {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = self.element(key, values.as_mut_ptr() as u64);
        // SAFETY: the buffer was proved to have room for what the kernel writes: one value a possible CPU.
        present(unsafe { bpf(MAP_LOOKUP, &mut attr) })
    }

    /// Deletes an entry; true when there was one.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key, &[], 1)?;
        let mut attr = self.element(key, 0);
        // SAFETY: `check` proved the key's size; the kernel only reads it.
        present(unsafe { bpf(MAP_DELETE, &mut attr) })
    }

    /// Inserts or replaces `count` entries in one call.
    pub(super) fn update_batch(&self, entries: &Entries, count: usize) -> io::Result<()> {
        self.check(&entries.keys, &entries.values, count)?;
        let mut attr = self.batch(&entries.keys, entries.values.as_ptr() as u64, count);
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `check` proved both sizes; the kernel only reads them.
        unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }

    /// Deletes `count` keys. Where the kernel has no batch for the map's type, or one key is absent, goes one by one.
    pub(super) fn delete_batch(&self, keys: &[u8], count: usize) -> io::Result<()> {
        self.check(keys, &[], count)?;
        let mut attr = self.batch(keys, 0, count);
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `check` proved the size of the keys; the kernel only reads them.
        if unsafe { bpf(MAP_DELETE_BATCH, &mut attr) }.is_ok() {
            return Ok(());
        }
        keys.chunks_exact(self.key)
            .try_for_each(|key| self.delete(key).map(drop))
    }

    fn batch(&self, keys: &[u8], values: u64, count: usize) -> Batch {
        Batch {
            in_cursor: 0,
            out_cursor: 0,
            keys: keys.as_ptr() as u64,
            values,
            count: count as u32,
            map: self.number(),
            element_flags: 0,
            flags: 0,
        }
    }

    /// All entries of a hash map, `chunk` a call. One that changes meanwhile may be missing or come twice.
    pub(super) fn entries(&self, chunk: usize) -> io::Result<Entries> {
        let mut all = Entries::default();
        let mut chunk = chunk.max(1);
        // Hash maps walk by bucket number, which is 4 bytes whatever the key is.
        let mut cursor = [0u8; 8];
        let mut first = true;
        loop {
            let mut part = Entries {
                keys: vec![0; chunk * self.key],
                values: vec![0; chunk * self.value],
            };
            let mut next = [0u8; 8];
            let mut attr = Batch {
                in_cursor: if first { 0 } else { cursor.as_mut_ptr() as u64 },
                out_cursor: next.as_mut_ptr() as u64,
                keys: part.keys.as_mut_ptr() as u64,
                values: part.values.as_mut_ptr() as u64,
                count: chunk as u32,
                map: self.number(),
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers have room for `chunk` entries, the cursors for more than a bucket number.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let error = result.err().and_then(|error| error.raw_os_error());
            match error {
                // A bucket holds more than a chunk: nothing was copied.
                Some(libc::ENOSPC) => {
                    chunk *= 2;
                    continue;
                }
                None | Some(libc::ENOENT) => {}
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
            }
            let count = attr.count as usize;
            part.keys.truncate(count * self.key);
            part.values.truncate(count * self.value);
            all.keys.append(&mut part.keys);
            all.values.append(&mut part.values);
            if error.is_some() {
                return Ok(all);
            }
            (cursor, first) = (next, false);
        }
    }

    /// All keys of a map of any type, one call each.
    pub(super) fn keys(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut next = vec![0u8; self.key];
        loop {
            let last = all.len().checked_sub(self.key).map(|start| all[start..].to_vec());
            let mut attr = self.element(last.as_deref().unwrap_or_default(), next.as_mut_ptr() as u64);
            if last.is_none() {
                attr.key = 0;
            }
            // SAFETY: both keys have the map's key size; a null key asks for the first.
            if !present(unsafe { bpf(MAP_NEXT_KEY, &mut attr) })? {
                return Ok(all);
            }
            all.extend_from_slice(&next);
        }
    }
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Turns "no such entry" into false.
fn present(result: io::Result<c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
