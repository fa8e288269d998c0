//! A vCPU's registers as plain data.

use std::fmt;
use std::ptr::NonNull;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use ossature_boot::x86_64::cpu::CpuState;
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use crate::VmError;

const GENERAL: Field = Field::new(1, "general registers");
const SP: Field = Field::new(2, "stack pointer");
const PC: Field = Field::new(3, "program counter");
const PSTATE: Field = Field::new(4, "processor state");
/// Bytes of the general registers.
const GENERAL_LEN: usize = 31 * size_of::<u64>();

/// The registers that say where a vCPU is and in which mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the processor's
pub struct Registers {
    pub x: [u64; 31],
    pub sp: u64,
    pub pc: u64,
    pub pstate: u64,
}

impl Registers {
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

/// How a vCPU starts that a loader for another architecture has prepared: not at all.
pub(crate) fn start_registers(_: CpuState) -> Result<Registers, VmError> {
    Err(VmError::Unsupported { what: "an x86 kernel" })
}

/// The registers as KVM has them: not yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvmRegisters {}

impl KvmRegisters {
    pub(crate) fn read(_: &VcpuFd) -> Result<Self, VmError> {
        Err(VmError::Unsupported { what: "reading registers on this architecture" })
    }

    pub(crate) fn write(&self, _: &VcpuFd) -> Result<(), VmError> {
        match *self {}
    }

    /// A vCPU has to be asked.
    pub(crate) fn new(_: u32) -> Option<Self> {
        None
    }

    pub(crate) fn apply(&mut self, _: &Registers) {
        match *self {}
    }
}

impl From<KvmRegisters> for Registers {
    fn from(from: KvmRegisters) -> Self {
        match from {}
    }
}

/// Returns false: the page has no registers.
///
/// # Safety
///
/// Nothing to keep: the page is not accessed.
pub(crate) unsafe fn leave_in_page(_: NonNull<kvm_run>, _: u32, registers: &KvmRegisters) -> bool {
    match *registers {}
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
