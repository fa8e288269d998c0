//! PSCI's SYSTEM_SUSPEND (Arm DEN 0022, 5.20), of which KVM does one part: it tells of the call, has a vCPU wait, and tells of
//! the interrupt that wakes it.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SUSPENDED, KVM_SYSTEM_EVENT_SUSPEND, KVM_SYSTEM_EVENT_WAKEUP,
    kvm_mp_state, kvm_regs,
};
use kvm_ioctls::VcpuFd;

use super::features::Features;
use super::one_reg::{self, RegisterId, SCTLR};
use super::registers;
use super::setup::vcpu_init;
use super::vcpu_state::VcpuAccess;
use crate::VmError;
use crate::call::call;

const INVALID_ADDRESS: i64 = -9;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;
/// SCTLR_EL1.EE: data is big-endian.
const BIG_ENDIAN: u64 = 1 << 25;

/// Does what a system event of the kernel asks for. Returns false if it is none that vCPUs here have. `is_ram` says if there are
/// so many bytes of RAM at an address.
pub(crate) fn answer_system_event(
    event: u32,
    access: VcpuAccess<'_>,
    is_ram: impl FnOnce(u64, u64) -> bool,
) -> Result<bool, VmError> {
    let mp_state = match event {
        KVM_SYSTEM_EVENT_SUSPEND => {
            let (entry, context) = (get(access.vcpu, x(1))?, get(access.vcpu, x(2))?);
            if entry % INSTRUCTION != 0 || !is_ram(entry, INSTRUCTION) {
                set(access.vcpu, x(0), INVALID_ADDRESS as u64)?;
                return Ok(true);
            }
            start_at(access, entry, context)?;
            KVM_MP_STATE_SUSPENDED
        }
        // Until it is runnable again, it would wait.
        KVM_SYSTEM_EVENT_WAKEUP => KVM_MP_STATE_RUNNABLE,
        _ => return Ok(false),
    };
    access.vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(call("KVM_SET_MP_STATE"))?;
    Ok(true)
}

/// What CPU_ON does in the kernel: all is as power-on leaves it, but the counters, what the processor is, and the byte order.
fn start_at(access: VcpuAccess<'_>, entry: u64, context: u64) -> Result<(), VmError> {
    let vcpu = access.vcpu;
    let byte_order = get(vcpu, SCTLR)? & BIG_ENDIAN;
    let init = vcpu_init(access.vm, access.index, Features::of(access.kvm, access.config))?;
    vcpu.vcpu_init(&init).map_err(call("KVM_ARM_VCPU_INIT"))?;
    if byte_order != 0 {
        set(vcpu, SCTLR, get(vcpu, SCTLR)? | byte_order)?;
    }
    set(vcpu, RegisterId(registers::id(offset_of!(kvm_regs, regs.pc))), entry)?;
    set(vcpu, x(0), context)
}

/// A general register.
fn x(number: usize) -> RegisterId {
    RegisterId(registers::id(offset_of!(kvm_regs, regs.regs) + number * size_of::<u64>()))
}

fn get(vcpu: &VcpuFd, id: RegisterId) -> Result<u64, VmError> {
    let mut value = [0; size_of::<u64>()];
    one_reg::get(vcpu, id, &mut value).map_err(call("KVM_GET_ONE_REG"))?;
    Ok(u64::from_ne_bytes(value))
}

fn set(vcpu: &VcpuFd, id: RegisterId, value: u64) -> Result<(), VmError> {
    one_reg::set(vcpu, id, &value.to_ne_bytes()).map_err(call("KVM_SET_ONE_REG"))
}
