//! Guest RAM, and patience, for this crate's tests.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap};

/// RAM in these ranges.
pub(crate) fn guest_ram(ranges: &[(u64, usize)]) -> Dma {
    let ranges: Vec<_> = ranges.iter().map(|&(addr, len)| (GuestAddress(addr), len)).collect();
    Dma::new(Arc::new(GuestMmap::from_ranges(&ranges).unwrap()))
}

/// Waits until `is_there`, for as long as a slow machine may take.
pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_there() {
        assert!(Instant::now() < limit, "{what} did not come");
        thread::sleep(Duration::from_millis(1));
    }
}
