//! The ioctls that need raw pointers, descriptors or memory of this process.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::KVMIO;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ossature_bus::Event;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

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

/// Takes an open device node over.
pub(super) fn kvm_from_fd(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open, and nobody else has it any more.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Takes a virtual machine of this KVM over.
pub(super) fn vm_from_fd(kvm: &Kvm, fd: OwnedFd) -> errno::Result<VmFd> {
    // SAFETY: the descriptor is open, and nobody else has it any more.
    unsafe { kvm.create_vmfd_from_rawfd(fd.into_raw_fd()) }
}

/// The descriptor of something that owns it.
pub(super) fn borrow<F: AsRawFd>(fd: &F) -> BorrowedFd<'_> {
    // SAFETY: it stays open for as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Calls `f` with the event as kvm-ioctls wants it: the same descriptor, which stays the event's.
pub(super) fn with_eventfd<R>(event: &Event, f: impl FnOnce(&EventFd) -> R) -> R {
    // SAFETY: the descriptor is an eventfd that stays open for as long as `event` is borrowed, and it is not closed here.
    let eventfd = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event.as_raw_fd()) });
    f(&eventfd)
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
