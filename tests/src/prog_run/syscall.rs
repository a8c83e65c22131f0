//! The system call behind a test run, with flags that aya does not offer (bpf(2), include/uapi/linux/bpf.h).

use std::io;

use super::CONTEXT_BYTES;

/// `BPF_PROG_TEST_RUN`.
const COMMAND: libc::c_int = 10;

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
pub(super) struct Run {
    /// Descriptor of the program.
    pub(super) program: i32,
    /// `BPF_F_TEST_*`.
    pub(super) flags: u32,
    /// How often.
    pub(super) repeat: u32,
}

impl Run {
    /// Runs the program; returns its last return value and the length of the packet.
    #[expect(
        unsafe_code,
        reason = "aya 0.14 cannot set BPF_F_TEST_SKB_CHECKSUM_COMPLETE, and no crate wraps the command"
    )]
    pub(super) fn on(
        &self,
        frame: &[u8],
        context: &[u8; CONTEXT_BYTES],
        frame_out: &mut [u8],
        context_out: &mut [u8; CONTEXT_BYTES],
    ) -> io::Result<(i32, usize)> {
        let mut attributes = TestRunAttributes {
            program: self.program.cast_unsigned(),
            data_size_in: frame.len() as u32,
            data_size_out: frame_out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: frame_out.as_mut_ptr() as u64,
            repeat: self.repeat,
            context_size_in: CONTEXT_BYTES as u32,
            context_size_out: CONTEXT_BYTES as u32,
            context_in: context.as_ptr() as u64,
            context_out: context_out.as_mut_ptr() as u64,
            flags: self.flags,
            ..TestRunAttributes::default()
        };
        // SAFETY: the four addresses and sizes above are those of the borrowed slices, of which the kernel writes only the
        // two that are borrowed mutably; the attributes are plain integers of the size that is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                COMMAND,
                &raw mut attributes,
                size_of::<TestRunAttributes>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((attributes.return_value.cast_signed(), attributes.data_size_out as usize))
    }
}
