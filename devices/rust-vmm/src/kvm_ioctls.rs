//! kvm-ioctls, and its adapters: what either side has opened or created, for the other. Both have a descriptor of their
//! own then.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`Kvm`] | [`ossature_core::Kvm`] | [`hypervisor_of`], [`kvm_of`] |
//! | [`VmFd`] | [`Vm`] | [`vm_of`], [`vm_fd_of`] |
//! | [`VcpuFd`] | [`Vcpu`](ossature_core::Vcpu) | [`vcpu_fd_of`] |
//!
//! ```no_run
//! use ossature_core::machine::Machine;
//! use ossature_core::{Hypervisor, VmConfig};
//! use ossature_rust_vmm::kvm_ioctls::{self, Kvm};
//!
//! let theirs = Kvm::new()?;
//! let ours = kvm_ioctls::hypervisor_of(&theirs)?;
//! let machine = Machine::builder("guest").build(&ours)?;
//!
//! // A virtual machine of a type that ours does not make, with our memory, interrupts and vCPUs.
//! let vm = kvm_ioctls::vm_of(&ours, &theirs.create_vm_with_type(1)?, &VmConfig::default())?;
//!
//! // An ioctl that ours has no method for, on a machine that ours has created.
//! let vm = ours.create_vm(&VmConfig::default())?;
//! let clock = kvm_ioctls::vm_fd_of(&ours, &*vm)?.get_clock()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;

use ossature_core::{Vm, VmConfig, VmError};

pub use ::kvm_ioctls::*;

use crate::fd;
pub use crate::fd::vcpu_fd_of;

/// The same KVM, for our machines. Fails if it cannot do what they need.
pub fn hypervisor_of(kvm: &Kvm) -> Result<ossature_core::Kvm, VmError> {
    ossature_core::Kvm::from_fd(fd::duplicate(kvm).map_err(failed)?)
}

/// The same KVM as theirs.
pub fn kvm_of(kvm: &ossature_core::Kvm) -> io::Result<Kvm> {
    Ok(fd::kvm(std::os::fd::AsFd::as_fd(kvm).try_clone_to_owned()?))
}

/// A virtual machine of theirs, which has no memory, no vCPUs and no interrupt controllers yet, as one of ours: see
/// [`ossature_core::Kvm::vm_from_fd`].
pub fn vm_of(kvm: &ossature_core::Kvm, vm: &VmFd, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
    kvm.vm_from_fd(fd::duplicate(vm).map_err(failed)?, config)
}

/// A virtual machine of ours as theirs, for what we have no method for. Ours does not learn of what is done to it: its
/// memory slots and interrupt routes are better left alone. Fails for a machine that is not KVM's.
pub fn vm_fd_of(kvm: &ossature_core::Kvm, vm: &dyn Vm) -> io::Result<VmFd> {
    let fd = vm.descriptor().ok_or_else(not_of_kvm)?.try_clone_to_owned()?;
    fd::vm(&kvm_of(kvm)?, fd)
}

fn failed(source: io::Error) -> VmError {
    VmError::Call { call: "dup", source }
}

pub(crate) fn not_of_kvm() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "it is not a machine of KVM")
}
