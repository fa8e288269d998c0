use std::fs::File;
use std::io::Write;

use ossature_memory::{MapFileError, Ram, RamConfig};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::unpack::UnpackError;
use crate::x86_64::testing::{
    DATA, LOAD, PROGRAM_HEADER, PROGRAM_HEADERS, PVH_ENTRY, TEXT, bzimage, bzimage_with, elf, elf_with_notes,
    elf32, lz4, machine, pack_all, pvh_note, setup_header,
};
use crate::x86_64::{BootSpec, prepare};

fn open(image: &[u8], protocol: BootProtocol) -> Result<Kernel<'_>, KernelError> {
    Kernel::open(image.into(), protocol)
}

fn entry(image: &[u8], protocol: BootProtocol) -> Result<Entry, KernelError> {
    open(image, protocol).map(|kernel| kernel.entry())
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn the_protocol_chooses_the_entry() {
    let both = elf();
    assert_eq!(entry(&both, BootProtocol::Auto).unwrap(), Entry::Pvh(PVH_ENTRY));
    assert_eq!(entry(&both, BootProtocol::Pvh).unwrap(), Entry::Pvh(PVH_ENTRY));
    assert_eq!(entry(&both, BootProtocol::Linux64).unwrap(), Entry::Linux64(LOAD));
    let without = elf_with_notes(&[]);
    assert_eq!(entry(&without, BootProtocol::Auto).unwrap(), Entry::Linux64(LOAD));
    assert_eq!(entry(&without, BootProtocol::Linux64).unwrap(), Entry::Linux64(LOAD));
    assert!(matches!(entry(&without, BootProtocol::Pvh), Err(KernelError::NoPvhEntry)));
}

#[test]
fn a_bzimage_is_unpacked_unless_linux_is_asked_for() {
    let image = bzimage(&lz4(&elf()));
    for protocol in [BootProtocol::Auto, BootProtocol::Pvh] {
        let kernel = open(&image, protocol).unwrap();
        assert_eq!((kernel.entry(), kernel.unpacked()), (Entry::Pvh(PVH_ENTRY), Some(&*elf())));
    }
    let kernel = open(&image, BootProtocol::Linux64).unwrap();
    assert_eq!((kernel.entry(), kernel.unpacked()), (Entry::Linux64(LOAD + 0x200), None));
}

#[test]
fn a_bzimage_of_unknown_compression_unpacks_itself() {
    let image = bzimage(b"BZh91AY&SY and so on");
    assert_eq!(entry(&image, BootProtocol::Auto).unwrap(), Entry::Linux64(LOAD + 0x200));
    assert!(matches!(
        entry(&image, BootProtocol::Pvh),
        Err(KernelError::Unpack(UnpackError::UnknownFormat { .. }))
    ));
    // So does one that is broken, cut off or not an ELF kernel: what the guest does about it is the guest's business.
    for payload in [&lz4(&elf())[..40], &lz4(&[1; 100]), b"", b"short"] {
        let image = bzimage(payload);
        assert_eq!(
            entry(&image, BootProtocol::Auto).unwrap(),
            Entry::Linux64(LOAD + 0x200),
            "{payload:02x?}"
        );
        assert!(entry(&image, BootProtocol::Pvh).is_err());
    }
}

#[test]
fn g5_a_payload_of_no_bytes_is_handed_over_as_it_is() {
    // As memtest86+ has it: 64-bit entry point, protocol 2.12, nothing packed.
    let mut header = setup_header();
    (header.version, header.xloadflags, header.payload_offset) = (0x020c.into(), 9.into(), 0.into());
    header.pref_address = 0x10_0000.into();
    header.kernel_alignment = 0x1000.into();
    let mut image = bzimage_with(header.clone(), b"");
    assert_eq!(entry(&image, BootProtocol::Auto).unwrap(), Entry::Linux64(0x10_0200));
    let (mem, platform) = machine(32);
    let booted = prepare(&mem, &platform, &BootSpec::new(&image[..], "")).unwrap();
    let mut found = [0; 4];
    mem.read_slice(&mut found, GuestAddress(booted.cpu.rsi + 0x202)).unwrap();
    assert_eq!(&found, b"HdrS", "its own header is in the zero page");
    // Its 32-bit sibling has neither.
    header.xloadflags = 4.into();
    image = bzimage_with(header, b"");
    let error = entry(&image, BootProtocol::Auto).unwrap_err();
    assert!(
        error.to_string().starts_with("the bzImage has no 64-bit entry point (boot protocol 2.12"),
        "{error}"
    );
    let KernelError::NoEntry { version: 0x020c, source } = error else { panic!("{error:?}") };
    assert!(matches!(*source, KernelError::Unpack(UnpackError::TooShort { len: 0 })), "{source:?}");
}

#[test]
fn g6_a_32_bit_elf_boots_by_pvh_alone() {
    let pvh = elf32(&pvh_note());
    for protocol in [BootProtocol::Auto, BootProtocol::Pvh] {
        assert_eq!(entry(&pvh, protocol).unwrap(), Entry::Pvh(PVH_ENTRY));
    }
    assert!(matches!(entry(&pvh, BootProtocol::Linux64), Err(KernelError::Elf32)));
    assert!(matches!(entry(&elf32(&[]), BootProtocol::Auto), Err(KernelError::Elf32WithoutPvh)));
    let (mem, _) = machine(32);
    open(&pvh, BootProtocol::Auto).unwrap().load(&mem).unwrap();
    for (addr, expected) in [(LOAD, TEXT), (LOAD + 0x20_0000, DATA)] {
        let mut found = vec![0; expected.len()];
        mem.read_slice(&mut found, GuestAddress(addr)).unwrap();
        assert_eq!(found, expected);
    }
    // The payload of a 32-bit bzImage, too.
    let mut header = setup_header();
    header.xloadflags = 0.into();
    let image = bzimage_with(header, &lz4(&pvh));
    assert_eq!(entry(&image, BootProtocol::Auto).unwrap(), Entry::Pvh(PVH_ENTRY));
}

#[test]
fn g9_a_packed_file_is_unpacked_whatever_kernel_it_holds() {
    let elf = elf();
    for packed in pack_all(&elf) {
        let kernel = open(&packed, BootProtocol::Auto).unwrap();
        assert_eq!((kernel.entry(), kernel.unpacked()), (Entry::Pvh(PVH_ENTRY), Some(&elf[..])));
        assert_eq!(entry(&packed, BootProtocol::Linux64).unwrap(), Entry::Linux64(LOAD));
        let on_disk = file(&packed);
        let kernel = Kernel::open(ImageSource::Mapped(&on_disk), BootProtocol::Auto).unwrap();
        assert_eq!(kernel.unpacked(), Some(&elf[..]));
    }
    for packed in pack_all(&elf32(&pvh_note())) {
        assert_eq!(entry(&packed, BootProtocol::Auto).unwrap(), Entry::Pvh(PVH_ENTRY));
    }
    // A bzImage in it keeps its setup header where it unpacks itself.
    let image = bzimage(&lz4(&elf));
    for packed in pack_all(&image) {
        assert_eq!(entry(&packed, BootProtocol::Auto).unwrap(), Entry::Pvh(PVH_ENTRY));
        let (mem, platform) = machine(64);
        let mut spec = BootSpec::new(&packed[..], "");
        spec.protocol = BootProtocol::Linux64;
        let booted = prepare(&mem, &platform, &spec).unwrap();
        assert_eq!(booted.entry, Entry::Linux64(LOAD + 0x200));
        let mut init_size = [0; 4];
        mem.read_slice(&mut init_size, GuestAddress(booted.cpu.rsi + 0x260)).unwrap();
        assert_eq!(u32::from_le_bytes(init_size), setup_header().init_size.get());
    }
    for packed in pack_all(b"#!/bin/sh, packed: no kernel") {
        assert!(matches!(entry(&packed, BootProtocol::Auto), Err(KernelError::NotAKernel)));
        // Packed twice is not a kernel either.
        assert!(pack_all(&packed).iter().all(|twice| entry(twice, BootProtocol::Auto).is_err()));
    }
    for packed in pack_all(&elf) {
        // Only the end mark of LZ4's frames may be missing.
        for len in [8, packed.len() / 2, packed.len() - 9] {
            assert!(entry(&packed[..len], BootProtocol::Auto).is_err(), "cut to {len}: {packed:02x?}");
        }
    }
}

#[test]
fn c3_what_is_no_kernel() {
    let arm = {
        let mut image = vec![0; 128];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image
    };
    let error = entry(&arm, BootProtocol::Auto).unwrap_err();
    assert_eq!(error.to_string(), "the kernel is for AArch64; this machine is x86_64");
    for image in [&b""[..], b"#!/bin/sh\n", &[0; 5000]] {
        assert!(matches!(entry(image, BootProtocol::Auto), Err(KernelError::NotAKernel)));
    }
    let folder = File::open(std::env::temp_dir()).unwrap();
    let Err(KernelError::Read { source }) = Kernel::open((&folder).into(), BootProtocol::Auto) else {
        panic!("a folder was read");
    };
    assert_eq!(source.to_string(), "it is a folder");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    assert!(matches!(Kernel::open((&socket).into(), BootProtocol::Auto), Err(KernelError::Read { .. })));
}

#[test]
fn c3_entries_and_segments_in_the_wrong_place() {
    let mut image = elf();
    image[24..32].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    let error = entry(&image, BootProtocol::Linux64).unwrap_err();
    assert!(matches!(error, KernelError::EntryOutsideKernel { entry: 0xffff_ffff_8100_0000 }));
    assert_eq!(entry(&image, BootProtocol::Pvh).unwrap(), Entry::Pvh(PVH_ENTRY));

    let mut image = elf();
    image[PROGRAM_HEADERS + 2 * PROGRAM_HEADER + 24..][..8].copy_from_slice(&0xf_f000u64.to_le_bytes());
    let error = entry(&image, BootProtocol::Auto).unwrap_err();
    assert!(matches!(error, KernelError::OverlapsBootTables { start: 0xf_f000 }));
    let mut header = setup_header();
    header.pref_address = 0.into();
    let image = bzimage_with(header, &[0; 64]);
    let error = entry(&image, BootProtocol::Linux64).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel loads at 0x0, but the first 0x100000 bytes belong to the boot tables"
    );
}

#[test]
fn files_and_bytes_load_alike() {
    let elf = elf();
    let bzimage = bzimage(&lz4(&elf));
    let on_disk = [file(&elf), file(&bzimage)];
    let sources = [
        ImageSource::from(&elf[..]),
        ImageSource::from(&on_disk[0]),
        (&bzimage[..]).into(),
        (&on_disk[1]).into(),
    ];
    for source in sources {
        let (mem, _) = machine(32);
        Kernel::open(source, BootProtocol::Auto).unwrap().load(&mem).unwrap();
        for (addr, expected) in [(LOAD, TEXT), (LOAD + 0x20_0000, DATA)] {
            let mut found = vec![0; expected.len() + 8];
            mem.read_slice(&mut found, GuestAddress(addr)).unwrap();
            assert_eq!((&found[..expected.len()], &found[expected.len()..]), (expected, &[0; 8][..]));
        }
    }
}

#[test]
fn a_whole_bzimage_loads_its_code() {
    let image = bzimage(&lz4(&elf()));
    let (mem, _) = machine(32);
    open(&image, BootProtocol::Linux64).unwrap().load(&mem).unwrap();
    let mut found = vec![0; image.len() - 1024];
    mem.read_slice(&mut found, GuestAddress(LOAD)).unwrap();
    assert_eq!(found, &image[1024..]);
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let file = file(&elf());
    let kernel = Kernel::open((&file).into(), BootProtocol::Auto).unwrap();
    file.set_len(0x1001).unwrap();
    let (mem, _) = machine(32);
    assert!(matches!(kernel.load(&mem), Err(KernelError::Read { .. })));
}

#[test]
fn c3_a_file_that_is_cut_short_after_it_was_parsed_is_an_error() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf()).unwrap();
    let kernel = Kernel::open(ImageSource::Mapped(&file), BootProtocol::Auto).unwrap();
    file.set_len(0x1001).unwrap();
    let ram = Ram::new(&RamConfig::new(32 << 20)).unwrap();
    let Err(KernelError::Read { source }) = kernel.load(&ram.map()) else { panic!("it was loaded") };
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<MapFileError>());
    assert!(matches!(inner, Some(MapFileError::Truncated { has: 0x1001, .. })), "{source}");
}

#[test]
fn a_kernel_of_pages_is_not_copied_and_an_unpacked_one_is() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf()).unwrap();
    let load = |file: &File| {
        let ram = Ram::new(&RamConfig::new(32 << 20)).unwrap();
        let kernel = Kernel::open(ImageSource::Mapped(file), BootProtocol::Auto).unwrap();
        let loaded = kernel.load(&ram.map()).unwrap();
        let mut text = vec![0; TEXT.len() + 1];
        ram.dma().read(GuestAddress(LOAD), &mut text).unwrap();
        assert_eq!(text.strip_suffix(&[0]), Some(TEXT));
        loaded
    };
    let loaded = load(&file);
    assert_eq!((loaded.copied, loaded.mapped > 0), (0, true));
    let mut packed = tempfile::tempfile().unwrap();
    packed.write_all(&bzimage(&lz4(&elf()))).unwrap();
    let loaded = load(&packed);
    assert_eq!((loaded.mapped, loaded.copied > 0), (0, true));
}

/// Guest memory is larger than the image, and smaller than what lies may claim.
fn never_panics(image: &[u8]) {
    let (mem, platform) = machine(32);
    for protocol in [BootProtocol::Auto, BootProtocol::Pvh, BootProtocol::Linux64] {
        let spec = BootSpec { initrd: Some(TEXT.into()), protocol, ..BootSpec::new(image, "quiet") };
        if let Ok(booted) = prepare(&mem, &platform, &spec) {
            assert!(booted.kernel.end <= booted.initrd.unwrap().start);
        }
        if let Ok(kernel) = open(image, protocol) {
            let _ = kernel.load(&mem);
        }
    }
    let ram = Ram::new(&RamConfig::new(32 << 20)).unwrap();
    let on_disk = file(image);
    if let Ok(kernel) = Kernel::open(ImageSource::Mapped(&on_disk), BootProtocol::Auto) {
        if kernel.load(&ram.map()).is_ok() {
            reads_to_the_end(&kernel, &ram);
        }
    }
}

/// Nothing that was loaded lies behind the end of its file, where touching it would end the process.
fn reads_to_the_end(kernel: &Kernel, ram: &Ram) {
    for segment in kernel.segments() {
        for addr in [segment.guest_addr, segment.guest_addr + segment.file_len.saturating_sub(1)] {
            let _ = ram.dma().read_obj::<u8>(GuestAddress(addr));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn c3_mutated_images_are_refused_or_loaded(
        kind in 0usize..7,
        len in 0usize..0x4000,
        edits in prop::collection::vec((0usize..0x280, prop::num::u64::ANY, 1usize..=8), 0..4),
        tail in (0usize..0x200, any::<u8>()),
    ) {
        let mut image = match kind {
            0 => elf(),
            1 => bzimage(&lz4(&elf())),
            2 => elf32(&pvh_note()),
            packed => pack_all(&elf()).swap_remove(packed - 3),
        };
        image.resize(image.len().max(0x300), 0);
        for (offset, value, width) in edits {
            image[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        let at = image.len() - 1 - tail.0.min(image.len() - 1);
        image[at] = tail.1;
        never_panics(&image);
        image.truncate(len);
        never_panics(&image);
    }
}

#[test]
fn protocols_have_names() {
    assert_eq!("auto".parse(), Ok(BootProtocol::Auto));
    assert_eq!("pvh".parse(), Ok(BootProtocol::Pvh));
    assert_eq!("linux".parse(), Ok(BootProtocol::Linux64));
    assert_eq!("efi".parse::<BootProtocol>().unwrap_err().to_string(), "give auto, pvh or linux");
}
