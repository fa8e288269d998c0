//! What the criterion benches and the instruction counts share: each hot path, ready to be called again and again.
#![allow(dead_code)] // each program uses some of it

pub mod adapters;
pub mod bus;
pub mod foreign;
pub mod pci;
pub mod raw;
pub mod rings;
pub mod sockets;
pub mod state;
pub mod tables;
pub mod turns;
