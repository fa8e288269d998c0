//! What of KVM's interface for this architecture has no safe function in kvm-ioctls, and the counter's frequency.

use std::arch::asm;

use kvm_bindings::{KVM_CREATE_DEVICE_TEST, KVMIO, kvm_create_device, kvm_device_attr};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref};
use vmm_sys_util::{errno, ioctl_iowr_nr};

/// The head of the list: the number of names that follow.
type Count = u64;

ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, Count);
ioctl_iowr_nr!(KVM_CREATE_DEVICE, KVMIO, 0xe0, kvm_create_device);

/// The names of all registers that a vCPU has.
pub(super) fn register_names(vcpu: &VcpuFd) -> errno::Result<Vec<u64>> {
    let mut list = vec![0];
    loop {
        let room = list.len() - 1;
        // SAFETY: the first number says how many follow that the kernel may write.
        let ret = unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_REG_LIST(), list.as_mut_ptr()) };
        let count = list.first().map_or(0, |count| usize::try_from(*count).unwrap_or(0));
        if ret == 0 {
            list.truncate(count.min(room) + 1);
            list.remove(0);
            return Ok(list);
        }
        let error = errno::Error::last();
        if error.errno() != libc::E2BIG || count <= room {
            return Err(error);
        }
        list = vec![0; count + 1];
        list.iter_mut().take(1).for_each(|first| *first = count as Count);
    }
}

/// Returns true if a machine could have a device of this type. kvm-ioctls would take what it is answered for the device.
pub(super) fn offers_device(vm: &VmFd, type_: u32) -> bool {
    let mut device = kvm_create_device { type_, flags: KVM_CREATE_DEVICE_TEST, ..Default::default() };
    // SAFETY: the kernel reads and writes the structure alone; it creates nothing.
    unsafe { ioctl_with_mut_ref(vm, KVM_CREATE_DEVICE(), &mut device) == 0 }
}

/// A number that devices of the kernel have attributes of.
pub(super) trait Number: Copy + Default {}

impl Number for u32 {}
impl Number for u64 {}

/// Reads an attribute of a device, which has to be a number of this width.
pub(super) fn attribute<T: Number>(device: &DeviceFd, group: u32, attr: u64) -> errno::Result<T> {
    let mut value = T::default();
    let addr = std::ptr::from_mut(&mut value) as u64;
    let mut about = kvm_device_attr { group, attr, addr, flags: 0 };
    // SAFETY: the kernel writes a number of this width, for which there is room.
    unsafe { device.get_device_attr(&mut about) }.map(|()| value)
}

/// Sets an attribute of a device, which has to be a number of this width.
pub(super) fn set_attribute<T: Number>(
    device: &DeviceFd,
    group: u32,
    attr: u64,
    value: T,
) -> errno::Result<()> {
    let addr = std::ptr::from_ref(&value) as u64;
    device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
}

/// How often the counter counts in a second: guests read it from the processor, as we do.
pub(super) fn counter_frequency() -> u64 {
    let frequency: u64;
    // SAFETY: every program may read it, and reading has no effect.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags)) };
    frequency
}
