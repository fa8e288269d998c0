//! The DSDT: one device for each node, in AML (ACPI 6.5, chapters 6, 19 and 20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name,
    Notify, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};

use super::{AcpiError, S5_SLEEP_TYPE};
use crate::platform::{Node, NodeKind, NodeRange, Platform};

/// `Notify` value for a pressed power button (ACPI 6.5, table 5.162).
const BUTTON_PRESSED: u8 = 0x80;

pub(super) fn body(platform: &Platform, out: &mut Vec<u8>) -> Result<(), AcpiError> {
    let mut devices = Devices::default();
    for (index, node) in platform.nodes.iter().enumerate() {
        devices.add(node, index)?;
    }
    Scope::new("\\_SB_".into(), vec![&devices]).to_aml_bytes(out);
    if platform.nodes.iter().any(|node| node.kind == NodeKind::AcpiPower) {
        Name::new("\\_S5_".into(), &Package::new(vec![&S5_SLEEP_TYPE])).to_aml_bytes(out);
    }
    Ok(())
}

/// The devices' AML so far, and how many of each kind, for their names and `_UID`s.
#[derive(Default)]
struct Devices {
    aml: Vec<u8>,
    virtio: u32,
    serial: u8,
}

impl Aml for Devices {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.aml);
    }
}

impl Devices {
    fn add(&mut self, node: &Node, index: usize) -> Result<(), AcpiError> {
        match node.kind {
            NodeKind::VirtioMmio => {
                let ([NodeRange::Memory { .. }], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("one memory range and one interrupt"));
                };
                let uid = self.virtio;
                self.virtio += 1;
                let uid_name = Name::new("_UID".into(), &uid);
                let coherent = Name::new("_CCA".into(), &ONE);
                self.device(&format!("V{index:03X}"), &"LNRO0005", node, &[&uid_name, &coherent])
            }
            NodeKind::Serial16550 => {
                let ([NodeRange::Io { len: 8, .. }], [_]) = (&*node.ranges, &*node.interrupts) else {
                    return Err(node.invalid("eight ports and one interrupt"));
                };
                self.serial += 1;
                let uid = Name::new("_UID".into(), &self.serial);
                self.device(&format!("COM{:X}", self.serial), &EISAName::new("PNP0501"), node, &[&uid])
            }
            NodeKind::Rtc => self.device("RTC_", &EISAName::new("PNP0B00"), node, &[]),
            NodeKind::I8042 => self.device("KBD_", &EISAName::new("PNP0303"), &separate_ports(node)?, &[]),
            NodeKind::Pvpanic => self.device("PEVT", &"QEMU0001", node, &[]),
            NodeKind::AcpiPower => {
                self.power_button(node);
                Ok(())
            }
        }
    }

    fn device(&mut self, name: &str, hid: &dyn Aml, node: &Node, rest: &[&dyn Aml]) -> Result<(), AcpiError> {
        let resources = resources(node)?;
        let hid = Name::new("_HID".into(), hid);
        let crs = Name::new(
            "_CRS".into(),
            &ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect()),
        );
        let mut children: Vec<&dyn Aml> = vec![&hid];
        children.extend_from_slice(rest);
        children.push(&crs);
        Device::new(name.into(), children).to_aml_bytes(&mut self.aml);
        Ok(())
    }

    /// A button, and the generic event device (5.6.9) whose interrupt means that it was pressed.
    fn power_button(&mut self, node: &Node) {
        let Some(&gsi) = node.interrupts.first() else { return };
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
        Device::new("PWRB".into(), vec![&hid]).to_aml_bytes(&mut self.aml);
        let hid = Name::new("_HID".into(), &"ACPI0013");
        let uid = Name::new("_UID".into(), &ZERO);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(gsi)]));
        let button = Path::new("PWRB");
        let pressed = Notify::new(&button, &BUTTON_PRESSED);
        let event = Method::new("_EVT".into(), 1, true, vec![&pressed]);
        Device::new("GED_".into(), vec![&hid, &uid, &crs, &event]).to_aml_bytes(&mut self.aml);
    }
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

fn resources(node: &Node) -> Result<Vec<Box<dyn Aml>>, AcpiError> {
    let mut resources: Vec<Box<dyn Aml>> = Vec::with_capacity(node.ranges.len() + node.interrupts.len());
    for range in &node.ranges {
        resources.push(match *range {
            NodeRange::Memory { base, len } => match (u32::try_from(base), u32::try_from(len)) {
                (Ok(base), Ok(len)) => Box::new(Memory32Fixed::new(true, base, len)),
                _ => {
                    let last = base.checked_add(len.wrapping_sub(1)).filter(|&last| last >= base);
                    let last =
                        last.ok_or_else(|| node.invalid("memory ranges that are not empty and do not wrap"))?;
                    Box::new(AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        base,
                        last,
                        None,
                    ))
                }
            },
            NodeRange::Io { base, len } => {
                let len = u8::try_from(len).ok().filter(|&len| len > 0);
                let len = len.ok_or_else(|| node.invalid("1 to 255 ports in a range"))?;
                Box::new(IO::new(base, base, 1, len))
            }
        });
    }
    for &gsi in &node.interrupts {
        resources.push(Box::new(interrupt(gsi)));
    }
    Ok(resources)
}

/// Edge-triggered, active high, not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
