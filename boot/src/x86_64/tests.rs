use std::io::{Seek, SeekFrom, Write};

use ossature_memory::{Ram, RamConfig};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::bzimage::SetupHeader;
use super::*;
use crate::CmdlineError;
use crate::x86_64::testing::{
    LOAD, PVH_ENTRY, bzimage, bzimage_with, elf, elf_with_notes, lz4, machine, setup_header,
};

fn spec<'a>(kernel: &'a [u8], cmdline: &'a str, protocol: BootProtocol) -> BootSpec<'a> {
    BootSpec { protocol, complete_cmdline: false, ..BootSpec::new(kernel, cmdline) }
}

fn bytes(mem: &GuestMmap, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

fn read<T: FromBytes + Immutable + KnownLayout>(mem: &GuestMmap, addr: u64) -> T {
    T::read_from_bytes(&bytes(mem, addr, size_of::<T>())).unwrap()
}

#[test]
fn pvh_finds_everything_from_rbx() {
    let (mem, platform) = machine(32);
    let initrd = vec![7; 5000];
    let kernel = elf();
    let mut spec = spec(&kernel, "console=ttyS0 quiet", BootProtocol::Auto);
    spec.initrd = Some(initrd.as_slice().into());
    let booted = prepare(&mem, &platform, &spec).unwrap();
    assert_eq!((booted.entry, booted.cpu.rip), (Entry::Pvh(PVH_ENTRY), PVH_ENTRY.into()));
    assert_eq!(booted.kernel, LOAD..LOAD + 0x20_3000);

    let info: [u32; 4] = read(&mem, booted.cpu.rbx);
    assert_eq!(info, [0x336e_c578, 1, 0, 1]);
    let [modlist, cmdline, rsdp, memmap, entries] = read::<[u64; 5]>(&mem, booted.cpu.rbx + 16);
    let place = booted.initrd.unwrap();
    assert_eq!(read::<[u64; 4]>(&mem, modlist), [place.start, 5000, 0, 0]);
    assert_eq!(place, 0x1ff_e000..0x1ff_e000 + 5000);
    assert_eq!(bytes(&mem, place.start, 5000), initrd);
    assert_eq!(bytes(&mem, cmdline, 20), b"console=ttyS0 quiet\0");
    assert_eq!(bytes(&mem, rsdp, 8), b"RSD PTR ");
    assert_eq!((rsdp, entries), (booted.rsdp, 3));
    assert_eq!(read::<[u64; 3]>(&mem, memmap), [0, layout::LOW_RAM_END, 1]);
    assert_eq!(
        read::<[u64; 3]>(&mem, memmap + 24),
        [layout::LOW_RAM_END, 0x10_0000 - layout::LOW_RAM_END, 2]
    );
    assert_eq!(read::<[u64; 3]>(&mem, memmap + 48), [0x10_0000, 31 << 20, 1]);
}

#[test]
fn pvh_without_initrd_has_no_module() {
    let (mem, platform) = machine(32);
    let booted = prepare(&mem, &platform, &spec(&elf(), "", BootProtocol::Pvh)).unwrap();
    assert_eq!(booted.initrd, None);
    assert_eq!(read::<u32>(&mem, booted.cpu.rbx + 12), 0);
    assert_eq!(read::<u64>(&mem, booted.cpu.rbx + 16), 0);
}

#[test]
fn linux_finds_everything_from_rsi() {
    let image = bzimage(&lz4(&elf()));
    for (kernel, header) in [(&elf()[..], None), (&image[..], Some(setup_header()))] {
        let (mem, platform) = machine(64);
        let initrd = [9; 100];
        let mut spec = spec(kernel, "root=/dev/vda", BootProtocol::Linux64);
        spec.initrd = Some(initrd.as_slice().into());
        let booted = prepare(&mem, &platform, &spec).unwrap();
        let page = booted.cpu.rsi;
        assert_eq!(page, layout::ZERO_PAGE);
        assert_eq!(read::<u64>(&mem, page + 0x70), booted.rsdp);
        assert_eq!(read::<u8>(&mem, page + 0x1e8), 3);
        assert_eq!(read::<u8>(&mem, page + 0x1ef), 0, "sentinel");
        assert_eq!(
            bytes(&mem, page + 0x2d0, 20),
            [&[0; 8][..], &layout::LOW_RAM_END.to_le_bytes(), &[1, 0, 0, 0]].concat()
        );

        let found: SetupHeader = read(&mem, page + 0x1f1);
        let place = booted.initrd.unwrap();
        assert_eq!((found.boot_flag.get(), &found.header), (0xaa55, b"HdrS"));
        assert_eq!((found.type_of_loader, found.cmd_line_ptr.get()), (0xff, layout::CMDLINE as u32));
        assert_eq!(
            u64::from(found.ramdisk_image.get())
                ..u64::from(found.ramdisk_image.get() + found.ramdisk_size.get()),
            place
        );
        assert_eq!(bytes(&mem, layout::CMDLINE, 14), b"root=/dev/vda\0");
        // What the kernel's own header says stays.
        let expected = header.map_or((0, 0), |header| (header.init_size.get(), header.pref_address.get()));
        assert_eq!((found.init_size.get(), found.pref_address.get()), expected);
    }
}

#[test]
fn an_unpacked_bzimage_is_described_as_elf() {
    let image = bzimage(&lz4(&elf_with_notes(&[])));
    let (mem, platform) = machine(32);
    let booted = prepare(&mem, &platform, &spec(&image, "", BootProtocol::Auto)).unwrap();
    assert_eq!(booted.entry, Entry::Linux64(LOAD));
    assert_eq!(read::<SetupHeader>(&mem, booted.cpu.rsi + 0x1f1).init_size, 0);
}

#[test]
fn c3_command_line_overflow() {
    let (mem, platform) = machine(32);
    let fits = "x".repeat(2047);
    let long = "x".repeat(2048);
    let booted = prepare(&mem, &platform, &spec(&elf(), &fits, BootProtocol::Auto)).unwrap();
    assert_eq!(booted.entry, Entry::Pvh(PVH_ENTRY));
    let error = prepare(&mem, &platform, &spec(&elf(), &long, BootProtocol::Auto)).unwrap_err();
    assert_eq!(error.to_string(), "the command line has 2048 bytes; this kernel takes at most 2047");

    // A kernel that takes less, and one that claims to take more than there is room for.
    for (claimed, limit) in [(100, 100), (u32::MAX, 2047)] {
        let mut header = setup_header();
        header.cmdline_size = claimed.into();
        let image = bzimage_with(header, &lz4(&elf()));
        for protocol in [BootProtocol::Auto, BootProtocol::Linux64] {
            let result = prepare(&mem, &platform, &spec(&image, &long, protocol));
            assert!(
                matches!(result, Err(BootError::Cmdline(CmdlineError::TooLong { len: 2048, limit: l })) if l == limit)
            );
            prepare(&mem, &platform, &spec(&image, &long[..limit], protocol)).unwrap();
        }
    }
}

#[test]
fn c3_command_line_bytes() {
    let (mem, platform) = machine(32);
    for (cmdline, position) in [("\0", 0), ("quiet\n", 5), ("a=\u{e4}", 2), ("a\tb", 1), ("\u{7f}", 0)] {
        let result = prepare(&mem, &platform, &spec(&elf(), cmdline, BootProtocol::Auto));
        assert!(
            matches!(result, Err(BootError::Cmdline(CmdlineError::InvalidByte { position: p, .. })) if p == position),
            "{cmdline:?}"
        );
    }
}

/// Where an initrd of `len` bytes goes with this kernel in `mib` MiB.
fn place(kernel: &[u8], protocol: BootProtocol, mib: u64, len: u64) -> Result<Range<u64>, BootError> {
    let (mem, platform) = machine(mib);
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let mut spec = spec(kernel, "", protocol);
    spec.initrd = Some((&file).into());
    prepare(&mem, &platform, &spec).map(|booted| booted.initrd.unwrap())
}

#[test]
fn c3_initrd_overlap() {
    let elf = elf();
    // ELF: from the kernel's end to the end of RAM, to the byte.
    let kernel_end = LOAD + 0x20_3000;
    let room = (64 << 20) - kernel_end;
    assert_eq!(place(&elf, BootProtocol::Auto, 64, room).unwrap(), kernel_end..64 << 20);
    assert_eq!(place(&elf, BootProtocol::Auto, 64, 1).unwrap(), (64 << 20) - 4096..(64 << 20) - 4095);
    for len in [room + 1, 64 << 20, 1 << 40] {
        let error = place(&elf, BootProtocol::Auto, 64, len).unwrap_err();
        assert!(matches!(error, BootError::InitrdTooLarge { len: l, .. } if l == len));
    }
    let error = place(&elf, BootProtocol::Auto, 64, room + 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the initrd of {} bytes does not fit: between the kernel's end at {kernel_end:#x} and the limit at \
             0x4000000 there are {room} bytes",
            room + 1
        )
    );
    assert!(matches!(place(&elf, BootProtocol::Auto, 64, 0), Err(BootError::EmptyInitrd)));

    // bzImage: after what it needs to unpack itself, and not above what it allows.
    let kernel_end = LOAD + 0x80_0000;
    let mut header = setup_header();
    header.initrd_addr_max = (0x2ff_ffff).into();
    let image = bzimage_with(header, &lz4(&elf));
    let linux = |len| place(&image, BootProtocol::Linux64, 64, len);
    assert_eq!(linux(0x300_0000 - kernel_end).unwrap(), kernel_end..0x300_0000);
    assert!(matches!(
        linux(0x300_0001 - kernel_end),
        Err(BootError::InitrdTooLarge { limit: 0x300_0000, .. })
    ));
}

#[test]
fn an_initrd_stays_below_the_gap() {
    let ram = [RamRange::new(0, 64 << 20), RamRange::new(1 << 32, 64 << 20)];
    let mem =
        GuestMmap::from_ranges(&ram.map(|range| (GuestAddress(range.base), range.len as usize))).unwrap();
    let platform = Platform::new(vec![0], ram.into(), Vec::new());
    let kernel = elf();
    let mut spec = spec(&kernel, "", BootProtocol::Auto);
    let initrd = [1; 10];
    spec.initrd = Some(initrd.as_slice().into());
    assert_eq!(prepare(&mem, &platform, &spec).unwrap().initrd.unwrap().start, (64 << 20) - 4096);
}

#[test]
fn an_initrd_that_cannot_be_read_is_said_to_be() {
    let (mem, platform) = machine(32);
    let kernel = elf();
    let mut write_only = tempfile::NamedTempFile::new().unwrap();
    write_only.write_all(b"initrd").unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(write_only.path()).unwrap();
    let mut spec = spec(&kernel, "", BootProtocol::Auto);
    spec.initrd = Some((&file).into());
    assert!(matches!(prepare(&mem, &platform, &spec), Err(BootError::ReadInitrd { .. })));
}

#[test]
fn c3_kernels_outside_of_ram() {
    let (mem, platform) = machine(17);
    let error = prepare(&mem, &platform, &spec(&elf(), "", BootProtocol::Auto)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel needs memory from 0x1000000 to 0x1203000; RAM there ends at 0x1100000"
    );
    let mut header = setup_header();
    header.init_size = u32::MAX.into();
    let image = bzimage_with(header, &lz4(&elf()));
    let error = prepare(&mem, &platform, &spec(&image, "", BootProtocol::Linux64)).unwrap_err();
    assert!(
        matches!(error, BootError::Kernel(KernelError::OutsideRam { ram_end: 0x110_0000, .. })),
        "{error}"
    );
}

#[test]
fn a_platform_that_claims_memory_it_has_not() {
    let (mem, _) = machine(17);
    let (_, platform) = machine(64);
    assert!(prepare(&mem, &platform, &spec(&elf(), "", BootProtocol::Auto)).is_err());
    let none = Platform { ram: Vec::new(), ..platform };
    assert!(prepare(&mem, &none, &spec(&elf(), "", BootProtocol::Auto)).is_err());
}

#[test]
fn only_a_few_pages_below_one_mib_are_written() {
    let written = |protocol| {
        let (mem, platform) = machine(32);
        prepare(&mem, &platform, &spec(&elf(), "quiet", protocol)).unwrap();
        let zero = vec![0; 4096];
        (0..256).filter(|page| bytes(&mem, page * 4096, 4096) != zero).collect::<Vec<u64>>()
    };
    assert_eq!(written(BootProtocol::Pvh), [0x6, 0xe0, 0xf8]);
    assert_eq!(written(BootProtocol::Linux64), [0x6, 0x7, 0x9, 0xa, 0xb, 0xe0, 0xf8]);
}

/// All of guest memory.
fn contents(ram: &Ram) -> Vec<u8> {
    bytes(&ram.map(), 0, ram.slots().map(|slot| slot.size as usize).sum())
}

#[test]
fn a_machine_that_is_reset_in_place_is_prepared_again_from_the_same_files() {
    let on_disk = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let (elf, bzimage, initrd) = (on_disk(&elf()), on_disk(&bzimage(&lz4(&elf()))), on_disk(&[7; 5000]));
    let (_, platform) = machine(32);
    for source in [ImageSource::File, ImageSource::Mapped] {
        for kernel in [&elf, &bzimage] {
            for protocol in [BootProtocol::Auto, BootProtocol::Linux64] {
                let mut spec = BootSpec::new(source(kernel), "quiet");
                spec.initrd = Some(source(&initrd));
                spec.protocol = protocol;
                let ram = Ram::new(&RamConfig::new(32 << 20)).unwrap();
                let first = prepare(&ram.map(), &platform, &spec).unwrap();
                let before = contents(&ram);
                // The guest has written everywhere; reset leaves zeros, and somebody has moved the files' positions.
                let zero = vec![0; before.len()];
                ram.dma().write(GuestAddress(0), &vec![0xee; before.len()]).unwrap();
                ram.dma().write(GuestAddress(0), &zero).unwrap();
                for mut file in [kernel, &initrd] {
                    file.seek(SeekFrom::Start(123)).unwrap();
                }
                assert_eq!(prepare(&ram.map(), &platform, &spec).unwrap(), first);
                assert!(contents(&ram) == before, "{spec:?}");
            }
        }
    }
}

#[test]
fn a5_the_machine_completes_the_command_line_unless_told_not_to() {
    let (mem, platform) = machine(32);
    let kernel = elf();
    let mut spec = BootSpec::new(&kernel[..], "quiet");
    let booted = prepare(&mem, &platform, &spec).unwrap();
    assert_eq!(booted.cmdline, "pci=off quiet");
    assert_eq!(bytes(&mem, layout::CMDLINE, 14), b"pci=off quiet\0");
    spec.complete_cmdline = false;
    assert_eq!(prepare(&machine(32).0, &platform, &spec).unwrap().cmdline, "quiet");
    // What it adds counts against the kernel's limit.
    let long = "x".repeat(2040);
    spec.cmdline = &long;
    assert!(prepare(&mem, &platform, &spec).is_ok());
    spec.complete_cmdline = true;
    let error = prepare(&mem, &platform, &spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the command line has 2048 bytes with `pci=off`, which the machine adds; this kernel takes at most 2047"
    );
    // What is wrong with the caller's part is told at the position where the caller has it.
    spec.cmdline = "quiet\n";
    let error = prepare(&mem, &platform, &spec).unwrap_err();
    assert!(error.to_string().starts_with("the command line has byte 0x0a at position 5;"), "{error}");
}

#[test]
fn all_that_a_kernel_needs_is_told_whichever_of_its_segments_has_no_room() {
    for (mib, ram_end) in [(15, 15 << 20), (17, 17 << 20), (18, 18 << 20)] {
        let (mem, platform) = machine(mib);
        let error = prepare(&mem, &platform, &spec(&elf(), "", BootProtocol::Auto)).unwrap_err();
        let BootError::Kernel(KernelError::OutsideRam { start, end, ram_end: told }) = error else {
            panic!("{error}")
        };
        assert_eq!((start, end, told), (LOAD, LOAD + 0x20_3000, ram_end));
    }
}

#[test]
fn g8_smbios_lies_where_guests_look_for_it_or_is_left_out() {
    let kernel = elf();
    let smbios = Smbios::new().serial("42");
    let mut spec = BootSpec::new(&kernel[..], "");
    spec.smbios = Some(&smbios);
    let (mem, platform) = machine(32);
    prepare(&mem, &platform, &spec).unwrap();
    let expected = smbios.tables(layout::SMBIOS.start, 0x7ff0).unwrap();
    assert_eq!(bytes(&mem, 0xf_8000, expected.len()), expected);
    assert_eq!(layout::SMBIOS.start % 16, 0);
    assert!((0xf_0000..0x10_0000).contains(&layout::SMBIOS.start));

    let wrong = Smbios::new().serial("\n");
    spec.smbios = Some(&wrong);
    assert!(matches!(prepare(&mem, &platform, &spec), Err(BootError::Smbios(_))));
    spec.smbios = None;
    let (mem, platform) = machine(32);
    prepare(&mem, &platform, &spec).unwrap();
    assert_eq!(bytes(&mem, 0xf_8000, 5), [0; 5]);
}
