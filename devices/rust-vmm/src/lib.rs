#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub use kvm_bindings;

pub mod event_manager;
#[allow(unsafe_code)] // see the module
mod fd;
pub mod kvm_ioctls;
pub mod linux_loader;
pub mod virtio_queue;
pub mod vm_device;
pub mod vm_memory;
pub mod vm_superio;
pub mod vmm_sys_util;
