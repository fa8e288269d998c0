//! Which addresses, ports and interrupt lines a machine has for its devices.

use std::ops::RangeInclusive;

use ossature_memory::layout::Space;

/// Where devices are put.
const MMIO: RangeInclusive<u64> = 0xd000_0000..=0xdfff_ffff;
/// Where those may be that ask for just that: outside RAM, the I/O APIC, the local APICs, and the pages that KVM
/// keeps for itself.
const MMIO_FIXED: [RangeInclusive<u64>; 3] =
    [0xc000_0000..=0xfebf_ffff, 0xfec0_1000..=0xfedf_ffff, 0xfee0_1000..=0xfffb_bfff];
/// Above the ports of old, below those that PCI firmware hands out.
const PIO: RangeInclusive<u64> = 0xc000..=0xcfff;
const PIO_FIXED: [RangeInclusive<u64>; 1] = [0..=0xffff];
/// Pins of the I/O APIC without a convention: not the timer's (0, 2), the keyboard's (1), the serial ports' (3, 4),
/// the clock's (8) or the FPU's (13).
const LINES: [RangeInclusive<u64>; 3] = [5..=7, 9..=12, 14..=23];
const LINES_FIXED: [RangeInclusive<u64>; 1] = [0..=23];

/// Guest-physical addresses.
pub(crate) fn memory_space() -> Space {
    Space::new([MMIO]).with_fixed_only(MMIO_FIXED)
}

/// I/O ports.
pub(crate) fn port_space() -> Space {
    Space::new([PIO]).with_fixed_only(PIO_FIXED)
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
