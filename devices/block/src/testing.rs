//! Guest RAM for this crate's tests.

use std::sync::Arc;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap};

/// RAM in these ranges.
pub(crate) fn guest_ram(ranges: &[(u64, usize)]) -> Dma {
    let ranges: Vec<_> = ranges.iter().map(|&(addr, len)| (GuestAddress(addr), len)).collect();
    Dma::new(Arc::new(GuestMmap::from_ranges(&ranges).unwrap()))
}
