//! Which addresses and interrupt lines a machine has for its devices. There are no ports. RAM and its gap are where x86_64
//! has them: what depends on neither is the same on both.

use std::ops::RangeInclusive;

use ossature_boot::{Node, NodeKind, NodeRange, Numa};
use ossature_memory::layout::Space;

use super::irq::WIRED_LINES;

/// No instruction reaches I/O ports.
pub(crate) const HAS_PORTS: bool = false;
/// Where devices are put.
const MMIO: RangeInclusive<u64> = 0xd000_0000..=0xdfff_ffff;
/// Where those may be that ask for just that: outside RAM and the interrupt controllers.
const MMIO_FIXED: RangeInclusive<u64> = 0xc000_0000..=0xefff_ffff;
/// Where devices get addresses to hand on, below 4 GiB.
const WINDOWS: RangeInclusive<u64> = 0xe000_0000..=0xefff_ffff;
/// The same above 4 GiB, as far as RAM does not reach, at first.
const HIGH_WINDOWS: u64 = 1 << 38;
/// The interrupt controllers: the distributor, the CPU interface, the ITS, and from [`REDISTRIBUTORS`] on one for each vCPU.
const RESERVED: RangeInclusive<u64> = 0xf000_0000..=0xffff_ffff;

/// The GIC's distributor, and its size.
pub(super) const DISTRIBUTOR: (u64, u64) = (0xf000_0000, 0x1_0000);
/// That of a GICv2 is smaller.
const DISTRIBUTOR_V2: (u64, u64) = (DISTRIBUTOR.0, 0x1000);
/// The interface of processors with a GICv2, and its size: on a page of its own, whatever pages the host has.
pub(super) const CPU_INTERFACE: (u64, u64) = (0xf001_0000, 0x2000);
/// The ITS, and its size: its registers, and the page that messages are written to.
pub(super) const ITS: (u64, u64) = (0xf002_0000, 0x2_0000);
/// The first redistributor, and the size of each. There is room for 1,920.
pub(super) const REDISTRIBUTORS: (u64, u64) = (0xf100_0000, 0x2_0000);

/// Guest-physical addresses.
pub(crate) fn memory_space() -> Space {
    Space::new([MMIO]).with_fixed_only([MMIO_FIXED])
}

/// Guest-physical addresses below 4 GiB that devices hand on.
pub(crate) fn window_space() -> Space {
    Space::new([WINDOWS]).with_fixed_only([MMIO_FIXED])
}

/// The same above RAM, which ends before `ram_end`, for guests that have so many bits of addresses. All that they have
/// above RAM is for windows where they cannot be where they are on other hosts.
pub(crate) fn high_window_space(ram_end: u64, address_bits: u32) -> Space {
    let last = u64::MAX.checked_shr(u64::BITS.saturating_sub(address_bits)).unwrap_or(0);
    let first = ram_end.max(HIGH_WINDOWS).checked_next_multiple_of(HIGH_WINDOWS).unwrap_or(u64::MAX);
    match first.saturating_add(HIGH_WINDOWS - 1) {
        end if end <= last => Space::new([first..=end]),
        _ => Space::new([ram_end.max(1 << 32)..=last]),
    }
}

/// Interrupt lines.
pub(crate) fn line_space() -> Space {
    Space::new([0..=u64::from(WIRED_LINES) - 1])
}

/// The interrupt lines that are handed out.
pub(crate) fn lines() -> impl Iterator<Item = u64> {
    0..u64::from(WIRED_LINES)
}

/// Returns true if one of the addresses is the platform's own.
pub(crate) fn is_reserved(addresses: &RangeInclusive<u64>) -> bool {
    RESERVED.start() <= addresses.end() && addresses.start() <= RESERVED.end()
}

/// The id by which the interrupt controllers know a vCPU of this number: its affinity (MPIDR), as KVM makes it. A controller
/// addresses 16 processors of a cluster at once.
pub(crate) fn cpu_id(number: u32) -> u32 {
    (number & 0xf) | (number >> 4 & 0xff) << 8 | (number >> 12 & 0xff) << 16
}

/// There are no gaps.
pub(crate) const NUMBERS_WITH_GAPS: u32 = u32::MAX;

/// The number by which KVM knows vCPU `index`: the same.
pub(crate) fn vcpu_id(index: u32, _: u32, _: Option<&Numa>) -> u32 {
    index
}

/// What guests are told of beside the devices: the interrupt controllers, which are a GICv2 if they have no messages, and
/// performance monitors if there are any.
pub(crate) fn platform_nodes(cpus: u32, performance_monitors: bool, messages: bool) -> Vec<Node> {
    let range = |(base, len)| NodeRange::Memory { base, len };
    let node = |id, kind, ranges: &[(u64, u64)]| {
        Node::new(id, kind, ranges.iter().copied().map(range).collect(), Vec::new())
    };
    let mut nodes = if messages {
        let redistributors = (REDISTRIBUTORS.0, REDISTRIBUTORS.1 * u64::from(cpus));
        vec![
            node("gic", NodeKind::GicV3, &[DISTRIBUTOR, redistributors]),
            node("its", NodeKind::GicV3Its, &[ITS]),
        ]
    } else {
        vec![node("gic", NodeKind::GicV2, &[DISTRIBUTOR_V2, CPU_INTERFACE])]
    };
    if performance_monitors {
        nodes.push(Node::new("pmu", NodeKind::PmuV3, Vec::new(), Vec::new()));
    }
    nodes
}

#[cfg(test)]
mod tests;
