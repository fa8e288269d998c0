//! Guest memory for virtual machine monitors.
//!
//! - [`Ram`] maps a guest's RAM and tells KVM and vhost-user peers where it is ([`RamSlot`]).
//! - [`Dma`] is a device's view of it: bounds-checked copies, file and socket I/O without copies, and
//!   [`Window`]s for what is accessed again and again.
//! - [`Segments`] are the descriptors of a request, and the parts that a device cuts out of them.
//! - [`DirtyBitmap`] knows which pages this process wrote, where somebody asked it to.
//! - [`RegisterPage`] is the opposite of RAM: a page that a device writes and a guest reads.
//! - [`map_file`] shows the guest a file without copying it.
//! - [`layout`] decides who gets which addresses.
//!
//! No method hands out a reference to guest memory, which the guest may change at any time.
//!
//! ```
//! use ossature_memory::{Backing, Ram, RamConfig, Segment, vm_memory::GuestAddress};
//!
//! let config = RamConfig { backing: Backing::Memfd, ..RamConfig::new(64 << 20) };
//! let ram = Ram::new(&config)?;
//! for slot in ram.slots() {
//!     println!("{:#x}+{:#x} is mapped at {:#x}", slot.guest_addr, slot.size, slot.host_addr);
//! }
//!
//! // A device writes a request's answer to where the driver wants it.
//! let dma = ram.dma();
//! let chain = [
//!     Segment { addr: GuestAddress(0x1000), len: 4 },
//!     Segment { addr: GuestAddress(0x9000), len: 4 },
//! ];
//! dma.scatter(&chain, b"answer")?;
//! assert_eq!(dma.read_obj::<[u8; 2]>(GuestAddress(0x9000))?, *b"er");
//!
//! // An address that is not RAM is the guest's mistake, and an error.
//! assert!(dma.write(GuestAddress(0xd000_0000), b"x").is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub use vm_memory;

mod dirty;
mod dma;
#[allow(unsafe_code)]
mod host;
pub mod layout;
mod map_file;
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
pub use dma::{Dma, DmaError, Run};
pub use map_file::{FilePiece, MapFileError, map_file};
pub use ram::{Backing, MMIO_GAP, Ram, RamConfig, RamError, RamSlot};
pub use register_page::{PAGE_SIZE, RegisterPage};
pub use segments::{Segment, Segments};
pub use vectored::DmaIoError;
pub use window::{View, Window};

/// The memory map behind every [`Dma`]: vm-memory's mmap-backed regions.
pub type GuestMmap = vm_memory::GuestMemoryMmap<DirtyBitmap>;
