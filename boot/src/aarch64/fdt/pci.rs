//! A PCI root bus in the device tree (`pci-host-ecam-generic`; IEEE Std 1275-1994, PCI bus binding): its configuration
//! space, its windows, and whom its messages come from.

use vm_fdt::FdtWriter;

use super::{FdtError, OfPci, bad, memory, name, numa_node};
use crate::platform::Node;

/// Bits of the first cell of an address: which space, and prefetchable.
const MEMORY_32: u32 = 0x0200_0000;
const MEMORY_64: u32 = 0x0300_0000;
const PREFETCHABLE: u32 = 0x4000_0000;
/// Bytes of configuration space of a bus, and functions on it.
const ECAM_OF_BUS: u64 = 1 << 20;
const FUNCTIONS: u32 = 256;
/// What of a window above 4 GiB is for functions that are not prefetchable, at most: Linux warns of 4 GiB.
const NOT_PREFETCHABLE: u64 = 1 << 31;

/// Describes a root bus of this NUMA node, whose messages go to the ITS of the handle `its`.
pub(super) fn host(tree: &mut FdtWriter, node: &Node, (its, numa): OfPci) -> Result<(), FdtError> {
    let (base, len) = memory(node, 0)?;
    let buses = match u32::try_from(len / ECAM_OF_BUS) {
        Ok(buses @ 1..=256) if len.is_multiple_of(ECAM_OF_BUS) => buses,
        _ => return Err(bad(node, "1 MiB of configuration space for each bus")),
    };
    if node.windows.is_empty() {
        return Err(bad(node, "a window"));
    }
    if !node.has_windows_with_lengths() {
        return Err(bad(node, "windows that are not empty and not all of memory"));
    }
    let written = tree.begin_node(&name("pcie", base))?;
    tree.property_string("compatible", "pci-host-ecam-generic")?;
    tree.property_string("device_type", "pci")?;
    tree.property_u32("#address-cells", 3)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_array_u64("reg", &[base, len])?;
    tree.property_array_u32("bus-range", &[0, buses - 1])?;
    tree.property_u32("linux,pci-domain", 0)?;
    numa_node(tree, numa)?;
    tree.property_array_u32("ranges", &ranges(node))?;
    tree.property_null("dma-coherent")?;
    if let Some(its) = its {
        tree.property_array_u32("msi-map", &[0, its, 0, buses * FUNCTIONS])?;
    }
    Ok(tree.end_node(written)?)
}

/// The windows: addresses on the bus are those of the machine.
fn ranges(node: &Node) -> Vec<u32> {
    let mut cells = Vec::new();
    let mut add = |space, base: u64, len: u64| {
        let halves = |value: u64| [(value >> 32) as u32, value as u32];
        cells.push(space);
        [base, base, len].into_iter().for_each(|value| cells.extend(halves(value)));
    };
    for window in &node.windows {
        let (base, len) = (*window.start(), window.end() - window.start() + 1);
        let plain = len.min(NOT_PREFETCHABLE);
        add(if u32::try_from(*window.end()).is_ok() { MEMORY_32 } else { MEMORY_64 }, base, plain);
        if len > plain {
            add(MEMORY_64 | PREFETCHABLE, base + plain, len - plain);
        }
    }
    cells
}
