//! The console's PL011 for kernels before they know devices: SPCR (Serial Port Console Redirection, revision 2) and DBG2
//! (Debug Port Table 2, revision 0).

use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::{Aml, AmlSink};

use crate::aarch64::SHARED;
use crate::acpi::AcpiError;
use crate::platform::{Node, NodeRange};

const PL011: u8 = 3;
const SERIAL: u16 = 0x8000;
/// The interrupt is one of the GIC.
const GIC: u8 = 1 << 3;
/// As it is set up: 115,200 Bd in both tables' terms, no parity, one stop bit.
const BAUD_115200: u8 = 7;
const ONE_STOP_BIT: u8 = 1;
/// VT-UTF8.
const TERMINAL: u8 = 2;
const NO_PCI_DEVICE: u16 = 0xffff;
/// The first PL011 in the DSDT.
const NAME: &[u8] = b"\\_SB.UAR1\0";

/// Where the console is.
pub(super) struct Console {
    base: u64,
    len: u32,
    interrupt: u32,
}

impl Console {
    pub(super) fn new(node: &Node) -> Result<Self, AcpiError> {
        let (&[NodeRange::Memory { base, len }], &[interrupt]) = (&*node.ranges, &*node.interrupts) else {
            return Err(node.invalid("one memory range and one interrupt"));
        };
        let len = u32::try_from(len).map_err(|_| node.invalid("less than 4 GiB of registers"))?;
        Ok(Self { base, len, interrupt: SHARED + interrupt.number })
    }

    /// Registers are words, and accessed as such.
    fn address(&self) -> GAS {
        GAS::new(AddressSpace::SystemMemory, 32, 0, AccessSize::DwordAccess, self.base)
    }

    /// The body of the SPCR.
    pub(super) fn redirection(&self, out: &mut Vec<u8>) {
        out.vec(&[PL011, 0, 0, 0]);
        self.address().to_aml_bytes(out);
        out.vec(&[GIC, 0]);
        out.dword(self.interrupt);
        let (parity, flow_control, language) = (0, 0, 0);
        out.vec(&[BAUD_115200, parity, ONE_STOP_BIT, flow_control, TERMINAL, language]);
        out.word(NO_PCI_DEVICE);
        out.word(NO_PCI_DEVICE);
        let (bus, device, function) = (0, 0, 0);
        out.vec(&[bus, device, function]);
        let (flags, segment, reserved) = (0, 0, 0);
        out.dword(flags);
        out.byte(segment);
        out.dword(reserved);
    }

    /// The body of the DBG2.
    pub(super) fn debug_port(&self, out: &mut Vec<u8>) {
        /// Where the first device is, in the table.
        const FIRST: u32 = 44;
        /// Bytes of a device before its variable part.
        const FIXED: u16 = 22;
        const ADDRESS: u16 = 12;
        const SIZE: u16 = 4;
        let name = FIXED + ADDRESS + SIZE;
        out.dword(FIRST);
        out.dword(1);
        let (revision, registers) = (0, 1);
        out.byte(revision);
        out.word(name + NAME.len() as u16);
        out.byte(registers);
        out.word(NAME.len() as u16);
        out.word(name);
        let (oem_len, oem, reserved) = (0, 0, 0);
        out.word(oem_len);
        out.word(oem);
        out.word(SERIAL);
        out.word(PL011.into());
        out.word(reserved);
        out.word(FIXED);
        out.word(FIXED + ADDRESS);
        self.address().to_aml_bytes(out);
        out.dword(self.len);
        out.vec(NAME);
    }
}
