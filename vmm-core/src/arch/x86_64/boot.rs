//! From the state in which a payload wants to start to a vCPU's registers.

use ossature_boot::x86_64::cpu;

use super::registers::{Registers, SegmentRegister, Table};
use crate::VmError;

/// How a vCPU starts that boot's loader has prepared.
pub(crate) fn start_registers(state: cpu::CpuState) -> Result<Registers, VmError> {
    Ok(state.into())
}

impl From<cpu::CpuState> for Registers {
    fn from(state: cpu::CpuState) -> Self {
        let data = state.data.into();
        Self {
            rip: state.rip,
            rbx: state.rbx,
            rsi: state.rsi,
            rflags: state.rflags,
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            cs: state.cs.into(),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: state.tr.into(),
            gdt: state.gdt.into(),
            idt: state.idt.into(),
            ..Self::default()
        }
    }
}

impl From<cpu::SegmentRegister> for SegmentRegister {
    fn from(segment: cpu::SegmentRegister) -> Self {
        /// The segment is present and of privilege level 0.
        const PRESENT: u16 = 1 << 7;
        let bit = |set: bool, at: u32| u16::from(set) << at;
        Self {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            access: u16::from(segment.kind)
                | bit(segment.code_or_data, 4)
                | PRESENT
                | bit(segment.long, 13)
                | bit(segment.db, 14)
                | bit(segment.granularity, 15),
        }
    }
}

impl From<cpu::DescriptorTable> for Table {
    fn from(table: cpu::DescriptorTable) -> Self {
        Self { base: table.base, limit: table.limit }
    }
}
