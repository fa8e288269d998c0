//! What a vCPU says of the exception that it took last, and where the instruction is that it is at.

use std::mem::offset_of;

use kvm_bindings::{KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs};
use kvm_ioctls::VcpuFd;
use ossature_memory::Dma;
use ossature_memory::vm_memory::GuestAddress;

use super::registers::{self, Registers};
use super::translate::Tables;

/// Why the last exception at EL1 was taken, where and in which mode, and where to (Arm ARM, D17.2).
const EXCEPTION: [(&str, u64); 5] = [
    ("esr_el1", system_register([3, 0, 5, 2, 0])),
    ("far_el1", system_register([3, 0, 6, 0, 0])),
    ("elr_el1", registers::id(offset_of!(kvm_regs, elr_el1))),
    ("spsr_el1", registers::id(offset_of!(kvm_regs, spsr))),
    ("vbar_el1", system_register([3, 0, 12, 0, 0])),
];
const SCTLR_EL1: u64 = system_register([3, 0, 1, 0, 0]);
const TTBR0_EL1: u64 = system_register([3, 0, 2, 0, 0]);
const TTBR1_EL1: u64 = system_register([3, 0, 2, 0, 1]);
const TCR_EL1: u64 = system_register([3, 0, 2, 0, 2]);
/// SCTLR_EL1: addresses of EL1 and EL0 are translated.
const MMU_ON: u64 = 1;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// The id of the system register that instructions name by these numbers: op0, op1, CRn, CRm, op2.
const fn system_register([op0, op1, crn, crm, op2]: [u64; 5]) -> u64 {
    let place = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | place
}

fn read(vcpu: &VcpuFd, id: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(id, &mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

/// What system registers say of the last exception, as far as the kernel gives them.
pub(crate) fn exception_registers(vcpu: &VcpuFd) -> Vec<(&'static str, u64)> {
    EXCEPTION.iter().filter_map(|(name, id)| Some((*name, read(vcpu, *id)?))).collect()
}

/// The guest-physical address of byte `n` of the instruction that `registers` are at. `None` if it does not have it, or
/// if nothing is mapped there.
pub(crate) fn instruction_byte(vcpu: &VcpuFd, ram: &Dma, registers: &Registers, n: u64) -> Option<u64> {
    if n >= INSTRUCTION {
        return None;
    }
    let address = registers.pc.wrapping_add(n);
    if read(vcpu, SCTLR_EL1)? & MMU_ON == 0 {
        return Some(address);
    }
    let tables = Tables { tcr: read(vcpu, TCR_EL1)?, ttbr: [read(vcpu, TTBR0_EL1)?, read(vcpu, TTBR1_EL1)?] };
    tables.translate(address, |entry| ram.read_obj(GuestAddress(entry)).ok().map(u64::from_le))
}
