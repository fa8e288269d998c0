//! Descriptors that both sides own: each its own duplicate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use ::kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ::vmm_sys_util::eventfd::EventFd;

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

pub(crate) fn vcpu(vm: &VmFd, fd: OwnedFd) -> io::Result<VcpuFd> {
    // SAFETY: as above.
    Ok(unsafe { vm.create_vcpu_from_rawfd(fd.into_raw_fd()) }?)
}

pub(crate) fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: as above.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}
