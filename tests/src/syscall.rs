//! The system calls that no crate wraps: bpf(2) commands with what aya does not offer (include/uapi/linux/bpf.h), and the
//! ioctl(2) that makes a tun device (include/uapi/linux/if_tun.h).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;

/// `BPF_PROG_TEST_RUN`.
const TEST_RUN: libc::c_int = 10;
/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_int = 24;
/// Entries that [`lookup_batch`] reads; larger than any bucket of a hash map.
const CHUNK: usize = 4096;

/// Calls bpf(2).
///
/// # Safety
/// `attributes` are the member of `union bpf_attr` that `command` reads, and every address in them is valid for what it does.
#[expect(unsafe_code, reason = "the system call itself")]
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise; the size is that of the very object.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The part of `union bpf_attr` that the command takes.
#[repr(C)]
#[derive(Default)]
struct TestRunAttributes {
    program: u32,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What is run, and how.
pub(crate) struct Run {
    /// Descriptor of the program.
    pub(crate) program: i32,
    /// `BPF_F_TEST_*`.
    pub(crate) flags: u32,
    /// How often.
    pub(crate) repeat: u32,
    /// Frames at a time, of live ones; 0 otherwise.
    pub(crate) batch: u32,
}

impl Run {
    /// Runs the program; returns its last return value and the length of the packet. The context has the form of those of
    /// its type. What is not to be written is an empty slice.
    #[expect(
        unsafe_code,
        reason = "aya 0.14 cannot set BPF_F_TEST_SKB_CHECKSUM_COMPLETE, and no crate wraps the command"
    )]
    pub(crate) fn on(
        &self,
        frame: &[u8],
        context: &[u8],
        frame_out: &mut [u8],
        context_out: &mut [u8],
    ) -> io::Result<(i32, usize)> {
        let mut attributes = TestRunAttributes {
            program: self.program.cast_unsigned(),
            data_size_in: frame.len() as u32,
            data_size_out: frame_out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: if frame_out.is_empty() {
                0
            } else {
                frame_out.as_mut_ptr() as u64
            },
            repeat: self.repeat,
            context_size_in: context.len() as u32,
            context_size_out: context_out.len() as u32,
            context_in: context.as_ptr() as u64,
            context_out: if context_out.is_empty() {
                0
            } else {
                context_out.as_mut_ptr() as u64
            },
            flags: self.flags,
            batch_size: self.batch,
            ..TestRunAttributes::default()
        };
        // SAFETY: the four addresses and sizes above are those of the borrowed slices (none for an empty one that is written), of which the kernel writes only the
        // two that are borrowed mutably; the attributes are plain integers of the size that is passed.
        unsafe { bpf(TEST_RUN, &mut attributes) }?;
        Ok((attributes.return_value.cast_signed(), attributes.data_size_out as usize))
    }
}

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
pub(crate) struct Batch {
    /// Keys and values.
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<Vec<u8>>,
}

/// Reads the next entries behind `from`, or the first ones.
#[expect(
    unsafe_code,
    reason = "aya reads only entries of sizes that are known when it is compiled"
)]
pub(crate) fn lookup_batch(map: &MapData, from: Option<&[u8]>) -> io::Result<Batch> {
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
    let ended = match unsafe { bpf(LOOKUP_BATCH, &mut attributes) } {
        Ok(()) => false,
        Err(end) if end.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    let entries = keys.chunks(key).zip(values.chunks(value));
    let entries = entries.take(attributes.count as usize);
    Ok(Batch {
        entries: entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect(),
        next: (!ended).then_some(cursor),
    })
}

/// `struct ifreq` with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes a tun device in the calling thread's namespace; it lives as long as the file is open.
#[expect(unsafe_code, reason = "only ioctl(2) makes a tun device of an open file")]
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        rest: [0; 22],
    };
    let room = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
    room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    // SAFETY: the request is a whole `struct ifreq`, which is all that the call reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
