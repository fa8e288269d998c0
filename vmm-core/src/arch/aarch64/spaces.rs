//! Which addresses and interrupt lines a machine has for its devices. There are no ports.

use std::ops::RangeInclusive;

use ossature_memory::layout::Space;

use super::irq::WIRED_LINES;

/// Where devices are: below the RAM, above the interrupt controllers.
const MMIO: RangeInclusive<u64> = 0x4000_0000..=0x7fff_ffff;
/// The interrupt controllers.
const RESERVED: RangeInclusive<u64> = 0x3000_0000..=0x3fff_ffff;

/// Guest-physical addresses.
pub(crate) fn memory_space() -> Space {
    Space::new([MMIO])
}

/// I/O ports: none.
pub(crate) fn port_space() -> Space {
    Space::new([])
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
