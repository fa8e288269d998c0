//! Kernel loaders and boot tables for virtual machine monitors, as plain data.
//!
//! Given guest memory, a description of the machine and a kernel image, this crate writes what a guest
//! expects to find when it starts, and returns the registers with which its boot processor starts. It knows
//! no device and no hypervisor: devices appear as [`Node`]s (a kind, addresses, interrupts), registers as
//! [`x86_64::cpu::CpuState`]. Everything compiles and is tested on any host architecture.
//!
//! ```
//! use ossature_boot::{BootProtocol, Node, NodeKind, NodeRange, Platform, RamRange};
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
//! let platform = Platform {
//!     cpus: vec![0, 1],
//!     ram: vec![RamRange { base: 0, len: 64 << 20 }],
//!     nodes: vec![Node {
//!         id: "com1".into(),
//!         kind: NodeKind::Serial16550,
//!         ranges: vec![NodeRange::Io { base: 0x3f8, len: 8 }],
//!         interrupts: vec![4],
//!     }],
//! };
//! let image = kernel_image(); // or a `std::fs::File`
//! let booted = x86_64::prepare(&mem, &platform, &BootSpec {
//!     kernel: image.as_slice().into(),
//!     initrd: None,
//!     cmdline: "console=ttyS0",
//!     protocol: BootProtocol::Auto,
//! })?;
//! assert_eq!(booted.cpu.rip, 0x100_0000);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod acpi;
mod bzimage;
mod cmdline;
mod elf;
mod kernel;
mod load;
mod platform;
mod source;
#[cfg(test)]
mod testing;
mod unpack;
pub mod x86_64;

pub use cmdline::CmdlineError;
pub use elf::Segment;
pub use kernel::{BootProtocol, Entry, Kernel, KernelError, UnknownProtocol};
pub use load::Loaded;
pub use platform::{Node, NodeKind, NodeRange, Platform, RamRange};
pub use source::Source;
pub use unpack::{MAX_UNPACKED, UnpackError};
