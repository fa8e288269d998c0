//! Guests that cannot go on: the error says why, with registers and code.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

#[cfg_attr(target_arch = "x86_64", path = "crashes/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "crashes/aarch64.rs")]
mod crashes;
