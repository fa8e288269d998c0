//! What the host has: physical memory and huge pages.

use std::mem::MaybeUninit;

/// The host's physical memory in bytes, as `MemTotal` in `/proc/meminfo` has it.
pub(crate) fn total_memory() -> u64 {
    let mut info = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the kernel fills in the structure, for which all zeros are a value, too.
    let info = unsafe {
        libc::sysinfo(info.as_mut_ptr());
        info.assume_init()
    };
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

/// Counts of the pool of huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HugePool {
    /// All pages in the pool.
    pub(crate) total: u64,
    /// Pages that are neither used nor promised to somebody.
    pub(crate) available: u64,
}

/// The pool of pages of `page_size` bytes; `None` where the kernel has none of that size.
pub(crate) fn huge_pool(page_size: u64) -> Option<HugePool> {
    let read = |name: &str| -> Option<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_size / 1024);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let available = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    Some(HugePool { total: read("nr_hugepages")?, available })
}
