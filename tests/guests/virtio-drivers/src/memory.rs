//! Memory for the heap and for the drivers' queues: addresses are physical ones, and nothing is given back.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const SIZE: usize = 4 << 20;

#[repr(align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: each part is handed out once.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Memory that is zero, or null if there is no more.
fn take(size: usize, align: usize) -> *mut u8 {
    let start = USED.load(Ordering::Relaxed).next_multiple_of(align);
    if size > SIZE - start.min(SIZE) {
        return ptr::null_mut();
    }
    USED.store(start + size, Ordering::Relaxed);
    ARENA.0.get().cast::<u8>().wrapping_add(start)
}

struct Heap;

// SAFETY: `take` returns memory of its own for each call, aligned for at most a page.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size(), layout.align())
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Heap = Heap;

/// What `virtio-drivers` asks of the machine that it runs on.
pub struct Identity;

// SAFETY: all memory below 4 GiB is mapped to itself, and `take` hands out each page once.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let start = NonNull::new(take(pages * PAGE_SIZE, PAGE_SIZE)).expect("memory for queues");
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("registers are not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
