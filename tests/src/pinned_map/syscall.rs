//! The system call that reads many entries of a map, whatever its sizes are (bpf(2), include/uapi/linux/bpf.h).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;

/// `BPF_MAP_LOOKUP_BATCH`.
const COMMAND: libc::c_int = 24;
/// Entries a call reads; larger than any bucket of a hash map.
const CHUNK: usize = 4096;

/// The part of `union bpf_attr` that the command takes.
#[repr(C)]
struct BatchAttributes {
    in_cursor: u64,
    out_cursor: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The next entries of a walk.
pub(super) struct Batch {
    /// Keys and values.
    pub(super) entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where to go on; `None` at the end.
    pub(super) next: Option<Vec<u8>>,
}

/// Reads the next entries behind `from`, or the first ones.
#[expect(
    unsafe_code,
    reason = "aya reads only entries of sizes that are known when it is compiled"
)]
pub(super) fn lookup_batch(map: &MapData, from: Option<&[u8]>) -> io::Result<Batch> {
    let info = map.info().map_err(io::Error::other)?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let (mut keys, mut values) = (vec![0; CHUNK * key], vec![0; CHUNK * value]);
    // The kernel's place in a walk is a key, or a number of four bytes.
    let mut cursor = vec![0; key.max(size_of::<u32>())];
    let mut attributes = BatchAttributes {
        in_cursor: from.map_or(0, |from| from.as_ptr() as u64),
        out_cursor: cursor.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: CHUNK as u32,
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the buffers were made above for CHUNK entries of this map's sizes, and a cursor for the largest that it may have;
    // one that is given was made here too.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            COMMAND,
            &raw mut attributes,
            size_of::<BatchAttributes>(),
        )
    };
    let ended = match (result, io::Error::last_os_error()) {
        (0.., _) => false,
        (_, end) if end.raw_os_error() == Some(libc::ENOENT) => true,
        (_, error) => return Err(error),
    };
    let entries = keys.chunks(key).zip(values.chunks(value));
    let entries = entries.take(attributes.count as usize);
    Ok(Batch {
        entries: entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect(),
        next: (!ended).then_some(cursor),
    })
}
