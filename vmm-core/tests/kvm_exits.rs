//! Exits of every size and direction, as a guest's instructions make them.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

#[cfg_attr(target_arch = "x86_64", path = "exits/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "exits/aarch64.rs")]
mod exits;
