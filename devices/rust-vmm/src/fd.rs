//! Descriptors that both sides own: each its own duplicate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use ::kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ::vmm_sys_util::eventfd::EventFd;
use ossature_core::Vcpu;

use crate::kvm_ioctls::not_of_kvm;

/// A duplicate of the descriptor of something that owns it.
pub(crate) fn duplicate<F: AsRawFd>(fd: &F) -> io::Result<OwnedFd> {
    // SAFETY: it stays open for as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()
}

pub(crate) fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open, and nobody else has it any more.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

pub(crate) fn vm(kvm: &Kvm, fd: OwnedFd) -> io::Result<VmFd> {
    // SAFETY: as above.
    Ok(unsafe { kvm.create_vmfd_from_rawfd(fd.into_raw_fd()) }?)
}

/// A vCPU of ours as theirs, of a machine that [`vm_fd_of`](crate::kvm_ioctls::vm_fd_of) has returned, for the ioctls of it
/// that ours has no method for: `get_regs`, `get_xsave` and their like. While one of them runs, the ioctls of the other wait
/// in the kernel.
///
/// # Safety
///
/// Both map the page that KVM and the thread that runs the vCPU share (`kvm_run`), and ours takes it for its own. As long as
/// `vcpu` lives, whoever has what is returned must not call any method of it that reads or writes this page, nor keep a
/// reference into it: `run`, `get_kvm_run`, `set_kvm_immediate_exit`, all that have `sync_reg` in their names, and
/// `map_coalesced_mmio_ring` with what reads that ring. `vm` must be the machine that `vcpu` is of, since it says how large
/// the page is.
pub unsafe fn vcpu_fd_of(vm: &VmFd, vcpu: &Vcpu) -> io::Result<VcpuFd> {
    let fd = vcpu.descriptor().ok_or_else(not_of_kvm)?.try_clone_to_owned()?;
    // SAFETY: as above.
    Ok(unsafe { vm.create_vcpu_from_rawfd(fd.into_raw_fd()) }?)
}

pub(crate) fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: as above.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}
