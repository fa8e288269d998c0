//! Adapters between Ossature and the crates of [rust-vmm](https://github.com/rust-vmm), both ways, and those crates
//! themselves in one set of versions that are tested together.
//!
//! Each module is a package: all of its items, and the adapters to and from it.
#![forbid(unsafe_code)]

pub use {kvm_bindings, kvm_ioctls, linux_loader, virtio_queue, vm_memory, vmm_sys_util};

pub mod event_manager;
pub mod vm_device;
pub mod vm_superio;
