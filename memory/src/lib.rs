//! Guest memory for virtual machine monitors.
#![deny(unsafe_code)]

pub use vm_memory;

mod dirty;
mod dma;
#[allow(unsafe_code)]
mod host;
pub mod layout;
#[allow(unsafe_code)]
mod mapping;
mod ram;
#[allow(unsafe_code)]
mod register_page;
mod segments;
#[allow(unsafe_code)]
mod vectored;
#[allow(unsafe_code)]
mod window;

pub use dirty::DirtyBitmap;
pub use dma::{Dma, DmaError};
pub use ram::{Backing, MMIO_GAP, Ram, RamConfig, RamError, RamSlot};
pub use register_page::{PAGE_SIZE, RegisterPage};
pub use segments::{Segment, Segments};
pub use vectored::DmaIoError;
pub use window::Window;

/// The memory map behind every [`Dma`]: vm-memory's mmap-backed regions.
pub type GuestMmap = vm_memory::GuestMemoryMmap<DirtyBitmap>;
