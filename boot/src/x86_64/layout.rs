//! Where the boot data lies in guest-physical memory. Guests may see these addresses: they are ABI.
//!
//! | address | what | protocol |
//! |---|---|---|
//! | `0x6000` | GDT | 64-bit Linux |
//! | `0x6000` | PVH start info, module list, memory map | PVH |
//! | `0x6800` | command line, at most 2048 bytes with its NUL | both |
//! | `0x7000` | zero page (`boot_params`) | 64-bit Linux |
//! | `0x9000` | page tables: PML4, PDPT, one PD for each GiB up to the end of the kernel (at most 4) | 64-bit Linux |
//! | `0x9fc00` | end of low RAM in the memory map; what follows up to 1 MiB is reserved | both |
//! | `0xe0000` | ACPI tables, RSDP first; at most 96 KiB | both |
//! | `0xf8000` | SMBIOS entry point and structures; at most 32 KiB less 16 bytes | both |
//! | `0xffff0` | where a PC's processor starts: code that resets the machine | both |
//! | `0x100000` | RAM for the kernel and the initial RAM disk | both |
//!
//! The kernel lies where its image says; the initial RAM disk ends at the highest page below
//! [`INITRD_LIMIT`], below what the kernel allows and below the end of low RAM.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The GDT of the 64-bit protocol.
pub const GDT: u64 = 0x6000;
/// The PVH start info, and behind it its module list and memory map.
pub const START_INFO: u64 = 0x6000;
/// The command line.
pub const CMDLINE: u64 = 0x6800;
/// Room for the command line, with the NUL that ends it.
pub const CMDLINE_SIZE: usize = 0x800;
/// The zero page of the 64-bit protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// The root of the page tables of the 64-bit protocol; the others follow.
pub const PAGE_TABLES: u64 = 0x9000;
/// End of low RAM as the guest is told: where PCs have their extended BIOS data.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first, where firmware-less guests would look for it.
pub const ACPI: Range<u64> = 0xe_0000..SMBIOS.start;
/// The SMBIOS tables, entry point first, in the 64 KiB where guests look for it.
pub const SMBIOS: Range<u64> = 0xf_8000..RESET_VECTOR;
/// F000:FFF0, where the firmware of a PC begins.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the RAM above the first MiB.
pub const HIGH_RAM: u64 = 0x10_0000;
/// The initial RAM disk lies below: both protocols hand over 32-bit addresses.
pub const INITRD_LIMIT: u64 = 1 << 32;
