//! Guest memory for virtual machine monitors.
#![deny(unsafe_code)]

pub use vm_memory;

mod dma;
#[allow(unsafe_code)]
mod register_page;
pub use dma::{Dma, DmaError, Segment};
pub use register_page::{PAGE_SIZE, RegisterPage};

/// The memory map behind every [`Dma`]: vm-memory's mmap-backed regions.
pub type GuestMmap = vm_memory::GuestMemoryMmap<()>;
