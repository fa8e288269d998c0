//! Where things lie in guest memory, from the start of RAM on.

use std::ops::Range;

/// Kernels lie at a multiple of this, plus what their header says.
pub const KERNEL_ALIGN: u64 = 2 << 20;
/// The device tree. It is not at the start, which may be address 0: no kernel takes that for a device tree.
pub const FDT: Range<u64> = 0x1_0000..KERNEL_ALIGN;
/// The device tree of a machine that ACPI describes, which tells only how the kernel is started.
pub const STUB_FDT: Range<u64> = 0x1_0000..0x2_0000;
/// That machine's tables. Begin and end are boundaries of pages of any size that kernels have.
pub const TABLES: Range<u64> = 0x2_0000..KERNEL_ALIGN;
/// Kernel and initial RAM disk lie in one window of this size, at a multiple of [`INITRD_ALIGN`].
pub const INITRD_WINDOW: u64 = 32 << 30;
/// See [`INITRD_WINDOW`].
pub const INITRD_ALIGN: u64 = 1 << 30;
/// The largest pages of hosts and guests.
pub const PAGE: u64 = 64 << 10;
/// Bytes of a command line, with the NUL (the kernel's `COMMAND_LINE_SIZE`).
pub const CMDLINE_SIZE: usize = 2048;
