//! The state in which the boot processor starts, and the tables in guest memory that it refers to.

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::error::BootError;
use super::kernel::Entry;
use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit that always reads as 1.
const RFLAGS_RESERVED: u64 = 1 << 1;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE_PAGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;

/// A segment register with its hidden part (Intel SDM volume 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Type field: 4 bits.
    pub kind: u8,
    /// Code or data, as opposed to a system segment.
    pub code_or_data: bool,
    /// Default operation size: 32-bit.
    pub db: bool,
    /// 64-bit code.
    pub long: bool,
    /// Limit in units of 4 KiB.
    pub granularity: bool,
}

/// Base and limit of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// First byte, a linear address.
    pub base: u64,
    /// Size in bytes, minus one.
    pub limit: u16,
}

/// The state in which the boot processor starts. What is not named is as after a reset, or 0; segments are
/// present and of privilege level 0. The other processors wait for their start-up interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuState {
    /// Instruction pointer.
    pub rip: u64,
    /// PVH: the address of the start info.
    pub rbx: u64,
    /// 64-bit Linux: the address of the zero page.
    pub rsi: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature register.
    pub efer: u64,
    /// The code segment.
    pub cs: SegmentRegister,
    /// The data segment, for `ds`, `es`, `fs`, `gs` and `ss`.
    pub data: SegmentRegister,
    /// The task register.
    pub tr: SegmentRegister,
    /// The global descriptor table; its limit is 0 where the protocol leaves it open.
    pub gdt: DescriptorTable,
    /// The interrupt descriptor table, always empty.
    pub idt: DescriptorTable,
}

const CODE: SegmentRegister = SegmentRegister {
    selector: 0x10,
    base: 0,
    limit: u32::MAX,
    kind: 0xb,
    code_or_data: true,
    db: false,
    long: true,
    granularity: true,
};
const DATA: SegmentRegister = SegmentRegister { selector: 0x18, kind: 0x3, db: true, long: false, ..CODE };
const TASK: SegmentRegister = SegmentRegister {
    selector: 0x20,
    base: 0,
    limit: 0x67,
    kind: 0xb,
    code_or_data: false,
    db: false,
    long: false,
    granularity: false,
};
/// Null, unused, and the descriptors of the registers above at their selectors. The kernel loads its own
/// before it would use the task register's.
const DESCRIPTORS: [u64; 4] = [0, 0, descriptor(CODE), descriptor(DATA)];

/// The GDT entry of a flat segment (Intel SDM volume 3, figure 3-8).
const fn descriptor(segment: SegmentRegister) -> u64 {
    const PRESENT: u64 = 1 << 47;
    let limit = if segment.granularity { segment.limit >> 12 } else { segment.limit } as u64;
    (limit & 0xffff)
        | (limit >> 16 << 48)
        | ((segment.kind as u64) << 40)
        | ((segment.code_or_data as u64) << 44)
        | PRESENT
        | ((segment.long as u64) << 53)
        | ((segment.db as u64) << 54)
        | ((segment.granularity as u64) << 55)
}

/// The state for `entry`. Writes the tables that it refers to; those of the 64-bit protocol map at least
/// everything below `mapped`, which is at most 4 GiB.
pub(super) fn prepare(mem: &GuestMmap, entry: Entry, mapped: u64) -> Result<CpuState, BootError> {
    match entry {
        Entry::Pvh(entry) => Ok(CpuState {
            rip: entry.into(),
            rbx: layout::START_INFO,
            rflags: RFLAGS_RESERVED,
            cr0: CR0_PE,
            cs: SegmentRegister { db: true, long: false, ..CODE },
            data: DATA,
            tr: TASK,
            ..Default::default()
        }),
        Entry::Linux64(entry) => {
            let gdt = DESCRIPTORS.map(U64::new);
            write(mem, layout::GDT, gdt.as_bytes())?;
            write_page_tables(mem, mapped)?;
            Ok(CpuState {
                rip: entry,
                rsi: layout::ZERO_PAGE,
                rflags: RFLAGS_RESERVED,
                cr0: CR0_PE | CR0_PG,
                cr3: layout::PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                cs: CODE,
                data: DATA,
                tr: TASK,
                gdt: DescriptorTable { base: layout::GDT, limit: (size_of_val(&DESCRIPTORS) - 1) as u16 },
                ..Default::default()
            })
        }
    }
}

/// Maps addresses to themselves in pages of 2 MiB, which every 64-bit processor has.
fn write_page_tables(mem: &GuestMmap, mapped: u64) -> Result<(), BootError> {
    let directories = mapped.div_ceil(GIB).clamp(1, 4);
    let pointers = layout::PAGE_TABLES + PAGE;
    let first = pointers + PAGE;
    write(mem, layout::PAGE_TABLES, &(pointers | PRESENT | WRITABLE).to_le_bytes())?;
    for directory in 0..directories {
        let table = first + directory * PAGE;
        write(mem, pointers + directory * 8, &(table | PRESENT | WRITABLE).to_le_bytes())?;
        let mut page = (directory * GIB) | PRESENT | WRITABLE | LARGE_PAGE;
        let entries = [(); 512].map(|()| {
            let entry = U64::new(page);
            page += 2 << 20;
            entry
        });
        write(mem, table, entries.as_bytes())?;
    }
    Ok(())
}

fn write(mem: &GuestMmap, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
    mem.write_slice(bytes, GuestAddress(addr)).map_err(|_| BootError::not_ram(addr))
}

#[cfg(test)]
mod tests;
