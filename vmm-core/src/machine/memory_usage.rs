//! What a machine's memory takes on the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ossature_memory::host_page_size;

use super::handle::MachineHandle;

/// What guest memory takes of the host's, in bytes. Pages that the guest has not touched take nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// What this machine alone has, and gives back when it ends: the pages that it wrote, in memory or in swap, and all of
    /// memory that it shares with other processes by a descriptor of its own.
    pub unique: u64,
    /// What of its template or snapshot it has in use. These pages are in the page cache, once for all machines that go on
    /// from it.
    pub shared: u64,
    /// What of [`shared`](Self::shared) the host can do without and read from disk again when it is short of memory. None
    /// if the template is in memory alone.
    pub reclaimable: u64,
}

/// Bits of an entry of `/proc/PID/pagemap` (the kernel's `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// It is a page of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;
/// Mapped once. The page of zeros that reads of untouched memory get is not.
const EXCLUSIVE: u64 = 1 << 56;

/// Entries that are read at once.
const ENTRIES: usize = 8192;

impl MachineHandle {
    /// What the machine's memory takes at present. It runs on meanwhile; this takes about a millisecond for each GiB.
    pub fn memory_usage(&self) -> io::Result<MemoryUsage> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the machine is not there");
        let board = self.shared.board().ok_or_else(gone)?;
        let mut usage = MemoryUsage::default();
        let pages = File::open("/proc/self/pagemap")?;
        for slot in board.ram().slots() {
            count(&pages, (slot.host_addr, slot.size), slot.file().is_some(), &mut usage)?;
        }
        if board.is_from_disk() {
            usage.reclaimable = usage.shared;
        }
        Ok(usage)
    }
}

/// Adds what is mapped at an address.
fn count(
    pagemap: &File,
    (addr, size): (u64, u64),
    own_file: bool,
    usage: &mut MemoryUsage,
) -> io::Result<()> {
    let page = host_page_size() as u64;
    let mut left = (addr / page)..addr.saturating_add(size).div_ceil(page);
    let mut buffer = vec![0; ENTRIES * 8];
    while !left.is_empty() {
        let entries = (left.end - left.start).min(ENTRIES as u64);
        let bytes = buffer.get_mut(..entries as usize * 8).unwrap_or_default();
        pagemap.read_exact_at(bytes, left.start * 8)?;
        for entry in bytes.chunks_exact(8).filter_map(|entry| entry.first_chunk()) {
            let has = |bits: u64| u64::from_ne_bytes(*entry) & bits != 0;
            if has(OF_FILE) && !own_file {
                usage.shared += if has(PRESENT) { page } else { 0 };
            } else if has(SWAPPED) || has(PRESENT) && (own_file || has(EXCLUSIVE)) {
                usage.unique += page;
            }
        }
        left.start += entries;
    }
    Ok(())
}
