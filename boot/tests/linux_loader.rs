//! What the guest finds, compared with an independent reading of the same formats: rust-vmm's linux-loader.
//!
//! Its ELF and bzImage modules and its boot parameters exist on x86 hosts only, and so does this comparison.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::io::Cursor;

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader, bootparam, elf::start_info};
use ossature_boot::x86_64::{BootProtocol, BootSpec, Booted, prepare};
use ossature_boot::{Platform, RamRange};
use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: u64 = 32 << 20;
const LOAD: u64 = 0x100_0000;
const CMDLINE: &str = "console=ttyS0 root=/dev/vda";

fn memory() -> GuestMmap {
    GuestMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
}

fn prepared(kernel: &[u8], protocol: BootProtocol) -> (GuestMmap, Booted) {
    let mem = memory();
    let platform = Platform::new(vec![0], vec![RamRange::new(0, MEMORY)], Vec::new());
    let initrd = [3; 5000];
    let mut spec = BootSpec::new(kernel, CMDLINE);
    spec.initrd = Some(initrd.as_slice().into());
    spec.protocol = protocol;
    spec.complete_cmdline = false;
    let booted = prepare(&mem, &platform, &spec).unwrap();
    (mem, booted)
}

/// Both have put the same bytes where the kernel lies.
fn assert_same_kernel(ours: &GuestMmap, theirs: &GuestMmap) {
    let read = |mem: &GuestMmap| {
        let mut bytes = vec![0; 8 << 20];
        mem.read_slice(&mut bytes, GuestAddress(LOAD)).unwrap();
        bytes
    };
    assert!(read(ours) == read(theirs));
}

/// A kernel with a PVH note; text, notes and data are told apart by their bytes.
fn elf() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([LOAD, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, offset, addr, file_len, mem_len) in [
        (1u32, 0x1000u64, LOAD, 0x1800u64, 0x1800u64),
        (1, 0x3000, LOAD + 0x20_0000, 0x300, 0x5000),
        (4, 0x2000, LOAD + 0x1000, 24, 24),
    ] {
        image.extend(kind.to_le_bytes());
        image.extend([0; 4]);
        image.extend([offset, addr, addr, file_len, mem_len, 4].into_iter().flat_map(u64::to_le_bytes));
    }
    image.resize(0x1000, 0);
    image.extend((0..0x2300u32).map(|i| (i / 7) as u8));
    let note = [4u32, 8, 18].into_iter().flat_map(u32::to_le_bytes).chain(*b"Xen\0");
    let note: Vec<u8> = note.chain((LOAD + 0x123).to_le_bytes()).collect();
    image[0x2000..0x2000 + note.len()].copy_from_slice(&note);
    image
}

#[test]
fn elf_kernels_load_alike() {
    let image = elf();
    let theirs = memory();
    let result = Elf::load(&theirs, None, &mut Cursor::new(&image), None).unwrap();
    let (ours, booted) = prepared(&image, BootProtocol::Pvh);
    assert_same_kernel(&ours, &theirs);
    assert_eq!(result.pvh_boot_cap, PvhBootCapability::PvhEntryPresent(GuestAddress(booted.cpu.rip)));
    assert_eq!(result.kernel_end, booted.kernel.end);
    assert_eq!(result.kernel_load.0, prepared(&image, BootProtocol::Linux64).1.cpu.rip);
}

#[test]
fn the_start_info_reads_alike() {
    let (mem, booted) = prepared(&elf(), BootProtocol::Pvh);
    let info: start_info::hvm_start_info = mem.read_obj(GuestAddress(booted.cpu.rbx)).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (start_info::XEN_HVM_START_MAGIC_VALUE, 1, 1));
    assert_eq!((info.rsdp_paddr, info.memmap_entries), (booted.rsdp, 3));
    let module: start_info::hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    let initrd = booted.initrd.unwrap();
    assert_eq!((module.paddr, module.size), (initrd.start, 5000));
    let entry = size_of::<start_info::hvm_memmap_table_entry>() as u64;
    let last: start_info::hvm_memmap_table_entry =
        mem.read_obj(GuestAddress(info.memmap_paddr + 2 * entry)).unwrap();
    let ram = start_info::XEN_HVM_MEMMAP_TYPE_RAM;
    assert_eq!((last.addr, last.addr + last.size, last.type_), (0x10_0000, MEMORY, ram));
}

fn bzimage() -> Vec<u8> {
    let header = bootparam::setup_header {
        setup_sects: 1,
        syssize: 0x1000 / 16,
        boot_flag: 0xaa55,
        jump: 0x6aeb,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: 1,
        cmdline_size: 0x7ff,
        pref_address: LOAD,
        init_size: 0x40_0000,
        ..Default::default()
    };
    let mut image = vec![0; 0x1f1];
    image.extend(vm_memory::ByteValued::as_slice(&header));
    image.resize(1024, 0);
    image.extend((0..0x1000u32).map(|i| (i / 5) as u8));
    image
}

#[test]
fn bzimages_load_alike_and_the_zero_page_reads_alike() {
    let image = bzimage();
    let theirs = memory();
    let result = BzImage::load(&theirs, Some(GuestAddress(LOAD)), &mut Cursor::new(&image), None).unwrap();
    let (ours, booted) = prepared(&image, BootProtocol::Linux64);
    assert_same_kernel(&ours, &theirs);

    let params: bootparam::boot_params = ours.read_obj(GuestAddress(booted.cpu.rsi)).unwrap();
    let initrd = booted.initrd.unwrap();
    let expected = bootparam::setup_header {
        code32_start: 0x10_0000,
        type_of_loader: 0xff,
        ramdisk_image: initrd.start as u32,
        ramdisk_size: 5000,
        cmd_line_ptr: params.hdr.cmd_line_ptr,
        ..result.setup_header.unwrap()
    };
    assert_eq!(params.hdr, expected);
    let mut cmdline = vec![0; CMDLINE.len() + 1];
    ours.read_slice(&mut cmdline, GuestAddress(params.hdr.cmd_line_ptr.into())).unwrap();
    assert_eq!(cmdline, [CMDLINE.as_bytes(), &[0]].concat());
    let rsdp = params.acpi_rsdp_addr;
    assert_eq!((rsdp, params.e820_entries, params.sentinel), (booted.rsdp, 3, 0));
    let last = params.e820_table[2];
    let (addr, end, kind) = (last.addr, last.addr + last.size, last.r#type);
    assert_eq!((addr, end, kind), (0x10_0000, MEMORY, 1));
}
