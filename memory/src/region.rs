//! A piece of a mapping as a region of guest memory, in vm-memory's terms.

use std::sync::Arc;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::DirtyBitmap;
use crate::mapping::{Kind, Mapping, PROT};

/// The `len` bytes at `offset` of `mapping` as guest memory at `guest`; `None` where they are not all in it, or
/// would end beyond the guest's address space. Only of a shared file is it said that there is one.
pub(crate) fn region(
    mapping: &Arc<Mapping>,
    offset: usize,
    len: usize,
    guest: u64,
) -> Option<GuestRegionMmap<DirtyBitmap>> {
    let place = mapping.place(offset, len)?;
    let builder = MmapRegionBuilder::new_with_bitmap(len, DirtyBitmap::of(mapping.clone(), len));
    let builder = builder.with_mmap_prot(PROT);
    let builder = match mapping.kind() {
        Kind::Anonymous => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        Kind::Private { .. } => builder.with_mmap_flags(libc::MAP_PRIVATE),
        Kind::Shared { file, offset: start, huge, .. } => builder
            .with_mmap_flags(libc::MAP_SHARED)
            .with_hugetlbfs(*huge)
            .with_file_offset(FileOffset::from_arc(file.clone(), start.checked_add(offset as u64)?)),
        Kind::Foreign(foreign) => {
            let builder = builder.with_mmap_flags(foreign.flags).with_hugetlbfs(foreign.huge);
            match &foreign.file {
                Some(file) => builder.with_file_offset(file.clone()),
                None => builder,
            }
        }
    };
    // SAFETY: the range was checked to be in the mapping, and the mapping lives as long as the bitmap, which the
    // region owns.
    let builder = unsafe { builder.with_raw_mmap_pointer(place.as_ptr()) };
    let region: MmapRegion<DirtyBitmap> = builder.build().ok()?;
    GuestRegionMmap::new(region, GuestAddress(guest))
}
