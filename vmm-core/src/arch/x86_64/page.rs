//! Registers on their way to KVM: by its calls, or in the page that a vCPU shares with the kernel.

use std::ptr::{NonNull, addr_of, addr_of_mut};

use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::registers::{Registers, reset_sregs};
use crate::VmError;
use crate::call::call;

/// Registers in the page that the kernel is to take from there (`kvm_dirty_regs`).
const SET: u64 = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS) as u64;

/// The registers as KVM has them, with those that [`Registers`] leaves alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvmRegisters {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
}

impl KvmRegisters {
    /// Reads them from a vCPU.
    pub(crate) fn read(vcpu: &VcpuFd) -> Result<Self, VmError> {
        Ok(Self {
            regs: vcpu.get_regs().map_err(call("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?,
        })
    }

    /// Writes them to a vCPU.
    pub(crate) fn write(&self, vcpu: &VcpuFd) -> Result<(), VmError> {
        vcpu.set_sregs(&self.sregs).map_err(call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs).map_err(call("KVM_SET_REGS"))
    }

    /// Those of vCPU `index` of a machine with interrupt controllers, as far as [`Registers`] leaves them alone, before it
    /// has run: so that it need not be asked.
    pub(crate) fn new(index: u32) -> Option<Self> {
        Some(Self { regs: kvm_regs::default(), sregs: reset_sregs(index) })
    }

    /// Changes what `registers` knows.
    pub(crate) fn apply(&mut self, registers: &Registers) {
        self.regs = registers.to_kvm_regs();
        registers.apply_to_kvm_sregs(&mut self.sregs);
    }
}

impl From<KvmRegisters> for Registers {
    fn from(from: KvmRegisters) -> Self {
        Self::from_kvm(&from.regs, &from.sregs)
    }
}

/// Has the kernel take the registers from the page when the guest is next entered. Returns false if vCPU `index` cannot
/// have it that way.
///
/// # Safety
///
/// The page is mapped, the kernel is not in it, and nobody else accesses the registers in it.
pub(crate) unsafe fn leave_in_page(page: NonNull<kvm_run>, index: u32, registers: &KvmRegisters) -> bool {
    // Another vCPU may wait to be started, and what is set now must not come after what starts it.
    if index != 0 {
        return false;
    }
    let page = page.as_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        addr_of_mut!((*page).s.regs.regs).write(registers.regs);
        addr_of_mut!((*page).s.regs.sregs).write(registers.sregs);
        addr_of_mut!((*page).kvm_dirty_regs).write(SET);
    }
    true
}

/// The registers in the page that the kernel has not taken yet.
///
/// # Safety
///
/// As for [`leave_in_page`].
pub(crate) unsafe fn left_in_page(page: NonNull<kvm_run>) -> Option<KvmRegisters> {
    let page = page.as_ptr();
    // SAFETY: the caller's promise, and what is dirty has been written before.
    unsafe {
        (addr_of!((*page).kvm_dirty_regs).read() & SET == SET).then(|| KvmRegisters {
            regs: addr_of!((*page).s.regs.regs).read(),
            sregs: addr_of!((*page).s.regs.sregs).read(),
        })
    }
}

/// Has the kernel take no registers from the page.
///
/// # Safety
///
/// As for [`leave_in_page`].
pub(crate) unsafe fn forget_in_page(page: NonNull<kvm_run>) {
    // SAFETY: the caller's promise.
    unsafe { addr_of_mut!((*page.as_ptr()).kvm_dirty_regs).write(0) }
}
