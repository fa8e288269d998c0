//! A process that has as many mappings as the host's kernel allows. A program of its own, as other tests need some.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::ptr::null_mut;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, FileBacking, Ram, RamConfig, host_page_size};

/// Mappings of one page until there can be no more.
struct All {
    start: *mut libc::c_void,
    len: usize,
}

impl All {
    fn new() -> Self {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let page = host_page_size();
        let len = (limit.trim().parse::<usize>().unwrap() + 1000) * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping touches no memory that exists.
        let start = unsafe { libc::mmap(null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // Each other page is another mapping than its neighbours.
        for offset in (page..len).step_by(2 * page) {
            // SAFETY: the page is in the mapping, which nobody else knows of.
            if unsafe { libc::mprotect(start.byte_add(offset), page, libc::PROT_READ) } != 0 {
                return Self { start, len };
            }
        }
        panic!("there is no limit");
    }
}

impl Drop for All {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody else knows of it.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[test]
fn c3_a_guest_that_discards_does_not_end_a_process_that_has_no_mappings_left() {
    let page = host_page_size() as u64;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![1; 8 * host_page_size()]).unwrap();
    let backing = Backing::File(FileBacking::private(file, 0));
    let ram = Ram::new(&RamConfig::new(8 * page).backing(backing)).unwrap();
    let dma = ram.dma();
    let pages = || (0..8).map(|at| dma.read_obj::<u8>(GuestAddress(at * page)).unwrap()).collect::<Vec<_>>();
    {
        let _all = All::new();
        dma.discard(GuestAddress(3 * page), 2 * page).unwrap();
    }
    assert_eq!(pages(), [1, 1, 1, 0, 0, 1, 1, 1]);
    // What was overwritten is still a part of the file's copy, and is given back now.
    dma.discard(GuestAddress(2 * page), 4 * page).unwrap();
    assert_eq!(pages(), [1, 1, 0, 0, 0, 0, 1, 1]);
}
