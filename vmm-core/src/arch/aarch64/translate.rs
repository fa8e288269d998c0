//! The guest's own translation of addresses (stage 1 of EL1 and EL0), which KVM does not do for others here.

/// What says where the tables are and how they look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    /// TCR_EL1.
    pub(super) tcr: u64,
    /// TTBR0_EL1, for addresses that begin with zeros, and TTBR1_EL1, for those that begin with ones.
    pub(super) ttbr: [u64; 2],
}

/// Bits of an entry, which has 64.
const ENTRY_BITS: u32 = 3;
/// The level whose entries are pages.
const LAST_LEVEL: u32 = 3;
/// Addresses have 48 bits here; guests with 52 (LPA and LPA2) are not followed.
const ADDRESS: u64 = (1 << 48) - 1;

impl Tables {
    /// The guest-physical address of `address`, with `entry` giving the table entry at a guest-physical address. `None` if
    /// it is not mapped.
    pub(super) fn translate(&self, address: u64, entry: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let high = address >> 55 & 1;
        let (size_at, granule_at) = if high == 0 { (0, 14) } else { (16, 30) };
        let granule = match (high, self.tcr >> granule_at & 3) {
            (0, 0) | (1, 2) => 12,
            (0, 2) | (1, 1) => 14,
            (0, 1) | (1, 3) => 16,
            _ => return None,
        };
        let bits = 64 - (self.tcr >> size_at & 0x3f) as u32;
        // Bits of the address that one level of tables translates.
        let step = granule - ENTRY_BITS;
        if bits <= granule || bits > 48 {
            return None;
        }
        // The levels that there are, of which the last is 3.
        let levels = (bits - granule).div_ceil(step);
        let mut table = self.ttbr.get(high as usize)? & ADDRESS & !1;
        let address = address & ((1 << bits) - 1);
        for level in LAST_LEVEL + 1 - levels..=LAST_LEVEL {
            let below = granule + step * (LAST_LEVEL - level);
            let index = address >> below & ((1 << step) - 1);
            let found = entry(table + index * 8)?;
            let points_to = found & ADDRESS & !((1 << granule) - 1);
            match (found & 3, level) {
                (3, LAST_LEVEL) => return Some(points_to | address & ((1 << granule) - 1)),
                (3, _) => table = points_to,
                // A block: as large as what its level translates. There are none at level 0.
                (1, 1 | 2) => return Some(points_to & !((1 << below) - 1) | address & ((1 << below) - 1)),
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
