//! A vCPU's registers as plain data.

use std::fmt;
use std::mem::offset_of;
use std::ptr::NonNull;

use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_regs, kvm_run};
use kvm_ioctls::VcpuFd;
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use crate::VmError;
use crate::call::call;

const GENERAL: Field = Field::new(1, "general registers");
const SP: Field = Field::new(2, "stack pointer");
const PC: Field = Field::new(3, "program counter");
const PSTATE: Field = Field::new(4, "processor state");
/// Bytes of the general registers.
const GENERAL_LEN: usize = 31 * size_of::<u64>();

/// The registers that say where a vCPU is and in which mode. The stack pointer is that of EL1. Its fields are aarch64's;
/// on x86_64 the type of this name has others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the processor's
pub struct Registers {
    pub x: [u64; 31],
    pub sp: u64,
    pub pc: u64,
    pub pstate: u64,
}

/// PSTATE of EL1 with its own stack pointer, and the four kinds of interrupts masked (DAIF).
const EL1H_MASKED: u64 = 0x3c5;

impl Registers {
    /// EL1 with interrupts masked, about to execute at `pc`; translation is off: the least that runs code. On
    /// aarch64 only.
    pub fn el1(pc: u64) -> Self {
        Self { pc, pstate: EL1H_MASKED, ..Self::default() }
    }

    /// The registers as the fields of a state.
    pub(crate) fn encode(&self, fields: &mut Encoder) {
        let general: Vec<_> = self.x.iter().flat_map(|x| x.to_le_bytes()).collect();
        fields.bytes(GENERAL, &general).u64(SP, self.sp).u64(PC, self.pc).u64(PSTATE, self.pstate);
    }

    /// The registers that are the fields of a state.
    pub(crate) fn decode(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let general: [u8; GENERAL_LEN] = fields.array(GENERAL)?;
        let mut registers = Self::default();
        for (x, bytes) in registers.x.iter_mut().zip(general.chunks_exact(8)) {
            *x = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        registers.sp = fields.u64(SP)?;
        registers.pc = fields.u64(PC)?;
        registers.pstate = fields.u64(PSTATE)?;
        Ok(registers)
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, x) in self.x.iter().enumerate() {
            write!(f, "x{n:<2} {x:016x}{}", if n % 4 == 3 { "\n" } else { "  " })?;
        }
        write!(f, "sp  {:016x}\npc  {:016x}  pstate {:08x}", self.sp, self.pc, self.pstate)
    }
}

/// The registers as a vCPU is to have them, and as it has them: each takes a call of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvmRegisters {
    wanted: Registers,
    now: Registers,
}

/// The name of a general register, by its place in [`kvm_regs`].
pub(super) const fn id(offset: usize) -> u64 {
    // In units of 32 bits.
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / size_of::<u32>()) as u64
}

/// The name of each register, with its place.
fn places(registers: &mut Registers) -> impl Iterator<Item = (u64, &mut u64)> {
    let Registers { x, sp, pc, pstate } = registers;
    let general = (0..).map(|n| id(offset_of!(kvm_regs, regs.regs) + n * size_of::<u64>()));
    // The kernel calls what runs at EL1 and has its own stack pointer by what it runs on: that of EL1.
    general.zip(x.iter_mut()).chain([
        (id(offset_of!(kvm_regs, sp_el1)), sp),
        (id(offset_of!(kvm_regs, regs.pc)), pc),
        (id(offset_of!(kvm_regs, regs.pstate)), pstate),
    ])
}

impl KvmRegisters {
    pub(crate) fn read(vcpu: &VcpuFd) -> Result<Self, VmError> {
        let mut registers = Registers::default();
        for (id, value) in places(&mut registers) {
            let mut bytes = [0; 8];
            vcpu.get_one_reg(id, &mut bytes).map_err(call("KVM_GET_ONE_REG"))?;
            *value = u64::from_ne_bytes(bytes);
        }
        Ok(Self { wanted: registers, now: registers })
    }

    /// Writes those that are to change.
    pub(crate) fn write(&self, vcpu: &VcpuFd) -> Result<(), VmError> {
        for (id, value) in self.changes() {
            vcpu.set_one_reg(id, &value.to_ne_bytes()).map_err(call("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    fn changes(&self) -> Vec<(u64, u64)> {
        let (mut wanted, mut now) = (self.wanted, self.now);
        let both = places(&mut wanted).zip(places(&mut now));
        both.filter(|((_, wanted), (_, now))| wanted != now).map(|((id, wanted), _)| (id, *wanted)).collect()
    }

    /// Those of a vCPU as `KVM_ARM_VCPU_INIT` leaves it: so that it need not be asked.
    pub(crate) fn new(_: u32) -> Option<Self> {
        let reset = Registers::el1(0);
        Some(Self { wanted: reset, now: reset })
    }

    pub(crate) fn apply(&mut self, registers: &Registers) {
        self.wanted = *registers;
    }
}

impl From<KvmRegisters> for Registers {
    fn from(from: KvmRegisters) -> Self {
        from.wanted
    }
}

/// Returns false: the page has no registers.
///
/// # Safety
///
/// Nothing to keep: the page is not accessed.
pub(crate) unsafe fn leave_in_page(_: NonNull<kvm_run>, _: u32, _: &KvmRegisters) -> bool {
    false
}

/// The page has no registers.
///
/// # Safety
///
/// Nothing to keep: the page is not accessed.
pub(crate) unsafe fn left_in_page(_: NonNull<kvm_run>) -> Option<KvmRegisters> {
    None
}

/// The page has no registers.
///
/// # Safety
///
/// Nothing to keep: the page is not accessed.
pub(crate) unsafe fn forget_in_page(_: NonNull<kvm_run>) {}

#[cfg(test)]
mod tests;
