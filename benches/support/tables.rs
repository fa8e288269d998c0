//! A platform such as `microvm` has, and a kernel image.

use ossature::boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, RamRange, Trigger};

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
