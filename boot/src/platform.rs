//! What the boot tables describe: processors, RAM and the nodes that the machine assigned.

/// A machine, as far as its guest has to be told about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// The local APIC ids of the processors, boot processor first.
    pub cpus: Vec<u32>,
    /// RAM, ascending, from address 0, holes left out.
    pub ram: Vec<RamRange>,
    /// Devices, in the order in which the guest is to find them.
    pub nodes: Vec<Node>,
}

/// A range of guest-physical addresses backed by RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A device as the guest is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The device's name in the machine, for errors.
    pub id: String,
    /// What it is.
    pub kind: NodeKind,
    /// The addresses that it answers.
    pub ranges: Vec<NodeRange>,
    /// The global system interrupts that it raises, as edges.
    pub interrupts: Vec<u32>,
}

/// What kind of device a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeKind {
    /// A virtio-mmio transport: one memory range, one interrupt.
    VirtioMmio,
    /// A 16550 UART: eight ports, one interrupt.
    Serial16550,
    /// An MC146818-compatible clock: its ports, and its interrupt if it has one.
    Rtc,
    /// An i8042 keyboard controller: ports 0x60 and 0x64 (or one range that holds both), and its interrupt
    /// if it has one.
    I8042,
    /// Three byte-wide ports in this order: ACPI sleep control, sleep status, and the reset register
    /// (which takes [`RESET_VALUE`](crate::acpi::RESET_VALUE)); an interrupt stands for the power button.
    AcpiPower,
    /// A pvpanic port.
    Pvpanic,
}

/// Addresses of a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRange {
    /// Guest-physical memory.
    Memory {
        /// First byte.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// I/O ports.
    Io {
        /// First port.
        base: u16,
        /// Number of ports.
        len: u16,
    },
}
