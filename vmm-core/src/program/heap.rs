//! The heap of the process.

/// Has all threads share one heap, where the C library would give each its own, as glibc does: while a guest runs, the
/// threads of a VMM allocate next to nothing, and a heap costs each of them four system calls and its first page. Call
/// it at the beginning of `main`, before there are threads: a heap that a thread has stays. With another C library than
/// glibc it does nothing.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two numbers, and has a lock of its own.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
