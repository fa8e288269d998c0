//! Which addresses and interrupt lines a machine has for its devices.

use std::ops::RangeInclusive;

use ossature_boot::Node;
use ossature_memory::layout::Space;

/// Where devices are put.
const MMIO: RangeInclusive<u64> = 0xd000_0000..=0xdfff_ffff;
/// Where those may be that ask for just that: outside RAM, the I/O APIC, the local APICs, and the pages that KVM
/// keeps for itself.
const MMIO_FIXED: [RangeInclusive<u64>; 3] =
    [0xc000_0000..=0xfebf_ffff, 0xfec0_1000..=0xfedf_ffff, 0xfee0_1000..=0xfffb_bfff];
/// Where devices get addresses to hand on, below 4 GiB.
const WINDOWS: RangeInclusive<u64> = 0xe000_0000..=0xefff_ffff;
/// The same above 4 GiB, as far as RAM does not reach: what processors address that have 39 bits for it, at first.
const HIGH_WINDOWS: u64 = 1 << 38;
/// Instructions reach I/O ports.
pub(crate) const HAS_PORTS: bool = true;
/// Pins of the I/O APIC without a convention: not the timer's (0, 2), the keyboard's (1), the serial ports' (3, 4),
/// the clock's (8) or the FPU's (13).
const LINES: [RangeInclusive<u64>; 3] = [5..=7, 9..=12, 14..=23];
const LINES_FIXED: [RangeInclusive<u64>; 1] = [0..=23];

/// Guest-physical addresses.
pub(crate) fn memory_space() -> Space {
    Space::new([MMIO]).with_fixed_only(MMIO_FIXED)
}

/// Guest-physical addresses below 4 GiB that devices hand on.
pub(crate) fn window_space() -> Space {
    Space::new([WINDOWS]).with_fixed_only([MMIO]).with_fixed_only(MMIO_FIXED)
}

/// The same above RAM, which ends before `ram_end`.
pub(crate) fn high_window_space(ram_end: u64, _: u32) -> Space {
    let first = ram_end.max(HIGH_WINDOWS).checked_next_multiple_of(HIGH_WINDOWS).unwrap_or(u64::MAX);
    Space::new([first..=first.saturating_add(HIGH_WINDOWS - 1)])
}

/// Interrupt lines.
pub(crate) fn line_space() -> Space {
    Space::new(LINES).with_fixed_only(LINES_FIXED)
}

/// The interrupt lines that are handed out.
pub(crate) fn lines() -> impl Iterator<Item = u64> {
    LINES.into_iter().flatten()
}

/// Guest-physical addresses where no device may move to: the I/O APIC, the local APICs, and what KVM keeps for itself.
const RESERVED: [RangeInclusive<u64>; 3] =
    [0xfec0_0000..=0xfec0_0fff, 0xfee0_0000..=0xfee0_0fff, 0xfffb_c000..=0xffff_ffff];

/// Returns true if one of the addresses is the platform's own.
pub(crate) fn is_reserved(addresses: &RangeInclusive<u64>) -> bool {
    RESERVED.iter().any(|reserved| reserved.start() <= addresses.end() && addresses.start() <= reserved.end())
}

/// The id by which the interrupt controllers know a vCPU of this number: the same.
pub(crate) fn cpu_id(number: u32) -> u32 {
    number
}

/// What guests are told of beside the devices: the rest is a convention.
pub(crate) fn platform_nodes(_: u32, _: bool, _: bool) -> Vec<Node> {
    Vec::new()
}
