//! The C library's heap, told to stay small (mallopt(3)).
//!
//! Left to itself it gives each thread an arena of its own, and raises the size from which a block is mapped, and goes back
//! to the system when it is freed, to that of the largest block freed so far. Objects are read on one thread, decided
//! about on another and dropped on a third, and every look at all tables needs blocks of megabytes for a moment: so arenas
//! fill with holes that only their own thread would use again. Times are the same with one arena: little is allocated at once.
#![expect(unsafe_code, reason = "mallopt(3) is a C function")]

use std::ffi::c_int;

/// Bytes of the smallest block that is mapped by itself, and of what may lie free at the heap's end.
const KEPT: c_int = 1 << 20;

const SETTINGS: [(c_int, c_int); 3] = [
    (libc::M_ARENA_MAX, 1),
    (libc::M_MMAP_THRESHOLD, KEPT),
    (libc::M_TRIM_THRESHOLD, KEPT),
];

/// Sets it so, for the whole process. To be called first of all, while there is one thread.
pub fn keep_small() {
    for (parameter, value) in SETTINGS {
        // SAFETY: takes two numbers, and no other thread allocates meanwhile: `main` begins with this. A refusal costs
        // memory alone.
        unsafe { libc::mallopt(parameter, value) };
    }
}
