//! Why there is no RAM where some was asked for.

use std::error::Error;
use std::io;
use std::ops::Range;

use crate::SlotId;

/// Why a guest cannot have the RAM that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// No RAM at all.
    #[error("guest memory must be larger than 0 bytes")]
    Zero,
    /// Not a whole number of pages.
    #[error("guest memory of {size} bytes is not a multiple of its page size, {page_size} bytes")]
    Unaligned {
        /// Bytes asked for.
        size: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// The gap begins or ends inside a page, or ends before it begins.
    #[error("the gap {:#x}..{:#x} in guest memory is not a range of whole pages of {page_size} bytes", gap.start, gap.end)]
    Gap {
        /// The gap.
        gap: Range<u64>,
        /// Bytes in a page.
        page_size: u64,
    },
    /// RAM would end beyond the last address.
    #[error("guest memory of {size} bytes does not fit into the address space")]
    AddressSpace {
        /// Bytes asked for.
        size: u64,
    },
    /// More than the host has.
    #[error("guest memory of {} MiB is more than the {} MiB that the host has", size >> 20, host >> 20)]
    HostMemory {
        /// Bytes asked for.
        size: u64,
        /// Bytes that the host has.
        host: u64,
    },
    /// The host's pool of huge pages is too small.
    #[error(
        "guest memory needs {needed} huge pages of {} MiB, and {available} of the host's {total} are free",
        page_size >> 20
    )]
    HugePages {
        /// Bytes in a page.
        page_size: u64,
        /// Pages needed.
        needed: u64,
        /// Pages that are neither in use nor reserved.
        available: u64,
        /// All pages in the pool.
        total: u64,
    },
    /// The host's kernel has no huge pages of this size.
    #[error("the host has no huge pages of {} MiB", page_size >> 20)]
    HugePageSize {
        /// Bytes in a page.
        page_size: u64,
    },
    /// The host's kernel refused.
    #[error("guest memory of {} MiB: {call} failed: {source}", size >> 20)]
    Host {
        /// Bytes asked for.
        size: u64,
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
    /// The host's kernel serves a device from this memory ([`UnloggedWrites`](crate::UnloggedWrites)), and would not notice
    /// that it changes.
    #[error("memory cannot be added or removed while the host's kernel (vhost) serves a device from it")]
    InUse,
    /// A slot would not begin with a page.
    #[error("a memory slot at {guest_addr:#x} does not begin with a page of {page_size} bytes")]
    SlotUnaligned {
        /// First guest-physical address.
        guest_addr: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// Memory that somebody else has mapped cannot be read and written by this process.
    #[error("the memory at {guest_addr:#x} is not mapped for reading and writing: both are needed")]
    NotWritable {
        /// First guest-physical address.
        guest_addr: u64,
    },
    /// A slot would be where there is RAM already.
    #[error("a memory slot at {guest_addr:#x}+{size:#x} overlaps the RAM at {other_addr:#x}+{other_size:#x}")]
    Overlap {
        /// First guest-physical address of the slot.
        guest_addr: u64,
        /// Bytes of the slot.
        size: u64,
        /// First guest-physical address of the slot that exists.
        other_addr: u64,
        /// Bytes of the slot that exists.
        other_size: u64,
    },
    /// The slot does not exist, or does not any more.
    #[error("there is no memory {slot}")]
    NoSlot {
        /// The slot.
        slot: SlotId,
    },
    /// The slot is RAM that the guest was started with: no guest expects that to go away.
    #[error("memory {slot} is RAM that the guest was started with")]
    Permanent {
        /// The slot.
        slot: SlotId,
    },
    /// A [`MemoryListener`](crate::MemoryListener) could not follow. Nothing has changed.
    #[error("memory {slot} at {guest_addr:#x}+{size:#x} was refused: {source}")]
    Listener {
        /// The slot.
        slot: SlotId,
        /// First guest-physical address of the slot.
        guest_addr: u64,
        /// Bytes of the slot.
        size: u64,
        /// What the listener says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The part of the file does not begin with a page of it.
    #[error("guest memory from byte {offset:#x} of a file, which does not begin a page of {page_size} bytes")]
    FileOffset {
        /// Byte of the file.
        offset: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// The file is too short: touching what is missing would end the process.
    #[error("the file for guest memory has {has} bytes, {needs} are to be mapped")]
    FileTooShort {
        /// Where the memory ends in the file.
        needs: u64,
        /// The length of the file in bytes.
        has: u64,
    },
    /// The file is of a kind, or was opened in a way, that cannot be mapped as asked.
    #[error("the file for guest memory cannot be mapped {}: {source}", if *shared { "shared" } else { "privately" })]
    FileNotMappable {
        /// True if it was to be mapped shared.
        shared: bool,
        /// What the host's kernel returned.
        source: io::Error,
    },
}
