#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use ossature_boot as boot;
pub use ossature_bus as bus;
pub use ossature_core as core;
pub use ossature_legacy as legacy;
pub use ossature_memory as memory;
pub use ossature_virtio as virtio;
