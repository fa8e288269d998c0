//! The zero page (`boot_params`) of the 64-bit Linux protocol. `Documentation/arch/x86/zero-page.rst`.

use std::ops::Range;

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bzimage::{MAGIC, SETUP_HEADER, SetupHeader};
use super::error::BootError;
use super::layout;
use super::memory_map::{MAX_ENTRIES, MemoryMapEntry};

/// The loader id of those that have none assigned.
const LOADER_OTHER: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// The newest protocol that fits what we hand over.
const VERSION: u16 = 0x020f;

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct E820Entry {
    addr: U64,
    size: U64,
    kind: U32,
}

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct ZeroPage {
    before_rsdp: [u8; 0x70],
    acpi_rsdp_addr: U64,
    before_e820_entries: [u8; 0x1e8 - 0x78],
    e820_entries: u8,
    before_header: [u8; SETUP_HEADER - 0x1e9],
    header: SetupHeader,
    before_e820_table: [u8; 0x2d0 - SETUP_HEADER - size_of::<SetupHeader>()],
    e820_table: [E820Entry; 128],
    rest: [u8; 0x1000 - 0x2d0 - 128 * size_of::<E820Entry>()],
}

const _: () = assert!(size_of::<ZeroPage>() == 0x1000 && MAX_ENTRIES <= 128);

/// Writes the zero page for a kernel with this setup header, or for an ELF kernel without one.
pub(super) fn write(
    mem: &GuestMmap,
    map: &[MemoryMapEntry],
    initrd: Option<&Range<u64>>,
    rsdp: u64,
    header: Option<&SetupHeader>,
) -> Result<(), BootError> {
    let mut page = ZeroPage::new_zeroed();
    page.header = header.cloned().unwrap_or_else(|| SetupHeader {
        boot_flag: BOOT_FLAG.into(),
        header: MAGIC,
        version: VERSION.into(),
        cmdline_size: (layout::CMDLINE_SIZE as u32 - 1).into(),
        ..Default::default()
    });
    page.header.type_of_loader = LOADER_OTHER;
    page.header.cmd_line_ptr = (layout::CMDLINE as u32).into();
    if let Some(initrd) = initrd {
        // Both are below 4 GiB: `layout::INITRD_LIMIT`.
        page.header.ramdisk_image = (initrd.start as u32).into();
        page.header.ramdisk_size = ((initrd.end - initrd.start) as u32).into();
    }
    page.acpi_rsdp_addr = rsdp.into();
    page.e820_entries = map.len() as u8;
    for (slot, entry) in page.e820_table.iter_mut().zip(map) {
        slot.addr = entry.base.into();
        slot.size = entry.len.into();
        slot.kind = (entry.kind as u32).into();
    }
    let start = layout::ZERO_PAGE;
    mem.write_slice(page.as_bytes(), GuestAddress(start)).map_err(|_| BootError::not_ram(start))
}
