//! A platform such as `microvm` has, a kernel image, and what others make of them.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use ossature::boot::x86_64::{self, BootSpec, acpi};
use ossature::boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, RamRange, Trigger};
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::GuestAddress;
use ossature::vmm::Registers;
use ossature::vmm::machine::Payload;
use ossature_rust_vmm::linux_loader::FromKernelLoader;
use ossature_rust_vmm::linux_loader::loader::Elf;

/// What is done before a guest starts: each with its name.
pub fn paths() -> Vec<super::Path> {
    let (tables, map, image) = (platform(), platform(), kernel(4096));
    let (mut ours, mut theirs) = (Loading::new(), Loading::new());
    vec![
        (
            "boot: ACPI tables",
            Box::new(move || drop(acpi::tables(black_box(&tables), 0xe_0000, 0x2_0000).unwrap())),
        ),
        (
            "boot: memory map",
            Box::new(move || drop(x86_64::memory_map::memory_map(black_box(&map)).unwrap())),
        ),
        (
            "boot: kernel parsed",
            Box::new(move || {
                x86_64::Kernel::open(black_box(image.as_slice()).into(), Default::default()).unwrap();
            }),
        ),
        ("boot: kernel loaded", Box::new(move || _ = black_box(ours.ours()))),
        ("adapter: kernel loaded by linux-loader", Box::new(move || _ = black_box(theirs.theirs()))),
    ]
}

/// Two processors, 512 MiB, the legacy devices and three virtio ones.
pub fn platform() -> Platform {
    let node = |id: &str, kind, ranges, gsi| {
        Node::new(id, kind, ranges, vec![NodeInterrupt::new(gsi, Trigger::Edge)])
    };
    let io = |base, len| vec![NodeRange::Io { base, len }];
    let mut nodes = vec![
        node("rtc", NodeKind::Rtc, io(0x70, 2), 8),
        node("power", NodeKind::AcpiPower, io(0x600, 3), 9),
        node("com1", NodeKind::Serial16550, io(0x3f8, 8), 4),
    ];
    for n in 0..3 {
        let range = NodeRange::Memory { base: 0xd000_0000 + 0x1000 * u64::from(n), len: 0x1000 };
        nodes.push(node(&format!("virtio{n}"), NodeKind::VirtioMmio, vec![range], 5 + n));
    }
    Platform::new(vec![0, 1], vec![RamRange::new(0, 512 << 20)], nodes)
}

/// An ELF kernel with one page-aligned segment of `len` bytes for 16 MiB.
pub fn kernel(len: usize) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    image.extend(1u32.to_le_bytes());
    image.extend([0x100_0000u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(0u32.to_le_bytes());
    image.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    image.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    let len64 = len as u64;
    let header = [0x1000u64, 0x100_0000, 0x100_0000, len64, len64, 0x1000];
    image.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    image.resize(0x1000 + len, 0x90);
    image
}

/// A kernel of 4 KiB, loaded by either side.
pub struct Loading {
    kernel: File,
    theirs: FromKernelLoader<Elf>,
    memory: GuestMmap,
    platform: Platform,
}

impl Loading {
    pub fn new() -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&kernel(4096)).unwrap();
        let theirs = FromKernelLoader::new(file.try_clone().unwrap());
        let memory = GuestMmap::from_ranges(&[(GuestAddress(0), 512 << 20)]).unwrap();
        Self { kernel: file, theirs, memory, platform: platform() }
    }

    pub fn ours(&mut self) -> Registers {
        let spec = BootSpec::new(&self.kernel, "");
        x86_64::prepare(&self.memory, &self.platform, &spec).unwrap().cpu.into()
    }

    pub fn theirs(&mut self) -> Registers {
        self.theirs.load(&self.memory, &self.platform).unwrap()
    }
}

/// The tables of [`platform`] with the raw acpi_tables.
pub fn raw_tables() -> Vec<u8> {
    const BASE: u64 = 0xe_0000;
    let (oem, table) = (*b"OSSATU", *b"OSSATURE");
    let named = |name: &str, hid: &'static str, resources: Vec<&dyn Aml>| {
        let resources = aml::ResourceTemplate::new(resources);
        let (hid, crs) = (aml::Name::new("_HID".into(), &hid), aml::Name::new("_CRS".into(), &resources));
        let mut bytes = Vec::new();
        aml::Device::new(name.into(), vec![&hid, &crs]).to_aml_bytes(&mut bytes);
        bytes
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, oem, table, 1);
    for (name, hid, port, len, irq) in
        [("RTC0", "PNP0B00", 0x70, 2, 8), ("PWR0", "PNP0C0C", 0x600, 3, 9), ("COM1", "PNP0501", 0x3f8, 8, 4)]
    {
        let irq = aml::Interrupt::new(true, true, false, false, irq);
        dsdt.append_slice(&named(name, hid, vec![&aml::IO::new(port, port, 1, len), &irq]));
    }
    for (n, name) in (0..).zip(["V000", "V001", "V002"]) {
        let irq = aml::Interrupt::new(true, true, false, false, 5 + n);
        let memory = aml::Memory32Fixed::new(true, 0xd000_0000 + 0x1000 * n, 0x1000);
        dsdt.append_slice(&named(name, "LNRO0005", vec![&memory, &irq]));
    }
    let mut out = vec![0; Rsdp::len()];
    let mut add = |bytes: &[u8]| {
        let at = BASE + out.len() as u64;
        out.extend_from_slice(bytes);
        at
    };
    let dsdt = add(dsdt.as_slice());
    let mut fadt = Vec::new();
    let builder = FADTBuilder::new(oem, table, 1).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    builder.finalize().to_aml_bytes(&mut fadt);
    let fadt = add(&fadt);
    let mut madt = Sdt::new(*b"APIC", 36, 5, oem, table, 1);
    madt.append(0xfee0_0000u32);
    madt.append(0u32);
    let mut entries = Vec::new();
    for id in [0, 1] {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    }
    IoApic::new(0, 0xfec0_0000, 0).to_aml_bytes(&mut entries);
    madt.append_slice(&entries);
    let madt = add(madt.as_slice());
    let mut xsdt = Sdt::new(*b"XSDT", 36, 1, oem, table, 1);
    xsdt.append(fadt);
    xsdt.append(madt);
    let xsdt = add(xsdt.as_slice());
    let mut rsdp = Vec::new();
    Rsdp::new(oem, xsdt).to_aml_bytes(&mut rsdp);
    out[..rsdp.len()].copy_from_slice(&rsdp);
    out
}

/// The memory map of 512 MiB in linux-loader's zero page.
pub fn e820() -> boot_params {
    let mut zero_page = boot_params::default();
    let entries = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, (512 << 20) - 0x10_0000, 1)];
    for (place, (addr, size, kind)) in zero_page.e820_table.iter_mut().zip(entries) {
        *place = boot_e820_entry { addr, size, r#type: kind };
    }
    zero_page.e820_entries = entries.len() as u8;
    zero_page
}
