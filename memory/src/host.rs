//! What the host has: its page size, physical memory, huge pages, files without a place.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

/// Bytes in a base page of the host: 4, 16 or 64 KiB. The host's kernel is asked once.
///
/// It is the unit of everything that the host decides: where memory can be mapped and discarded, the pages of KVM's
/// dirty log, the size of a [`RegisterPage`](crate::RegisterPage). It says nothing about the guest's pages.
#[inline]
pub fn host_page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: the call returns a number and touches no memory.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        // Linux always knows it; no supported architecture has smaller pages.
        usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
    })
}

/// An empty file in memory, without a name: a memfd. It is gone with its last descriptor and mapping.
pub fn memory_file() -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string, and the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"ossature".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The page size of the pool that `file` takes its pages from; `None` where it consists of base pages.
pub(crate) fn huge_page_size(file: &File) -> Option<u64> {
    let mut info = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel fills in the structure, for which all zeros are a value, too.
    let (result, info) = unsafe {
        let result = libc::fstatfs(file.as_raw_fd(), info.as_mut_ptr());
        (result, info.assume_init())
    };
    // Of different types in different C libraries.
    let of_pool = result == 0 && i128::from(info.f_type) == i128::from(libc::HUGETLBFS_MAGIC);
    if of_pool { u64::try_from(info.f_bsize).ok().filter(|size| size.is_power_of_two()) } else { None }
}

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

/// The pool of pages of `page_size` bytes; `NotFound` where the kernel has none of that size. Other errors say nothing:
/// a process need not be allowed to look.
pub(crate) fn huge_pool(page_size: u64) -> io::Result<HugePool> {
    let read = |name: &str| -> io::Result<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_size / 1024);
        std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
    };
    let available = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    Ok(HugePool { total: read("nr_hugepages")?, available })
}
