use ossature_memory::{Ram, RamConfig};

use super::testing::image;
use super::*;
use crate::caches::{Cache, Caches};
use crate::platform::{Node, NodeKind, NodeRange};

const MIB: u64 = 1 << 20;

/// A machine of one processor and so much memory.
fn machine(mib: u64) -> (GuestMmap, Platform) {
    let ram = Ram::new(&RamConfig::new(mib * MIB)).unwrap();
    let memory = |base, len| NodeRange::Memory { base, len };
    let ranges = vec![memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, 0x2_0000)];
    let gic = Node::new("gic", NodeKind::GicV3, ranges, Vec::new());
    let ranges = ram.slots().map(|slot| RamRange::new(slot.guest_addr, slot.size)).collect();
    (GuestMmap::clone(&ram.map()), Platform::new(vec![0], ranges, vec![gic]))
}

fn bytes(mem: &GuestMmap, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

fn refused(mib: u64, spec: &BootSpec) -> String {
    let (mem, platform) = machine(mib);
    let error = prepare(&mem, &platform, spec).unwrap_err();
    // Nothing is written before everything has been checked.
    assert!(bytes(&mem, 0, (mib * MIB) as usize).iter().all(|byte| *byte == 0));
    crate::testing::chain(&error)
}

#[test]
fn the_kernel_finds_the_tree_from_x0_and_its_disk_from_the_tree() {
    let (mem, platform) = machine(32);
    let (kernel, initrd) = (image(0, 0x30_0000), vec![7; 5000]);
    let mut spec = BootSpec::new(&kernel[..], "console=ttyAMA0");
    spec.initrd = Some(initrd.as_slice().into());
    spec.seed = Some(&[0x5a; 64]);
    let booted = prepare(&mem, &platform, &spec).unwrap();
    assert_eq!(booted.cpu, CpuState { x0: 0x1_0000, pc: 0x20_0000, pstate: 0x3c5 });
    assert_eq!(booted.kernel, 0x20_0000..0x50_0000);
    assert_eq!(booted.initrd, Some(0x1ff_0000..0x1ff_0000 + 5000));
    assert_eq!(bytes(&mem, 0x20_0000, kernel.len()), kernel);
    assert_eq!(bytes(&mem, 0x1ff_0000, 5000), initrd);
    assert_eq!(bytes(&mem, 0x1_0000, 4), 0xd00d_feed_u32.to_be_bytes());
    let tree = bytes(&mem, booted.fdt.start, (booted.fdt.end - booted.fdt.start) as usize);
    let has = |part: &[u8]| tree.windows(part.len()).any(|window| window == part);
    assert!(has(b"console=ttyAMA0\0") && has(&[0x5a; 56]) && has(&0x1ff_1388_u64.to_be_bytes()));
    assert_eq!(booted.loaded, Loaded { mapped: 0, copied: booted.loaded.copied });
}

#[test]
fn acpi_tables_are_found_from_the_tree_by_the_system_table() {
    let (mem, platform) = machine(32);
    let (kernel, initrd) = (image(0, 0x30_0000), vec![7; 5000]);
    let mut spec = BootSpec::new(&kernel[..], "console=ttyAMA0");
    spec.initrd = Some(initrd.as_slice().into());
    spec.seed = Some(&[0x5a; 64]);
    spec.tables = Tables::Acpi;
    let booted = prepare(&mem, &platform, &spec).unwrap();
    assert_eq!((booted.cpu.x0, booted.fdt.start), (0x1_0000, 0x1_0000));
    let tree = bytes(&mem, booted.fdt.start, (booted.fdt.end - booted.fdt.start) as usize);
    let has = |part: &[u8]| tree.windows(part.len()).any(|window| window == part);
    for part in
        ["linux,uefi-system-table", "linux,uefi-mmap-desc-ver", "linux,initrd-start", "console=ttyAMA0"]
    {
        assert!(has(part.as_bytes()), "{part}");
    }
    assert!(has(&[0x5a; 56]) && has(&0x2_0000_u64.to_be_bytes()) && !has(b"memory@0"));
    assert_eq!(bytes(&mem, 0x2_0000, 8), *b"IBI SYST");
    let acpi = booted.acpi.unwrap();
    assert_eq!((bytes(&mem, acpi.start, 8), acpi.start % 16), (b"RSD PTR ".to_vec(), 0));
    assert!(acpi.end <= 0x20_0000);
    // The first of the configuration tables is the RSDP's.
    assert_eq!(bytes(&mem, 0x2_0000 + 120 + 16, 8), acpi.start.to_le_bytes());
}

#[test]
fn acpi_tables_that_cannot_be_made_are_refused_and_nothing_written() {
    let (mem, mut platform) = machine(8);
    platform.cpus = (0..4096).collect();
    let cache = Cache::new(4096);
    platform.caches = Some(Caches::new(cache, cache).own(cache).own(cache).shared(cache));
    let kernel = image(0, 0x1000);
    let mut spec = BootSpec::new(&kernel[..], "");
    spec.tables = Tables::Acpi;
    prepare(&mem, &platform, &spec).unwrap();
    let (mem, mut platform) = machine(8);
    platform.nodes.clear();
    let error = prepare(&mem, &platform, &spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the platform has 0 interrupt controllers; ACPI tables of aarch64 need one"
    );
    assert!(bytes(&mem, 0, 8 << 20).iter().all(|byte| *byte == 0));
}

#[test]
fn without_an_initrd_there_is_none() {
    let (mem, platform) = machine(32);
    let booted = prepare(&mem, &platform, &BootSpec::new(&image(0, 0x1000)[..], "")).unwrap();
    assert_eq!(booted.initrd, None);
}

#[test]
fn the_initrd_lies_below_the_gap_and_in_the_kernels_window() {
    let initrd = vec![7; 5000];
    let source = ImageSource::from(&initrd[..]);
    let place = |base: u64, len: u64| place_initrd(source, RamRange::new(base, len), base + 0x40_0000);
    assert_eq!(place(0, 0xc000_0000).unwrap().1.guest_addr, 0xbfff_0000);
    // 64 GiB in one piece, from the middle of a GiB on: the window begins at that GiB.
    assert_eq!(place(0x6000_0000, 64 << 30).unwrap().1.guest_addr, 0x8_3fff_0000);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let kernel = image(0, 0x30_0000);
    let said = refused(4, &BootSpec::new(&kernel[..], ""));
    assert_eq!(said, "the kernel needs memory from 0x200000 to 0x500000; RAM there ends at 0x400000");
    let said = refused(4, &BootSpec::new(&image(u64::MAX - 3, 0x1000)[..], ""));
    assert!(said.starts_with("the kernel needs memory from 0x200000 to 0xffffffffffffffff"), "{said}");
    let large = vec![0; 0x30_1000];
    let mut spec = BootSpec::new(&kernel[..], "");
    spec.initrd = Some(large.as_slice().into());
    let said = refused(8, &spec);
    assert!(said.contains("0x301000") || said.contains("3149824"), "{said}");
    spec.initrd = Some((&[][..]).into());
    assert_eq!(refused(8, &spec), "the initial RAM disk is empty");
}

#[test]
fn a_command_line_is_printable_and_as_long_as_the_kernel_takes() {
    let kernel = image(0, 0x1000);
    let longest = "x".repeat(2047);
    let (mem, platform) = machine(8);
    prepare(&mem, &platform, &BootSpec::new(&kernel[..], &longest)).unwrap();
    let said = refused(8, &BootSpec::new(&kernel[..], &"x".repeat(2048)));
    assert_eq!(said, "the command line has 2048 bytes; this kernel takes at most 2047");
    let said = refused(8, &BootSpec::new(&kernel[..], "a\nb"));
    assert!(said.contains("byte 0x0a at position 1"), "{said}");
}

#[test]
fn a_machine_without_memory_or_without_room_for_its_tree_is_refused() {
    let kernel = image(0, 0x1000);
    let (mem, mut platform) = machine(8);
    platform.cpus = (0..30_000).collect();
    let error = prepare(&mem, &platform, &BootSpec::new(&kernel[..], "")).unwrap_err();
    assert!(error.to_string().starts_with("the device tree takes "), "{error}");
    platform.ram.clear();
    let error = prepare(&mem, &platform, &BootSpec::new(&kernel[..], "")).unwrap_err();
    assert_eq!(error.to_string(), "the platform has no RAM");
}

#[test]
fn a_mapped_image_is_not_copied() {
    use std::io::Write;
    let (mem, platform) = machine(32);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image(0, 0x30_0000)).unwrap();
    let spec = BootSpec { kernel: ImageSource::Mapped(&file), ..BootSpec::new(&file, "") };
    let booted = prepare(&mem, &platform, &spec).unwrap();
    assert_eq!(booted.loaded, Loaded { mapped: 0x1000, copied: 0 });
    assert_eq!(bytes(&mem, 0x20_0fff, 1), [0xa5]);
}
