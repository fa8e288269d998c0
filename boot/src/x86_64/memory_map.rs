//! The memory map that the guest is given (e820).

use super::error::BootError;
use super::layout;
use crate::platform::{Node, NodeKind, NodeRange, Platform};

/// What a range of the memory map is; the numbers are those of e820 and of PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MemoryKind {
    /// Free to use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// The most entries that the zero page and our PVH block both hold.
pub const MAX_ENTRIES: usize = 80;

/// The memory map of a machine: all RAM except the last part of the first MiB, which is reserved for what PCs have there
/// and holds the ACPI tables; and the configuration space of PCI and the VM generation ID, which are reserved.
///
/// # Errors
/// RAM has to begin at 0, reach beyond the first MiB, ascend without overlap, and have few enough ranges.
pub fn memory_map(platform: &Platform) -> Result<Vec<MemoryMapEntry>, BootError> {
    let ram = &platform.ram;
    let Some((first, rest)) = ram.split_first() else { return Err(BootError::NoLowRam { len: 0 }) };
    if first.base != 0 || first.len <= layout::HIGH_RAM {
        return Err(BootError::NoLowRam { len: if first.base == 0 { first.len } else { 0 } });
    }
    let is_reserved = |node: &&Node| matches!(node.kind, NodeKind::PciHost | NodeKind::VmGenId);
    let reserved = platform.nodes.iter().filter(is_reserved);
    let reserved: Vec<_> = reserved.filter_map(|node| node.ranges.first()).collect();
    let limit = (MAX_ENTRIES - 3).saturating_sub(reserved.len());
    if rest.len() > limit {
        return Err(BootError::TooManyRamRanges { count: ram.len(), limit: limit + 1 });
    }
    let entry = |base, end, kind| MemoryMapEntry { base, len: end - base, kind };
    let mut map = Vec::with_capacity(3 + rest.len());
    map.push(entry(0, layout::LOW_RAM_END, MemoryKind::Ram));
    map.push(entry(layout::LOW_RAM_END, layout::HIGH_RAM, MemoryKind::Reserved));
    map.push(entry(layout::HIGH_RAM, first.len, MemoryKind::Ram));
    let mut last = first.len;
    for range in rest {
        let end = range.base.checked_add(range.len);
        let Some(end) = end.filter(|&end| range.base >= last && end > range.base) else {
            return Err(BootError::BadRamRange { base: range.base, len: range.len });
        };
        map.push(entry(range.base, end, MemoryKind::Ram));
        last = end;
    }
    for range in reserved {
        if let NodeRange::Memory { base, len } = *range {
            map.push(MemoryMapEntry { base, len, kind: MemoryKind::Reserved });
        }
    }
    map.sort_by_key(|entry| entry.base);
    Ok(map)
}

#[cfg(test)]
mod tests;
