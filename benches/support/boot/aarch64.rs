//! A platform such as `microvm` has, and a kernel image.

use std::hint::black_box;
use std::io::Write;

use ossature::boot::aarch64::{self, BootSpec, acpi, fdt};
use ossature::boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, RamRange, Trigger};
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::GuestAddress;

/// What is done before a guest starts: each with its name.
pub fn paths() -> Vec<super::Path> {
    let (trees, tables, loaded) = (platform(), platform(), platform());
    let image = kernel(4096);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    let memory = GuestMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    vec![
        (
            "boot: device tree",
            Box::new(move || drop(fdt::blob(black_box(&trees), &fdt::Chosen::default()).unwrap())),
        ),
        (
            "boot: ACPI tables",
            Box::new(move || drop(acpi::tables(black_box(&tables), 0x2_0000, 0x2_0000).unwrap())),
        ),
        (
            "boot: kernel parsed",
            Box::new(move || drop(aarch64::Kernel::open(black_box(image.as_slice()).into()).unwrap())),
        ),
        (
            "boot: kernel loaded",
            Box::new(move || {
                aarch64::prepare(&memory, &loaded, &BootSpec::new(&file, "")).unwrap();
            }),
        ),
    ]
}

const RAM: u64 = 512 << 20;

/// Two processors, 512 MiB, a serial port, a power button and three virtio devices.
fn platform() -> Platform {
    let memory = |base, len| vec![NodeRange::Memory { base, len }];
    let node = |id: &str, kind, ranges, gsi| {
        Node::new(id, kind, ranges, vec![NodeInterrupt::new(gsi, Trigger::Edge)])
    };
    let gic = [memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, 0x4_0000)].concat();
    let mut nodes = vec![
        Node::new("gic", NodeKind::GicV3, gic, Vec::new()),
        node("serial", NodeKind::Pl011, memory(0xd000_0000, 0x1000), 0),
        node("power", NodeKind::PowerButton, Vec::new(), 1),
    ];
    for n in 1..4 {
        let range = memory(0xd000_0000 + 0x1000 * u64::from(n), 0x1000);
        nodes.push(node(&format!("virtio{n}"), NodeKind::VirtioMmio, range, 1 + n));
    }
    Platform::new(vec![0, 1], vec![RamRange::new(0, RAM)], nodes)
}

/// An Image of `len` bytes.
fn kernel(len: usize) -> Vec<u8> {
    let mut image = vec![0; len];
    image[16..24].copy_from_slice(&(len as u64).to_le_bytes());
    image[24] = 0b1010;
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image
}
