//! The ioctls that need raw pointers, descriptors or memory of this process.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::{KVMIO, kvm_ioeventfd, kvm_irqfd, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ossature_bus::Event;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
// The type in the number is the header; the mask itself follows it.
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// Opens the device node.
pub(super) fn open_kvm(path: &Path) -> io::Result<Kvm> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = Kvm::open_with_cloexec_at(path, true).map_err(io::Error::from)?;
    // SAFETY: the descriptor was opened just now, and nobody else has it.
    Ok(unsafe { Kvm::from_raw_fd(fd) })
}

/// Makes memory of this process guest memory, or changes such a slot.
///
/// # Safety
///
/// The memory must stay mapped for as long as a vCPU of `vm` can run, and nothing in this process may hold a
/// reference to it.
pub(super) unsafe fn set_memory_region(vm: &VmFd, region: kvm_userspace_memory_region) -> errno::Result<()> {
    // SAFETY: what the kernel does with the region is the caller's promise.
    unsafe { vm.set_user_memory_region(region) }
}

/// Connects an event to an interrupt line.
pub(super) fn irqfd(vm: &VmFd, event: &Event, gsi: u32) -> errno::Result<()> {
    // A descriptor is never negative here.
    let irqfd = kvm_irqfd { fd: event.as_raw_fd().unsigned_abs(), gsi, ..Default::default() };
    // SAFETY: the kernel reads the struct, whose size is in the ioctl's number, and nothing else.
    status(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &irqfd) })
}

/// Connects a guest's write to an event.
pub(super) fn ioeventfd(vm: &VmFd, doorbell: &kvm_ioeventfd) -> errno::Result<()> {
    // SAFETY: the kernel reads the struct, whose size is in the ioctl's number, and nothing else.
    status(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), doorbell) })
}

/// The descriptor from which the counters of a VM or a vCPU are read.
pub(super) fn stats_fd<F: AsRawFd>(fd: &F) -> errno::Result<File> {
    // SAFETY: the ioctl takes no argument.
    let stats = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    status(stats)?;
    // SAFETY: the kernel gave us this new descriptor.
    Ok(unsafe { File::from_raw_fd(stats) })
}

/// Sets the signals that are blocked while the vCPU is in `KVM_RUN`: bit n stands for signal n + 1.
pub(super) fn set_signal_mask(vcpu: &VcpuFd, blocked: u64) -> errno::Result<()> {
    #[repr(C)]
    struct Mask {
        len: u32,
        blocked: [u8; 8],
    }
    let mask = Mask { len: size_of::<u64>() as u32, blocked: blocked.to_ne_bytes() };
    // SAFETY: the kernel reads the length and as many bytes as it says, which are there.
    status(unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) })
}

fn status(ret: i32) -> errno::Result<()> {
    if ret < 0 { Err(errno::Error::last()) } else { Ok(()) }
}
