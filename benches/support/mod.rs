//! What the criterion benches and the instruction counts share: each hot path, ready to be called again and again.
#![allow(dead_code)] // each program uses some of it

pub mod adapters;
#[cfg_attr(target_arch = "x86_64", path = "boot/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "boot/aarch64.rs")]
pub mod boot;
pub mod bus;
pub mod foreign;
pub mod pci;
pub mod raw;
pub mod rings;
pub mod sockets;
pub mod state;
pub mod turns;

/// A hot path: its name, and one round of it.
pub type Path = (&'static str, Box<dyn FnMut()>);
