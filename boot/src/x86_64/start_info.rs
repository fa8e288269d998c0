//! The PVH start info. Xen's `public/arch-x86/hvm/start_info.h`, version 1.

use std::ops::Range;

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::error::BootError;
use super::layout;
use super::memory_map::{MAX_ENTRIES, MemoryMapEntry};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist_paddr: U64,
    cmdline_paddr: U64,
    rsdp_paddr: U64,
    memmap_paddr: U64,
    memmap_entries: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    paddr: U64,
    size: U64,
    cmdline_paddr: U64,
    reserved: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryMap {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}

const MODULES: usize = size_of::<StartInfo>();
const MEMORY_MAP: usize = MODULES + size_of::<Module>();
const _: () = assert!(
    MEMORY_MAP + MAX_ENTRIES * size_of::<MemoryMap>() <= (layout::CMDLINE - layout::START_INFO) as usize
);

/// Writes the start info and what it points to, all in one page.
pub(super) fn write(
    mem: &GuestMmap,
    map: &[MemoryMapEntry],
    initrd: Option<&Range<u64>>,
    rsdp: u64,
) -> Result<(), BootError> {
    let start = layout::START_INFO;
    let info = StartInfo {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: 0.into(),
        nr_modules: u32::from(initrd.is_some()).into(),
        modlist_paddr: if initrd.is_some() { start + MODULES as u64 } else { 0 }.into(),
        cmdline_paddr: layout::CMDLINE.into(),
        rsdp_paddr: rsdp.into(),
        memmap_paddr: (start + MEMORY_MAP as u64).into(),
        memmap_entries: (map.len() as u32).into(),
        reserved: 0.into(),
    };
    let initrd = initrd.cloned().unwrap_or_default();
    let module = Module {
        paddr: initrd.start.into(),
        size: (initrd.end - initrd.start).into(),
        cmdline_paddr: 0.into(),
        reserved: 0.into(),
    };
    let mut bytes = Vec::with_capacity(MEMORY_MAP + size_of_val(map));
    bytes.extend_from_slice(info.as_bytes());
    bytes.extend_from_slice(module.as_bytes());
    for entry in map {
        let entry = MemoryMap {
            addr: entry.base.into(),
            size: entry.len.into(),
            kind: (entry.kind as u32).into(),
            reserved: 0.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    mem.write_slice(&bytes, GuestAddress(start)).map_err(|_| BootError::not_ram(start))
}
