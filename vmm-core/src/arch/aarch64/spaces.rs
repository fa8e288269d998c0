//! Which addresses and interrupt lines a machine has for its devices. There are no ports.

use std::ops::RangeInclusive;

use ossature_memory::layout::Space;

use super::irq::WIRED_LINES;

/// Where devices are: below the RAM, above the interrupt controllers.
const MMIO: RangeInclusive<u64> = 0x6000_0000..=0x7fff_ffff;
/// Where devices get addresses to hand on, below 4 GiB.
const WINDOWS: RangeInclusive<u64> = 0x4000_0000..=0x5fff_ffff;
/// The same above 4 GiB, as far as RAM does not reach, at first.
const HIGH_WINDOWS: u64 = 1 << 38;
/// The interrupt controllers.
const RESERVED: RangeInclusive<u64> = 0x3000_0000..=0x3fff_ffff;

/// Guest-physical addresses.
pub(crate) fn memory_space() -> Space {
    Space::new([MMIO])
}

/// Guest-physical addresses below 4 GiB that devices hand on.
pub(crate) fn window_space() -> Space {
    Space::new([WINDOWS]).with_fixed_only([MMIO])
}

/// The same above RAM, which ends before `ram_end`.
pub(crate) fn high_window_space(ram_end: u64) -> Space {
    let first = ram_end.max(HIGH_WINDOWS).checked_next_multiple_of(HIGH_WINDOWS).unwrap_or(u64::MAX);
    Space::new([first..=first.saturating_add(HIGH_WINDOWS - 1)])
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
