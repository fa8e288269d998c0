//! A PCI root bus in the DSDT (PCI Firmware 3.3, chapter 4; ACPI 6.5, sections 6.2, 6.3 and 6.5): its windows, what the
//! guest may control itself, a device for each slot that the guest can eject, and an event device for hotplug.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method,
    MethodCall, Name, NotEqual, Notify, ONE, OpRegion, OpRegionSpace, Or, Path, ResourceTemplate, Return,
    Store, Uuid, ZERO,
};

use super::dsdt::{Encoded, Memory64Fixed, PCI_EVENTS, event_device};
use super::error::AcpiError;
use crate::platform::{Node, NodeInterrupt, NodeRange};

/// The slots that a guest can eject; slot 0 is the host bridge.
const SLOTS: std::ops::Range<u32> = 1..32;
/// Bytes of the registers for hotplug.
const HOTPLUG: u16 = 16;

/// Where the parts of a [`NodeKind::PciHost`](crate::NodeKind::PciHost) are.
pub(crate) struct PciHost<'a> {
    /// Its configuration space in memory: first byte and length.
    pub(crate) ecam: (u64, u64),
    /// The ports of configuration space, where there are ports.
    config: Option<(u16, u16)>,
    hotplug: Hotplug,
    interrupt: NodeInterrupt,
    node: &'a Node,
}

/// Where the registers for hotplug are.
#[derive(Clone, Copy)]
enum Hotplug {
    Ports(u16),
    Memory(u64),
}

impl<'a> PciHost<'a> {
    /// Fails if the node is not what its kind says.
    pub(crate) fn new(node: &'a Node) -> Result<Self, AcpiError> {
        let wrong = || {
            node.invalid(
                "a memory range (ECAM), 8 ports and 16 ports or 16 bytes of memory, and one interrupt",
            )
        };
        const HOTPLUG_BYTES: u64 = HOTPLUG as u64;
        let (base, len, config, hotplug) = match *node.ranges {
            [
                NodeRange::Memory { base, len },
                NodeRange::Io { base: config, len: ports },
                NodeRange::Io { base: hotplug, len: HOTPLUG },
            ] => (base, len, Some((config, ports)), Hotplug::Ports(hotplug)),
            [NodeRange::Memory { base, len }, NodeRange::Memory { base: hotplug, len: HOTPLUG_BYTES }] => {
                (base, len, None, Hotplug::Memory(hotplug))
            }
            _ => return Err(wrong()),
        };
        let &[interrupt] = &*node.interrupts else { return Err(wrong()) };
        let fits = |base: u16, len: u16| len > 0 && len < 0x100 && base.checked_add(len - 1).is_some();
        let whole = |base: u64, len: u64| len > 0 && base.checked_add(len - 1).is_some();
        let hotplug_fits = match hotplug {
            Hotplug::Ports(base) => fits(base, HOTPLUG),
            Hotplug::Memory(base) => whole(base, HOTPLUG_BYTES),
        };
        if !(config.is_none_or(|(base, len)| fits(base, len)) && hotplug_fits && whole(base, len)) {
            return Err(wrong());
        }
        if !node.has_windows_with_lengths() {
            return Err(node.invalid("windows that are not empty and not all of memory"));
        }
        Ok(Self { ecam: (base, len), config, hotplug, interrupt, node })
    }

    /// Appends its devices to `out`; `interrupt` describes an interrupt line. If there are NUMA nodes, it belongs to the first.
    pub(crate) fn describe(
        &self,
        has_numa: bool,
        interrupt: impl Fn(NodeInterrupt) -> acpi_tables::aml::Interrupt,
        out: &mut Vec<u8>,
    ) {
        self.bus(has_numa, out);
        self.board(out);
        self.events(&interrupt(self.interrupt), out);
    }

    /// The root bus.
    fn bus(&self, has_numa: bool, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        Name::new("_HID".into(), &EISAName::new("PNP0A08")).to_aml_bytes(&mut body);
        Name::new("_CID".into(), &EISAName::new("PNP0A03")).to_aml_bytes(&mut body);
        for zero in ["_UID", "_SEG", "_BBN"] {
            Name::new(zero.into(), &ZERO).to_aml_bytes(&mut body);
        }
        if has_numa {
            Name::new("_PXM".into(), &ZERO).to_aml_bytes(&mut body);
        }
        if self.config.is_none() {
            // Where it is not always so, as on x86, it has to be said.
            Name::new("_CCA".into(), &ONE).to_aml_bytes(&mut body);
        }
        Name::new("_CRS".into(), &ResourceTemplate::new(vec![&self.windows()])).to_aml_bytes(&mut body);
        control(&mut body);
        self.registers(&mut body);
        for slot in SLOTS {
            let (address, mask) = (slot << 16, 1u32 << slot);
            let (address, number) = (Name::new("_ADR".into(), &address), Name::new("_SUN".into(), &slot));
            let eject = Path::new("PCEJ");
            let eject = Store::new(&eject, &mask);
            let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
            Device::new(name(slot), vec![&address, &number, &eject]).to_aml_bytes(&mut body);
        }
        scan(&mut body);
        Device::new("PCI0".into(), vec![&Encoded(body)]).to_aml_bytes(out);
    }

    /// What the bus hands on: itself, its own ports of configuration space, and its windows.
    fn windows(&self) -> Encoded {
        let mut out = Vec::new();
        AddressSpace::new_bus_number(0u16, 0).to_aml_bytes(&mut out);
        if let Some((base, len)) = self.config {
            IO::new(base, base, 1, len as u8).to_aml_bytes(&mut out);
        }
        for window in &self.node.windows {
            let (first, last) = (*window.start(), *window.end());
            let cacheable = AddressSpaceCacheable::NotCacheable;
            match (u32::try_from(first), u32::try_from(last)) {
                // All 4 GiB have a length that takes more.
                (Ok(first), Ok(last)) if (first, last) != (0, u32::MAX) => {
                    AddressSpace::new_memory(cacheable, true, first, last, None).to_aml_bytes(&mut out);
                }
                _ => AddressSpace::new_memory(cacheable, true, first, last, None).to_aml_bytes(&mut out),
            }
        }
        Encoded(out)
    }

    /// The registers for hotplug.
    fn registers(&self, out: &mut Vec<u8>) {
        let len = HOTPLUG as u8;
        match self.hotplug {
            Hotplug::Ports(base) => {
                OpRegion::new("PCHP".into(), OpRegionSpace::SystemIO, &base, &len).to_aml_bytes(out);
            }
            Hotplug::Memory(base) => {
                OpRegion::new("PCHP".into(), OpRegionSpace::SystemMemory, &base, &len).to_aml_bytes(out);
            }
        }
        let fields = [b"PCUP", b"PCDN", b"PCEJ"].map(|name| FieldEntry::Named(*name, 32)).into();
        let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
        Field::new("PCHP".into(), access, lock, FieldUpdateRule::WriteAsZeroes, fields).to_aml_bytes(out);
    }

    /// What the bus answers itself is nobody else's (PCI Firmware 3.3, 4.1.2).
    fn board(&self, out: &mut Vec<u8>) {
        let mut taken = Vec::new();
        let mut memory = |(base, len)| match (u32::try_from(base), u32::try_from(len), base + (len - 1)) {
            (Ok(base), Ok(len), 0..=0xffff_ffff) => {
                Memory32Fixed::new(true, base, len).to_aml_bytes(&mut taken);
            }
            (_, _, last) => Memory64Fixed { base, last, len }.to_aml_bytes(&mut taken),
        };
        memory(self.ecam);
        match self.hotplug {
            Hotplug::Memory(base) => memory((base, HOTPLUG.into())),
            Hotplug::Ports(base) => IO::new(base, base, 1, HOTPLUG as u8).to_aml_bytes(&mut taken),
        }
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
        let uid = Name::new("_UID".into(), &ZERO);
        let taken = Encoded(taken);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&taken]));
        Device::new("PCMB".into(), vec![&hid, &uid, &crs]).to_aml_bytes(out);
    }

    /// The event device whose interrupt means that a slot has changed or is to.
    fn events(&self, interrupt: &dyn Aml, out: &mut Vec<u8>) {
        let scan = MethodCall::new("\\_SB_.PCI0.SCAN".into(), Vec::new());
        event_device("PCGE", PCI_EVENTS, interrupt, &scan, out);
    }
}

fn name(slot: u32) -> Path {
    Path::new(&format!("S0{slot:02X}"))
}

/// `_OSC`: the guest may control what it asks for of power management events, advanced errors and capabilities; hotplug
/// is the platform's (PCI Firmware 3.3, 4.5.1).
fn control(out: &mut Vec<u8>) {
    const GRANTED: u32 = 1 << 2 | 1 << 3 | 1 << 4;
    // Bits of the first word.
    const UNKNOWN_UUID: u32 = 1 << 2;
    const UNKNOWN_REVISION: u32 = 1 << 3;
    const MASKED: u32 = 1 << 4;
    let (buffer, wanted) = (Arg(3), Local(0));
    let uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let (status, controls) = (Path::new("CDW1"), Path::new("CDW3"));
    let first = CreateDWordField::new(&status, &buffer, &ZERO);
    let third = CreateDWordField::new(&controls, &buffer, &8u8);
    let granted = And::new(&wanted, &controls, &GRANTED);
    let revision = NotEqual::new(&Arg(1), &1u8);
    let bad_revision = Or::new(&status, &status, &UNKNOWN_REVISION);
    let bad_revision = If::new(&revision, vec![&bad_revision]);
    let masked = Or::new(&status, &status, &MASKED);
    let differs = NotEqual::new(&controls, &wanted);
    let masked = If::new(&differs, vec![&masked]);
    let answer = Store::new(&controls, &wanted);
    let ours = Equal::new(&Arg(0), &uuid);
    let known = If::new(&ours, vec![&third, &granted, &bad_revision, &masked, &answer]);
    let foreign = Or::new(&status, &status, &UNKNOWN_UUID);
    let foreign = Else::new(vec![&foreign]);
    let result = Return::new(&buffer);
    Method::new("_OSC".into(), 4, true, vec![&first, &known, &foreign, &result]).to_aml_bytes(out);
}

/// Tells the guest of each slot that has a new function, and of each that it is asked to eject.
fn scan(out: &mut Vec<u8>) {
    const DEVICE_CHECK: u8 = 1;
    const EJECT_REQUEST: u8 = 3;
    let mut body = Vec::new();
    let registers = [("PCUP", DEVICE_CHECK), ("PCDN", EJECT_REQUEST)];
    for (index, (register, notice)) in (0..).zip(registers) {
        let (register, bits) = (Path::new(register), Local(index));
        Store::new(&bits, &register).to_aml_bytes(&mut body);
        for slot in SLOTS {
            let mask = 1u32 << slot;
            let (set, slot) = (And::new(&ZERO, &bits, &mask), name(slot));
            let notify = Notify::new(&slot, &notice);
            If::new(&set, vec![&notify]).to_aml_bytes(&mut body);
        }
    }
    Method::new("SCAN".into(), 0, true, vec![&Encoded(body)]).to_aml_bytes(out);
}

#[cfg(test)]
mod tests;
