//! The DSDT: one device for each node, in AML (ACPI 6.5, chapters 6, 19 and 20).

use acpi_tables::aml::{
    Device, EISAName, IO, Memory32Fixed, Method, Name, Notify, ONE, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};

use super::S5_SLEEP_TYPE;
use super::error::AcpiError;
use super::lines::Lines;
use super::pci::PciHost;
use crate::platform::{Node, NodeKind, NodeRange, Platform};

/// `Notify` value for a pressed power button (ACPI 6.5, table 5.162).
const BUTTON_PRESSED: u8 = 0x80;
/// `Notify` value for a new VM generation ID.
const NEW_GENERATION: u8 = 0x80;

/// `_STA` of a device that is there and works, and that users need not see.
const WORKS_UNSEEN: u8 = 0b1011;

/// How many devices of a kind have names: four characters each.
const LIMITS: [(NodeKind, usize); 11] = [
    (NodeKind::VirtioMmio, 0x1000),
    (NodeKind::Serial16550, 0xf),
    (NodeKind::Pl011, 0xf),
    (NodeKind::Rtc, 1),
    (NodeKind::I8042, 1),
    (NodeKind::AcpiPower, 1),
    (NodeKind::PowerButton, 1),
    (NodeKind::Pvpanic, 1),
    (NodeKind::PciHost, 1),
    (NodeKind::VmGenId, 1),
    (NodeKind::FwCfg, 1),
];

/// The `_UID`s of event devices.
const POWER_EVENTS: u8 = 0;
pub(super) const PCI_EVENTS: u8 = 1;
const GENERATION_EVENTS: u8 = 2;

/// What most devices take, in bytes.
const ENCODED: usize = 128;

/// Writes the DSDT's body: the `processors`, if the architecture has them as devices, and a device for each node that is not
/// of one of the kinds described `elsewhere`.
pub(crate) fn body(
    platform: &Platform,
    lines: &Lines,
    processors: Vec<u8>,
    elsewhere: &[NodeKind],
    out: &mut Vec<u8>,
) -> Result<(), AcpiError> {
    let count = |kind| platform.nodes.iter().filter(|node| node.kind == kind).count();
    for (kind, limit) in LIMITS {
        if count(kind) > limit {
            return Err(AcpiError::TooManyNodes { kind, limit });
        }
    }
    // Either has the name.
    if count(NodeKind::AcpiPower) + count(NodeKind::PowerButton) > 1 {
        return Err(AcpiError::TooManyNodes { kind: NodeKind::PowerButton, limit: 0 });
    }
    let mut aml = Encoded(processors);
    aml.0.reserve(ENCODED * platform.nodes.len());
    let mut devices =
        Devices { lines, has_numa: platform.numa.is_some(), aml, virtio: 0, serial: 0, uart: 0 };
    for node in platform.nodes.iter().filter(|node| !elsewhere.contains(&node.kind)) {
        devices.add(node)?;
    }
    Scope::new("\\_SB_".into(), vec![&devices.aml]).to_aml_bytes(out);
    if platform.nodes.iter().any(|node| node.kind == NodeKind::AcpiPower) {
        Name::new("\\_S5_".into(), &Package::new(vec![&S5_SLEEP_TYPE])).to_aml_bytes(out);
    }
    Ok(())
}

/// AML that is ready.
pub(super) struct Encoded(pub(super) Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The devices so far, and how many there are of those that are numbered.
struct Devices<'a> {
    lines: &'a Lines<'a>,
    has_numa: bool,
    aml: Encoded,
    virtio: u16,
    serial: u8,
    uart: u8,
}

impl Devices<'_> {
    fn add(&mut self, node: &Node) -> Result<(), AcpiError> {
        match node.kind {
            NodeKind::VirtioMmio => {
                let ([NodeRange::Memory { .. }], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("one memory range and one interrupt"));
                };
                let uid = self.virtio;
                self.virtio += 1;
                let uid_name = Name::new("_UID".into(), &uid);
                let coherent = Name::new("_CCA".into(), &ONE);
                self.device(&format!("V{uid:03X}"), &"LNRO0005", node, &[&uid_name, &coherent])
            }
            NodeKind::Serial16550 => {
                let ([NodeRange::Io { len: 8, .. }], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("eight ports and one interrupt"));
                };
                self.serial += 1;
                let uid = Name::new("_UID".into(), &self.serial);
                self.device(&format!("COM{:X}", self.serial), &EISAName::new("PNP0501"), node, &[&uid])
            }
            NodeKind::Pl011 => {
                let ([NodeRange::Memory { .. }], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("one memory range and one interrupt"));
                };
                self.uart += 1;
                let uid = Name::new("_UID".into(), &self.uart);
                self.device(&format!("UAR{:X}", self.uart), &"ARMH0011", node, &[&uid])
            }
            NodeKind::Rtc => self.device("RTC_", &EISAName::new("PNP0B00"), node, &[]),
            NodeKind::I8042 => self.device("KBD_", &EISAName::new("PNP0303"), &separate_ports(node)?, &[]),
            NodeKind::Pvpanic => self.device("PEVT", &"QEMU0001", node, &[]),
            NodeKind::AcpiPower => {
                self.power_button(node);
                Ok(())
            }
            NodeKind::PowerButton => {
                let ([], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("one interrupt, and no ranges"));
                };
                self.power_button(node);
                Ok(())
            }
            NodeKind::PciHost => {
                let line = |line| self.lines.interrupt(line);
                PciHost::new(node)?.describe(self.has_numa, line, &mut self.aml.0);
                Ok(())
            }
            NodeKind::VmGenId => self.generation(node),
            NodeKind::FwCfg => {
                let status = Name::new("_STA".into(), &WORKS_UNSEEN);
                let coherent = Name::new("_CCA".into(), &ONE);
                let about: &[&dyn Aml] = match *node.ranges {
                    [NodeRange::Io { len: 12, .. }] => &[&status],
                    [NodeRange::Memory { len: 24, .. }] => &[&status, &coherent],
                    _ => return Err(node.invalid("12 ports, or 24 bytes of memory")),
                };
                self.device("FWCF", &"QEMU0002", node, about)
            }
            NodeKind::Hidden => Ok(()),
            kind => Err(AcpiError::UnknownKind { id: node.id.clone(), kind }),
        }
    }

    fn device(&mut self, name: &str, hid: &dyn Aml, node: &Node, rest: &[&dyn Aml]) -> Result<(), AcpiError> {
        let mut body = Vec::with_capacity(ENCODED);
        Name::new("_HID".into(), hid).to_aml_bytes(&mut body);
        for child in rest {
            child.to_aml_bytes(&mut body);
        }
        Name::new("_CRS".into(), &ResourceTemplate::new(vec![&self.resources(node)?]))
            .to_aml_bytes(&mut body);
        Device::new(name.into(), vec![&Encoded(body)]).to_aml_bytes(&mut self.aml.0);
        Ok(())
    }

    /// A button, and the event device whose interrupt means that it was pressed.
    fn power_button(&mut self, node: &Node) {
        let Some(&line) = node.interrupts.first() else { return };
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
        Device::new("PWRB".into(), vec![&hid]).to_aml_bytes(&mut self.aml.0);
        let button = Path::new("PWRB");
        let pressed = Notify::new(&button, &BUTTON_PRESSED);
        event_device("GED_", POWER_EVENTS, &self.lines.interrupt(line), &pressed, &mut self.aml.0);
    }

    /// The address of the VM generation ID, and the event device whose interrupt means that there is a new one. Guests
    /// know it by its _CID and by ADDR: two halves, the lower one first (Microsoft's paper of 2012).
    fn generation(&mut self, node: &Node) -> Result<(), AcpiError> {
        let (&[NodeRange::Memory { base, len }], &[line]) = (&*node.ranges, &*node.interrupts) else {
            return Err(node.invalid("one memory range and one interrupt"));
        };
        if !node.has_generation() || base.checked_add(len - 1).is_none() {
            return Err(node.invalid("16 bytes at a multiple of 8"));
        }
        let (low, high) = (base as u32, (base >> 32) as u32);
        let hid = Name::new("_HID".into(), &"OSSA0001");
        let [cid, ddn] = ["_CID", "_DDN"].map(|name| Name::new(name.into(), &"VM_Gen_Counter"));
        let address = Package::new(vec![&low, &high]);
        let address = Name::new("ADDR".into(), &address);
        Device::new("VGEN".into(), vec![&hid, &cid, &ddn, &address]).to_aml_bytes(&mut self.aml.0);
        let generation = Path::new("VGEN");
        let changed = Notify::new(&generation, &NEW_GENERATION);
        let interrupt = self.lines.interrupt(line);
        event_device("VGGE", GENERATION_EVENTS, &interrupt, &changed, &mut self.aml.0);
        Ok(())
    }

    fn resources(&self, node: &Node) -> Result<Encoded, AcpiError> {
        if node.ranges.is_empty() {
            return Err(node.invalid("a range"));
        }
        let mut out = Vec::with_capacity(ENCODED);
        for range in &node.ranges {
            match *range {
                NodeRange::Memory { base, len } => {
                    let last = len.checked_sub(1).and_then(|rest| base.checked_add(rest));
                    let last =
                        last.ok_or_else(|| node.invalid("memory ranges that are not empty and do not wrap"))?;
                    match (u32::try_from(base), u32::try_from(len), u32::try_from(last)) {
                        (Ok(base), Ok(len), Ok(_)) => {
                            Memory32Fixed::new(true, base, len).to_aml_bytes(&mut out)
                        }
                        _ => Memory64Fixed { base, last, len }.to_aml_bytes(&mut out),
                    }
                }
                NodeRange::Io { base, len } => {
                    let fits = len > 0 && base.checked_add(len - 1).is_some();
                    let len = u8::try_from(len).ok().filter(|_| fits);
                    let len = len.ok_or_else(|| node.invalid("ranges of 1 to 255 ports below 0x10000"))?;
                    IO::new(base, base, 1, len).to_aml_bytes(&mut out);
                }
            }
        }
        for &line in &node.interrupts {
            self.lines.interrupt(line).to_aml_bytes(&mut out);
        }
        Ok(Encoded(out))
    }
}

/// A generic event device (ACPI 6.5, 5.6.9), which does `action` when there is an interrupt.
pub(super) fn event_device(name: &str, uid: u8, interrupt: &dyn Aml, action: &dyn Aml, out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &uid);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![interrupt]));
    let event = Method::new("_EVT".into(), 1, true, vec![action]);
    Device::new(name.into(), vec![&hid, &uid, &crs, &event]).to_aml_bytes(out);
}

/// An i8042 answers 0x60 and 0x64 only, whatever range the machine gave it; drivers want two resources.
fn separate_ports(node: &Node) -> Result<Node, AcpiError> {
    const DATA: u16 = 0x60;
    const COMMAND: u16 = 0x64;
    if ![DATA, COMMAND].into_iter().all(|port| node.ports().any(|found| found == port)) {
        return Err(node.invalid("ports 0x60 and 0x64"));
    }
    let ranges = [DATA, COMMAND].map(|base| NodeRange::Io { base, len: 1 }).into();
    Ok(Node { ranges, ..node.clone() })
}

/// Memory above 4 GiB that a device uses (ACPI 6.5, 6.4.3.5.1): acpi_tables only has the descriptor of a bridge,
/// which hands memory on.
pub(super) struct Memory64Fixed {
    pub(super) base: u64,
    pub(super) last: u64,
    pub(super) len: u64,
}

impl Aml for Memory64Fixed {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const QWORD_ADDRESS_SPACE: u8 = 0x8a;
        const LEN: u16 = 43;
        const MEMORY: u8 = 0;
        /// Consumer, both ends fixed.
        const GENERAL: u8 = 1 << 0 | 1 << 2 | 1 << 3;
        /// Not cacheable.
        const READ_WRITE: u8 = 1 << 0;
        sink.byte(QWORD_ADDRESS_SPACE);
        sink.word(LEN);
        sink.vec(&[MEMORY, GENERAL, READ_WRITE]);
        let (granularity, translation) = (0, 0);
        for field in [granularity, self.base, self.last, translation, self.len] {
            sink.qword(field);
        }
    }
}
