//! Guest memory for virtual machine monitors.
//!
//! - [`Ram`] maps a guest's RAM, of the kind that a [`RamConfig`] names. Its [slots](RamSlot) come and go while devices
//!   run; [listeners](MemoryListener) such as KVM and vhost-user peers are told where they are.
//! - [`Dma`] is a device's view of it: bounds-checked copies, file and socket I/O without copies, and
//!   [`Window`]s for what is accessed again and again.
//! - [`Pinned`] is what the kernel reads and writes after a call has returned.
//! - [`Segments`] are the descriptors of a request, and the parts that a device cuts out of them.
//! - [`Dma::discard`] gives RAM that the guest does not need back to the host, [`Ram::clear`] all of it for a guest that
//!   starts again.
//! - [`DirtyLog`] joins the pages that this process wrote with those that a hypervisor says its vCPUs wrote.
//! - [`RegisterPage`] is the opposite of RAM: a page that a device writes and a guest reads.
//! - [`Userfault`] serves the page faults of RAM: pages that come when they are touched, writes that wait.
//! - [`map_file`] shows the guest a file without copying it.
//! - [`layout`] assigns addresses, ports and interrupt numbers.
//!
//! No method hands out a reference to guest memory, which the guest may change at any time.
//!
//! ```
//! use ossature_memory::{Backing, Ram, RamConfig, Segment, vm_memory::GuestAddress};
//!
//! let ram = Ram::new(&RamConfig::new(64 << 20).backing(Backing::Memfd))?;
//! for slot in ram.slots() {
//!     println!("{:#x}+{:#x} is mapped at {:#x}", slot.guest_addr, slot.size, slot.host_addr);
//! }
//!
//! // A device writes a request's answer to where the driver wants it.
//! let mut dma = ram.dma();
//! let chain = [
//!     Segment { addr: GuestAddress(0x1000), len: 4 },
//!     Segment { addr: GuestAddress(0x9000), len: 4 },
//! ];
//! dma.scatter(&chain, b"answer")?;
//! assert_eq!(dma.read_obj::<[u8; 2]>(GuestAddress(0x9000))?, *b"er");
//!
//! // An address that is not RAM is the guest's mistake, and an error.
//! assert!(dma.write(GuestAddress(0xd000_0000), b"x").is_err());
//!
//! // More RAM for a guest that runs: the device sees it when it next looks.
//! let slot = ram.add_slot(0x1_0000_0000, 16 << 20, &Backing::Memfd)?;
//! assert!(dma.refresh());
//! dma.write(GuestAddress(0x1_0000_0000), b"x")?;
//! ram.remove_slot(slot)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub use vm_memory;

mod allocate;
mod config;
mod dirty;
mod dirty_log;
mod discard;
mod dma;
mod error;
#[allow(unsafe_code)]
mod host;
pub mod layout;
mod listener;
mod map_file;
#[allow(unsafe_code)]
mod mapping;
#[allow(unsafe_code)]
mod pinned;
mod published;
mod ram;
mod ranges;
#[allow(unsafe_code)]
mod region;
#[allow(unsafe_code)]
mod register_page;
mod segments;
mod slot;
#[cfg(test)]
mod testing;
#[allow(unsafe_code)]
mod userfault;
#[allow(unsafe_code)]
mod vectored;
#[allow(unsafe_code)]
mod window;

pub use config::{Backing, FileBacking, MMIO_GAP, RamConfig};
pub use dirty::DirtyBitmap;
pub use dirty_log::{DirtyLog, DirtyLogError, DirtyPages, UnloggedWrites};
pub use discard::DiscardError;
pub use dma::{Dma, DmaError};
pub use error::RamError;
pub use host::{host_page_size, memory_file};
pub use listener::{ListenerGuard, MemoryListener};
pub use map_file::{FilePiece, MapFileError, map_file};
pub use pinned::Pinned;
pub use published::Run;
pub use ram::Ram;
pub use register_page::{REGISTER_PAGE_SIZE, RegisterPage};
pub use segments::{Segment, Segments};
pub use slot::{RamSlot, SlotId};
pub use userfault::{Filled, HeldPages, Userfault, UserfaultError, UserfaultEvent, UserfaultMode};
pub use vectored::DmaIoError;
pub use window::{View, Window};

/// The memory map behind every [`Dma`]: vm-memory's mmap-backed regions.
pub type GuestMmap = vm_memory::GuestMemoryMmap<DirtyBitmap>;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
