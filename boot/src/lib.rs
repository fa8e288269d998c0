//! Kernel loaders and boot tables for virtual machine monitors, as plain data.
//!
//! Given guest memory, a description of the machine and a kernel image, this crate writes what a guest expects to find when
//! it starts, and returns the registers with which its boot processor starts. It knows no device and no hypervisor: devices
//! appear as [`Node`]s (a kind, addresses, interrupts), registers as [`x86_64::cpu::CpuState`] or
//! [`aarch64::cpu::CpuState`]. What only guests of one architecture have is in that architecture's module, which compiles
//! and is tested on any host.
//!
//! ```
//! use ossature_boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, RamRange, Trigger};
//! use ossature_boot::x86_64::{self, BootSpec};
//! use ossature_memory::{GuestMmap, vm_memory::GuestAddress};
//!
//! # fn kernel_image() -> Vec<u8> {
//! #     let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
//! #     elf.resize(16, 0);
//! #     elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // type, machine, version
//! #     elf.extend([0x100_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes)); // entry, phoff, shoff
//! #     elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
//! #     elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD
//! #     elf.extend([120u64, 0x100_0000, 0x100_0000, 1, 1, 4096].into_iter().flat_map(u64::to_le_bytes));
//! #     elf.push(0xf4); // hlt
//! #     elf
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mem = GuestMmap::from_ranges(&[(GuestAddress(0), 64 << 20)])?;
//! let com1 = Node::new(
//!     "com1",
//!     NodeKind::Serial16550,
//!     vec![NodeRange::Io { base: 0x3f8, len: 8 }],
//!     vec![NodeInterrupt::new(4, Trigger::Edge)],
//! );
//! let platform = Platform::new(vec![0, 1], vec![RamRange::new(0, 64 << 20)], vec![com1]);
//! let image = kernel_image(); // or a `std::fs::File`
//! let booted = x86_64::prepare(&mem, &platform, &BootSpec::new(&image[..], "console=ttyS0"))?;
//! assert_eq!(booted.cpu.rip, 0x100_0000);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod aarch64;
pub mod acpi;
mod caches;
mod cmdline;
mod image;
mod load;
mod numa;
mod platform;
#[cfg(test)]
mod testing;
mod unpack;
pub mod x86_64;

pub use caches::{Cache, CacheError, Caches};
pub use cmdline::CmdlineError;
pub use image::ImageSource;
pub use load::{LoadSegment, Loaded};
pub use numa::{Numa, NumaError, NumaNode};
pub use platform::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, PlatformError, RamRange, Trigger};
pub use unpack::{MAX_UNPACKED, UnpackError};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
