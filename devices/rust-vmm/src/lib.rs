#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use {kvm_bindings, kvm_ioctls, linux_loader, virtio_queue, vm_memory, vmm_sys_util};

pub mod event_manager;
pub mod vm_device;
pub mod vm_superio;
