//! What the tests of several files need.

use crate::{RamSlot, host_page_size};

/// Pages of the slot that the host has given memory to.
#[allow(unsafe_code)]
pub(crate) fn resident(slot: &RamSlot) -> usize {
    let mut pages = vec![0u8; (slot.size as usize).div_ceil(host_page_size())];
    // SAFETY: the range is mapped, and the vector has a byte for each of its pages.
    let done = unsafe { libc::mincore(slot.host_addr as *mut _, slot.size as usize, pages.as_mut_ptr()) };
    assert_eq!(done, 0);
    pages.into_iter().filter(|page| page & 1 != 0).count()
}
