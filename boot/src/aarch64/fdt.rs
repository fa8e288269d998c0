//! The flattened device tree: the machine as its guest is told about it (Devicetree Specification 0.4, and the kernel's
//! bindings of each device).

mod cpus;
mod pci;

use std::fmt::Write;
use std::ops::Range;

use vm_fdt::{FdtWriter, FdtWriterNode};

use super::check::check;
use super::efi::{self, Efi};
use super::{PMU, TIMERS, gic};
use crate::caches::CacheError;
use crate::numa::NumaError;
use crate::platform::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, PlatformError, RamRange, Trigger};

/// Why a platform cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdtError {
    /// A machine without processors.
    #[error("the platform has no processor")]
    NoCpu,
    /// More processors than the interrupt controller has interfaces for.
    #[error("the platform has {found} processors, and a GICv2 has interfaces for {limit}")]
    TooManyCpus {
        /// How many it has.
        found: usize,
        /// How many are possible.
        limit: usize,
    },
    /// Two processors with one id.
    #[error("the id {id:#x} is given to two processors")]
    DuplicateCpu {
        /// The id.
        id: u32,
    },
    /// Caches that no processor can have.
    #[error(transparent)]
    Caches(#[from] CacheError),
    /// NUMA nodes of another machine.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// A machine that contradicts itself.
    #[error(transparent)]
    Platform(PlatformError),
    /// A machine without exactly one interrupt controller.
    #[error("the platform has {found} interrupt controllers; a device tree needs one")]
    InterruptController {
        /// How many it has.
        found: usize,
    },
    /// A machine with several devices of a kind of which there can be one.
    #[error("the platform has {found} devices of kind {kind:?}; a device tree has one at most")]
    Several {
        /// Their kind.
        kind: NodeKind,
        /// How many it has.
        found: usize,
    },
    /// A node of a kind that a device tree cannot describe.
    #[error("device `{id}`: the device tree cannot describe a device of kind {kind:?}")]
    UnknownKind {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
    },
    /// A node that lacks what its kind has, or has more.
    #[error("device `{id}` of kind {kind:?} has to have {needs}")]
    BadNode {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
        /// What is missing.
        needs: &'static str,
    },
    /// The tree does not fit where it has to be.
    #[error("the device tree takes {len} bytes; there is room for {room}")]
    TooLarge {
        /// Its size in bytes.
        len: u64,
        /// Bytes that it may take.
        room: u64,
    },
    /// The tree cannot be written.
    #[error("the device tree cannot be written: {reason}")]
    Writer {
        /// What the writer says.
        reason: String,
    },
}

impl From<PlatformError> for FdtError {
    fn from(error: PlatformError) -> Self {
        match error {
            PlatformError::BadNode { id, kind, needs } => Self::BadNode { id, kind, needs },
            error => Self::Platform(error),
        }
    }
}

impl From<vm_fdt::Error> for FdtError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer { reason: error.to_string() }
    }
}

/// What the boot loader tells the kernel: the node `/chosen`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The command line.
    pub bootargs: &'a str,
    /// Where the initial RAM disk lies.
    pub initrd: Option<Range<u64>>,
    /// Randomness: the last eight bytes choose the kernel's addresses, the others start its entropy pool.
    pub seed: Option<&'a [u8; 64]>,
}

/// The handles by which nodes refer to others.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
const ITS: u32 = 3;
/// The key's code (Linux, `input-event-codes.h`).
const KEY_POWER: u32 = 116;
/// The rate of the clock that the UART and the real-time clock are said to have; it has no effect.
const CLOCK_HZ: u32 = 24_000_000;

/// Kinds of interrupts, and their triggers, in three cells (`arm,gic-v3`, `arm,gic`).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const RISING: u32 = 1;
const HIGH: u32 = 4;
/// Where the trigger of a private interrupt of a GICv2 has a bit for each processor that has it.
const PROCESSORS_SHIFT: u32 = 8;

/// The device tree of a machine, which follows from its arguments alone. Processors are named by their affinity
/// (MPIDR), the interrupt `n` of a device is the shared peripheral interrupt `n`.
pub fn blob(platform: &Platform, chosen: &Chosen) -> Result<Vec<u8>, FdtError> {
    let gic = gic::only(platform).map_err(|found| FdtError::InterruptController { found })?;
    let private = private_trigger(gic, platform.cpus.len())?;
    let (its, _) = (only(platform, NodeKind::GicV3Its)?, only(platform, NodeKind::PciHost)?);
    for kind in [NodeKind::PowerButton, NodeKind::PmuV3, NodeKind::FwCfg] {
        only(platform, kind)?;
    }
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    cells(&mut tree)?;
    tree.property_string("compatible", "linux,dummy-virt")?;
    tree.property_u32("interrupt-parent", GIC)?;
    tree.property_null("dma-coherent")?;
    write_chosen(&mut tree, platform, chosen)?;
    platform.check_numa()?;
    write_memory(&mut tree, platform)?;
    cpus::write(&mut tree, platform)?;
    let psci = tree.begin_node("psci")?;
    strings(&mut tree, "compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
    tree.property_string("method", "hvc")?;
    tree.end_node(psci)?;
    let timer = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<u32> = TIMERS.iter().flat_map(|&number| [PRIVATE, number, private]).collect();
    tree.property_array_u32("interrupts", &interrupts)?;
    tree.property_null("always-on")?;
    tree.end_node(timer)?;
    let clock = tree.begin_node("apb-pclk")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", CLOCK_HZ)?;
    tree.property_string("clock-output-names", "apb_pclk")?;
    tree.property_phandle(CLOCK)?;
    tree.end_node(clock)?;
    interrupt_controller(&mut tree, gic, its)?;
    let pci = (its.map(|_| ITS), platform.numa.as_ref().map(|_| 0));
    for node in &platform.nodes {
        device(&mut tree, node, (private, pci))?;
    }
    // Those above say what a device lacks.
    check(platform)?;
    tree.end_node(root)?;
    Ok(tree.finish()?)
}

/// The device tree that a kernel's EFI stub hands on if the firmware has none: `chosen`, and where the firmware's tables are.
pub(super) fn stub(chosen: &Chosen, efi: &Efi) -> Result<Vec<u8>, FdtError> {
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    cells(&mut tree)?;
    let node = tree.begin_node("chosen")?;
    start(&mut tree, chosen)?;
    tree.property_u64("linux,uefi-system-table", efi.system_table)?;
    tree.property_u64("linux,uefi-mmap-start", efi.memory_map.start)?;
    tree.property_u32("linux,uefi-mmap-size", (efi.memory_map.end - efi.memory_map.start) as u32)?;
    tree.property_u32("linux,uefi-mmap-desc-size", efi::DESCRIPTOR)?;
    tree.property_u32("linux,uefi-mmap-desc-ver", efi::DESCRIPTOR_VERSION)?;
    // Kernels with the patch that locks them down by secure boot, such as Debian's, take all of this only with that.
    tree.property_u32("linux,uefi-secure-boot", efi::SECURE_BOOT_DISABLED)?;
    tree.end_node(node)?;
    tree.end_node(root)?;
    Ok(tree.finish()?)
}

fn cells(tree: &mut FdtWriter) -> Result<(), FdtError> {
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    Ok(())
}

fn strings(tree: &mut FdtWriter, name: &str, values: &[&str]) -> Result<(), FdtError> {
    Ok(tree.property_string_list(name, values.iter().map(|value| (*value).to_owned()).collect())?)
}

/// RAM, and how far its NUMA nodes are from each other, if there are any.
fn write_memory(tree: &mut FdtWriter, platform: &Platform) -> Result<(), FdtError> {
    let Some(numa) = &platform.numa else {
        return platform.ram.iter().try_for_each(|ram| memory_node(tree, ram, None));
    };
    for (node, ram) in numa.parts(&platform.ram) {
        memory_node(tree, &ram, Some(node))?;
    }
    let map = tree.begin_node("distance-map")?;
    tree.property_string("compatible", "numa-distance-map-v1")?;
    let nodes = 0..numa.nodes().len() as u32;
    let pairs = nodes.clone().flat_map(|one| nodes.clone().map(move |other| (one, other)));
    let matrix: Vec<u32> =
        pairs.flat_map(|(one, other)| [one, other, numa.distance(one, other).into()]).collect();
    tree.property_array_u32("distance-matrix", &matrix)?;
    Ok(tree.end_node(map)?)
}

fn memory_node(tree: &mut FdtWriter, ram: &RamRange, numa: Option<u32>) -> Result<(), FdtError> {
    let node = tree.begin_node(&format!("memory@{:x}", ram.base))?;
    tree.property_string("device_type", "memory")?;
    tree.property_array_u64("reg", &[ram.base, ram.len])?;
    numa_node(tree, numa)?;
    Ok(tree.end_node(node)?)
}

/// The NUMA node of what is described, if there are any.
fn numa_node(tree: &mut FdtWriter, number: Option<u32>) -> Result<(), FdtError> {
    number.map_or(Ok(()), |number| Ok(tree.property_u32("numa-node-id", number)?))
}

fn write_chosen(tree: &mut FdtWriter, platform: &Platform, chosen: &Chosen) -> Result<(), FdtError> {
    let node = tree.begin_node("chosen")?;
    start(tree, chosen)?;
    if let Some(console) = platform.nodes.iter().find(|node| node.kind == NodeKind::Pl011) {
        tree.property_string("stdout-path", &format!("/{}", name("serial", memory(console, 0)?.0)))?;
    }
    Ok(tree.end_node(node)?)
}

/// What the kernel is started with.
fn start(tree: &mut FdtWriter, chosen: &Chosen) -> Result<(), FdtError> {
    tree.property_string("bootargs", chosen.bootargs)?;
    if let Some(initrd) = &chosen.initrd {
        tree.property_u64("linux,initrd-start", initrd.start)?;
        tree.property_u64("linux,initrd-end", initrd.end)?;
    }
    if let Some((pool, addresses)) = chosen.seed.and_then(|seed| seed.split_last_chunk::<8>()) {
        tree.property("rng-seed", pool)?;
        tree.property("kaslr-seed", addresses)?;
    }
    Ok(())
}

/// The trigger of the interrupts that each of so many processors has: a level.
fn private_trigger(gic: &Node, cpus: usize) -> Result<u32, FdtError> {
    match gic.kind {
        NodeKind::GicV2 if cpus > gic::GIC_V2_CPUS => {
            Err(FdtError::TooManyCpus { found: cpus, limit: gic::GIC_V2_CPUS })
        }
        NodeKind::GicV2 => Ok(((1 << cpus) - 1) << PROCESSORS_SHIFT | HIGH),
        _ => Ok(HIGH),
    }
}

fn interrupt_controller(tree: &mut FdtWriter, gic: &Node, its: Option<&Node>) -> Result<(), FdtError> {
    // What follows the distributor: the redistributors, or the interface of processors.
    let (distributor, processors) = (memory(gic, 0)?, memory(gic, 1)?);
    let compatible = match (gic.kind, its) {
        (NodeKind::GicV2, Some(its)) => return Err(bad(its, "a GICv3")),
        (NodeKind::GicV2, None) => "arm,cortex-a15-gic",
        _ => "arm,gic-v3",
    };
    let node = tree.begin_node(&name("interrupt-controller", distributor.0))?;
    tree.property_string("compatible", compatible)?;
    tree.property_u32("#interrupt-cells", 3)?;
    tree.property_null("interrupt-controller")?;
    let reg = [distributor.0, distributor.1, processors.0, processors.1];
    tree.property_array_u64("reg", &reg)?;
    cells(tree)?;
    tree.property_null("ranges")?;
    tree.property_phandle(GIC)?;
    if let Some(its) = its {
        let written = begin(tree, its, "msi-controller", &["arm,gic-v3-its"])?;
        tree.property_null("msi-controller")?;
        tree.property_u32("#msi-cells", 1)?;
        tree.property_phandle(ITS)?;
        tree.end_node(written)?;
    }
    Ok(tree.end_node(node)?)
}

/// The one node of this kind, if there is one.
fn only(platform: &Platform, kind: NodeKind) -> Result<Option<&Node>, FdtError> {
    let mut nodes = platform.nodes.iter().filter(|node| node.kind == kind);
    match (nodes.next(), nodes.count()) {
        (node, 0) => Ok(node),
        (_, others) => Err(FdtError::Several { kind, found: others + 1 }),
    }
}

/// What a root bus of PCI has: an ITS, which gives it message-signalled interrupts, and a NUMA node, the first.
type OfPci = (Option<u32>, Option<u32>);

/// A device. The interrupt controllers are described before: they give private interrupts their trigger.
fn device(tree: &mut FdtWriter, node: &Node, (private, of_pci): (u32, OfPci)) -> Result<(), FdtError> {
    match node.kind {
        NodeKind::Hidden | NodeKind::GicV2 | NodeKind::GicV3 | NodeKind::GicV3Its => Ok(()),
        NodeKind::VirtioMmio => {
            let written = begin(tree, node, "virtio_mmio", &["virtio,mmio"])?;
            tree.property_null("dma-coherent")?;
            interrupts(tree, node, true)?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::Pl011 => {
            let written = begin(tree, node, "serial", &["arm,pl011", "arm,primecell"])?;
            interrupts(tree, node, true)?;
            tree.property_array_u32("clocks", &[CLOCK, CLOCK])?;
            strings(tree, "clock-names", &["uartclk", "apb_pclk"])?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::Pl031 => {
            let written = begin(tree, node, "rtc", &["arm,pl031", "arm,primecell"])?;
            interrupts(tree, node, false)?;
            tree.property_u32("clocks", CLOCK)?;
            tree.property_string("clock-names", "apb_pclk")?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::VmGenId => {
            let written = begin(tree, node, "vmgenid", &["microsoft,vmgenid"])?;
            interrupts(tree, node, true)?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::FwCfg => {
            let [NodeRange::Memory { len: 24, .. }] = *node.ranges else {
                return Err(bad(node, "24 bytes of memory"));
            };
            let written = begin(tree, node, "fw-cfg", &["qemu,fw-cfg-mmio"])?;
            tree.property_null("dma-coherent")?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::PciHost => pci::host(tree, node, of_pci),
        NodeKind::PmuV3 => {
            let written = tree.begin_node("pmu")?;
            tree.property_string("compatible", "arm,armv8-pmuv3")?;
            tree.property_array_u32("interrupts", &[PRIVATE, PMU, private])?;
            Ok(tree.end_node(written)?)
        }
        NodeKind::PowerButton => {
            // A key that is an interrupt, without a GPIO line: pressed and released at once.
            let keys = tree.begin_node("gpio-keys")?;
            tree.property_string("compatible", "gpio-keys")?;
            let key = tree.begin_node("power")?;
            tree.property_string("label", "Power Button")?;
            tree.property_u32("linux,code", KEY_POWER)?;
            tree.property_null("wakeup-source")?;
            interrupts(tree, node, true)?;
            tree.end_node(key)?;
            Ok(tree.end_node(keys)?)
        }
        kind => Err(FdtError::UnknownKind { id: node.id.clone(), kind }),
    }
}

/// Begins the node of a device with one range of memory.
fn begin(
    tree: &mut FdtWriter,
    node: &Node,
    kind: &str,
    compatible: &[&str],
) -> Result<FdtWriterNode, FdtError> {
    let (base, len) = memory(node, 0)?;
    let written = tree.begin_node(&name(kind, base))?;
    strings(tree, "compatible", compatible)?;
    tree.property_array_u64("reg", &[base, len])?;
    Ok(written)
}

fn interrupts(tree: &mut FdtWriter, node: &Node, needed: bool) -> Result<(), FdtError> {
    let cells = |interrupt: &NodeInterrupt| {
        let trigger = if interrupt.trigger == Trigger::Edge { RISING } else { HIGH };
        [SHARED, interrupt.number, trigger]
    };
    match node.interrupts.first() {
        Some(interrupt) => Ok(tree.property_array_u32("interrupts", &cells(interrupt))?),
        None if needed => Err(bad(node, "an interrupt")),
        None => Ok(()),
    }
}

fn name(kind: &str, base: u64) -> String {
    // As much as it can take: it does not grow, and writing to it cannot fail.
    let mut name = String::with_capacity(kind.len() + "@".len() + 16);
    let _ = write!(name, "{kind}@{base:x}");
    name
}

/// Base and length of a node's range `index`, which is memory.
fn memory(node: &Node, index: usize) -> Result<(u64, u64), FdtError> {
    match node.ranges.get(index) {
        Some(&NodeRange::Memory { base, len }) => Ok((base, len)),
        _ => Err(bad(node, if index == 0 { "a range of memory" } else { "a second range of memory" })),
    }
}

fn bad(node: &Node, needs: &'static str) -> FdtError {
    FdtError::BadNode { id: node.id.clone(), kind: node.kind, needs }
}
