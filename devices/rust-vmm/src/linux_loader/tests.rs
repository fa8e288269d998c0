use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};

use ::linux_loader::cmdline::Cmdline;
use ::linux_loader::loader::elf::PvhBootCapability;
use ::linux_loader::loader::{BzImage, Elf, Error, KernelLoader, bootparam};
use ossature_boot::x86_64::smbios::Smbios;
use ossature_boot::x86_64::{self, BootProtocol, BootSpec, KernelError};
use ossature_boot::{Platform, RamRange};
use ossature_core::Registers;
use ossature_core::machine::Payload;
use ossature_memory::GuestMmap;
use ossature_memory::vm_memory::{ByteValued, Bytes, GuestAddress};
use proptest::prelude::*;

use super::reader::ReaderAt;
use super::{FromKernelLoader, ToKernelLoader};

const MEMORY: u64 = 32 << 20;
const LOAD: u64 = 0x100_0000;
const CMDLINE: &str = "console=ttyS0 quiet";

fn memory() -> GuestMmap {
    GuestMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
}

fn platform() -> Platform {
    Platform::new(vec![0], vec![RamRange::new(0, MEMORY)], Vec::new())
}

fn bytes(memory: &GuestMmap) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF kernel with these segments (address, bytes in the file, bytes in memory), and a PVH note if there is to be one.
fn elf(segments: &[(u64, u64, u64)], pvh: bool) -> Vec<u8> {
    let mut headers: Vec<_> = segments.iter().map(|&(addr, file, mem)| (1u32, addr, file, mem)).collect();
    if pvh {
        headers.push((4, 0, 24, 24));
    }
    let entry = segments[0].0;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([entry, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, headers.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
    let mut offset = 0x1000u64;
    let mut data = Vec::new();
    for (number, (kind, addr, file, mem)) in (1u8..).zip(headers) {
        image.extend(kind.to_le_bytes());
        image.extend([0; 4]);
        image.extend([offset, addr, addr, file, mem, 4].into_iter().flat_map(u64::to_le_bytes));
        if kind == 4 {
            data.extend([4u32, 8, 18].into_iter().flat_map(u32::to_le_bytes));
            data.extend(b"Xen\0");
            data.extend(entry.to_le_bytes());
        } else {
            data.extend((0..file).map(|at| number ^ (at / 3) as u8));
        }
        offset += file;
    }
    image.resize(0x1000, 0);
    image.extend(data);
    image
}

fn bzimage(xloadflags: u16) -> Vec<u8> {
    let header = bootparam::setup_header {
        setup_sects: 1,
        syssize: 0x100,
        boot_flag: 0xaa55,
        jump: 0x6aeb,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags,
        cmdline_size: 0x7ff,
        payload_offset: 0x100,
        payload_length: 0x100,
        pref_address: LOAD,
        init_size: 0x40_0000,
        ..Default::default()
    };
    let mut image = vec![0; 0x1f1];
    image.extend(header.as_slice());
    image.resize(1024, 0);
    image.extend((0..0x1000u32).map(|i| (i / 5) as u8));
    image
}

/// Guest memory and registers after our own loader.
fn ours(kernel: &[u8], initrd: &[u8], protocol: BootProtocol) -> (Vec<u8>, Registers) {
    let memory = memory();
    let mut spec = BootSpec::new(kernel, CMDLINE);
    spec.initrd = Some(initrd.into());
    spec.protocol = protocol;
    let booted = x86_64::prepare(&memory, &platform(), &spec).unwrap();
    (bytes(&memory), booted.cpu.into())
}

/// The same after a foreign one, loaded twice as by a machine that is reset.
fn theirs<L: KernelLoader>(payload: FromKernelLoader<L>, initrd: &[u8]) -> (Vec<u8>, Registers) {
    let mut payload = payload.initrd(file(initrd)).cmdline(Cmdline::try_from(CMDLINE, 2048).unwrap());
    payload.load(&memory(), &platform()).unwrap();
    let memory = memory();
    let registers = payload.load(&memory, &platform()).unwrap();
    (bytes(&memory), registers)
}

#[test]
fn a_guest_finds_the_same_whoever_loads_an_elf_kernel() {
    for pvh in [true, false] {
        let image = elf(&[(LOAD, 0x1800, 0x1800), (LOAD + 0x20_0000, 0x300, 0x5000)], pvh);
        let (our_memory, our_registers) = ours(&image, &[3; 5000], BootProtocol::Auto);
        let (their_memory, their_registers) = theirs(FromKernelLoader::<Elf>::new(file(&image)), &[3; 5000]);
        assert!(our_memory == their_memory, "pvh {pvh}");
        assert_eq!(our_registers, their_registers);
        // And our loader, seen as a foreign one.
        let (memory, registers) = theirs(FromKernelLoader::<ToKernelLoader>::new(file(&image)), &[3; 5000]);
        assert!(our_memory == memory && our_registers == registers, "pvh {pvh}");
    }
}

#[test]
fn a_guest_finds_the_same_whoever_loads_a_bzimage() {
    let image = bzimage(1);
    let (our_memory, our_registers) = ours(&image, &[3; 5000], BootProtocol::Linux64);
    let payload = FromKernelLoader::<BzImage>::new(file(&image)).offset(GuestAddress(LOAD));
    let (mut memory, registers) = theirs(payload, &[3; 5000]);
    assert_eq!(our_registers, registers);
    // Only theirs says in the zero page where it has loaded the kernel, for boot loaders of the 32-bit protocol.
    let code32_start = registers.rsi as usize + 0x214;
    assert_eq!(memory[code32_start..][..4], (LOAD as u32).to_le_bytes());
    memory[code32_start..][..4].copy_from_slice(&0x10_0000u32.to_le_bytes());
    assert!(our_memory == memory);
    // Below the address that it prefers, it is to have the memory there, too.
    let payload = FromKernelLoader::<BzImage>::new(file(&image));
    let (memory, registers) = theirs(payload, &[3; 5000]);
    assert_eq!(registers.rip, 0x10_0200);
    assert_eq!(memory[0x10_0000..][..0x1000], image[1024..]);
}

#[test]
fn what_the_machine_adds_can_be_left_out() {
    let image = elf(&[(LOAD, 0x1800, 0x1800)], true);
    let ours = |complete, smbios: Option<Smbios>| {
        let memory = memory();
        let mut spec = BootSpec::new(image.as_slice(), CMDLINE);
        (spec.complete_cmdline, spec.smbios) = (complete, smbios.as_ref());
        x86_64::prepare(&memory, &platform(), &spec).unwrap();
        bytes(&memory)
    };
    let theirs = |complete, smbios: Option<Smbios>| {
        let memory = memory();
        let payload = FromKernelLoader::<Elf>::new(file(&image)).complete_cmdline(complete).smbios(smbios);
        payload.cmdline(Cmdline::try_from(CMDLINE, 2048).unwrap()).load(&memory, &platform()).unwrap();
        bytes(&memory)
    };
    let whole = ours(true, Some(Smbios::new()));
    for (complete, smbios) in
        [(false, Some(Smbios::new())), (true, None), (true, Some(Smbios::new().serial("42")))]
    {
        let expected = ours(complete, smbios.clone());
        assert!(expected != whole);
        assert!(theirs(complete, smbios.clone()) == expected, "{complete} {smbios:?}");
    }
}

#[test]
fn machines_may_load_from_one_description_of_a_file() {
    for (image, elf) in [(elf(&[(LOAD, 0x1_8000, 0x1_8000)], true), true), (bzimage(1), false)] {
        let mut shared = file(&image);
        shared.seek(SeekFrom::Start(7)).unwrap();
        let kernel = shared.try_clone().unwrap();
        let initrd = || shared.try_clone().unwrap();
        let memory = memory();
        if elf {
            let mut payload = FromKernelLoader::<Elf>::new(kernel).initrd(initrd());
            payload.load(&memory, &platform()).unwrap();
            assert!(bytes(&memory)[LOAD as usize..][..0x1_8000] == image[0x1000..][..0x1_8000]);
        } else {
            let mut payload = FromKernelLoader::<BzImage>::new(kernel).initrd(initrd());
            payload.load(&memory, &platform()).unwrap();
        }
        assert_eq!(shared.stream_position().unwrap(), 7);
    }
}

#[test]
fn a_reader_moves_and_reads_as_a_file_does() {
    let content: Vec<u8> = (0..200_000u32).map(|i| (i / 3) as u8).collect();
    let (mut plain, under) = (file(&content), file(&content));
    plain.rewind().unwrap();
    let mut reader = ReaderAt::new(&under);
    for to in [
        SeekFrom::Start(3),
        SeekFrom::Current(-2),
        SeekFrom::Current(70_000),
        SeekFrom::End(-5),
        SeekFrom::End(10),
        SeekFrom::Current(-1_000_000),
        SeekFrom::End(i64::MIN),
        SeekFrom::Start(0),
    ] {
        let kind = |error: std::io::Error| error.kind();
        assert_eq!(reader.seek(to).map_err(kind), plain.seek(to).map_err(kind), "{to:?}");
        let (mut a, mut b) = ([0; 100], [0; 100]);
        assert_eq!(reader.read(&mut a).unwrap(), plain.read(&mut b).unwrap(), "{to:?}");
        assert_eq!(a, b);
    }
    // Into guest memory, more than it has room for at once.
    let memory = memory();
    reader.rewind().unwrap();
    memory.read_exact_volatile_from(GuestAddress(0), &mut reader, content.len()).unwrap();
    assert!(bytes(&memory)[..content.len()] == content);
    assert!(memory.read_exact_volatile_from(GuestAddress(0), &mut reader, 1).is_err());
}

#[test]
fn a_kernel_that_cannot_be_started_is_an_error() {
    let load = |mut payload: FromKernelLoader<BzImage>| {
        payload.load(&memory(), &platform()).unwrap_err().to_string()
    };
    assert_eq!(load(FromKernelLoader::new(file(b"nothing"))), "the kernel cannot be loaded");
    assert!(load(FromKernelLoader::new(file(&bzimage(0)))).contains("no 64-bit entry point"));
    let payload = FromKernelLoader::new(file(&bzimage(1))).offset(GuestAddress(MEMORY - 0x10_0000));
    assert!(load(payload).contains("needs memory"));
    let mut long = FromKernelLoader::<BzImage>::new(file(&bzimage(1)));
    long = long.cmdline(Cmdline::try_from(&"a".repeat(3000), 4096).unwrap());
    assert!(load(long).contains("at most 2047"));
    let mut outside = elf(&[(LOAD, 0x100, 0x100)], true);
    outside[24..32].copy_from_slice(&(LOAD + 0x1000).to_le_bytes());
    let at = outside.windows(4).position(|four| four == b"Xen\0").unwrap() + 4;
    outside[at..][..8].copy_from_slice(&(LOAD + 0x1000).to_le_bytes());
    let error = FromKernelLoader::<Elf>::new(file(&outside)).load(&memory(), &platform()).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(KernelError::EntryOutsideKernel { .. })), "{error:?}");
}

#[test]
fn our_loader_says_what_theirs_says() {
    for pvh in [true, false] {
        let image = elf(&[(LOAD, 0x1800, 0x1800), (LOAD + 0x20_0000, 0x300, 0x5000)], pvh);
        let high = Some(GuestAddress(0x10_0000));
        let ours = ToKernelLoader::load(&memory(), None, &mut Cursor::new(&image), high).unwrap();
        let theirs = Elf::load(&memory(), None, &mut Cursor::new(&image), high).unwrap();
        assert_eq!((ours.kernel_load, ours.kernel_end), (theirs.kernel_load, theirs.kernel_end));
        assert_eq!(ours.setup_header, None);
        if pvh {
            assert_eq!(ours.pvh_boot_cap, theirs.pvh_boot_cap);
        } else {
            assert_eq!(ours.pvh_boot_cap, PvhBootCapability::PvhEntryNotPresent);
        }
    }
    // With a payload of no compression that it knows.
    let image = bzimage(1);
    let ours = ToKernelLoader::load(&memory(), None, &mut Cursor::new(&image), None).unwrap();
    let theirs = BzImage::load(&memory(), Some(GuestAddress(LOAD)), &mut Cursor::new(&image), None).unwrap();
    assert_eq!((ours.kernel_load, ours.setup_header), (theirs.kernel_load, theirs.setup_header));
}

#[test]
fn our_loader_refuses_what_it_cannot_load() {
    let image = elf(&[(LOAD, 0x100, 0x100)], true);
    let load = |image: &[u8], offset, high| {
        ToKernelLoader::load(&memory(), offset, &mut Cursor::new(image), high).unwrap_err()
    };
    let at = |addr| Some(GuestAddress(addr));
    assert_eq!(load(&image, at(0x1000), None), Error::InvalidKernelStartAddress);
    assert_eq!(load(&image, at(0), at(LOAD + 1)), Error::InvalidKernelStartAddress);
    assert_eq!(load(&elf(&[(LOAD, 0x100, MEMORY)], true), None, None), Error::MemoryOverflow);
    assert!(matches!(load(b"no kernel", None, None), Error::Elf(_)));
    assert!(matches!(load(&bzimage(0), None, None), Error::Bzimage(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_loaders_put_the_same_bytes_there(
        sizes in proptest::collection::vec((1..0x3000u64, 0..0x2000u64, 0..0x1000u64), 1..6),
        pvh: bool,
    ) {
        let mut addr = LOAD;
        let segments: Vec<_> = sizes.into_iter().map(|(file, more, gap)| {
            let segment = (addr, file, file + more);
            addr += file + more + gap;
            segment
        }).collect();
        let image = elf(&segments, pvh);
        let (ours, theirs) = (memory(), memory());
        ToKernelLoader::load(&ours, None, &mut Cursor::new(&image), None).unwrap();
        Elf::load(&theirs, None, &mut Cursor::new(&image), None).unwrap();
        let read = |memory: &GuestMmap| {
            let mut bytes = vec![0; 0x3_0000];
            memory.read_slice(&mut bytes, GuestAddress(LOAD)).unwrap();
            bytes
        };
        prop_assert!(read(&ours) == read(&theirs));
    }
}
