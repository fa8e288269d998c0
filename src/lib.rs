#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "virtio")]
#[doc(inline)]
pub use ossature_block as block;
#[doc(inline)]
pub use ossature_boot as boot;
#[doc(inline)]
pub use ossature_bus as bus;
#[doc(inline)]
pub use ossature_core as vmm;
#[cfg(feature = "legacy")]
#[doc(inline)]
pub use ossature_legacy as legacy;
#[doc(inline)]
pub use ossature_memory as memory;
#[cfg(feature = "pci")]
#[doc(inline)]
pub use ossature_pci as pci;
#[cfg(feature = "rust-vmm")]
#[doc(inline)]
pub use ossature_rust_vmm as rust_vmm;
#[cfg(feature = "virtio")]
#[doc(inline)]
pub use ossature_virtio as virtio;

#[doc = include_str!("../docs/serving.md")]
pub mod serving {}
