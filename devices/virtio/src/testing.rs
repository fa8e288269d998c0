//! The guest's side of virtio, for tests: a driver that speaks through a device's real registers, rings in
//! guest memory that can be written rightly and wrongly, and the conformance suite that every device runs.
//!
//! Everything here fails its test by panicking.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)] // as said above

pub mod conformance;
mod driver;
mod machine;
mod mode;
mod port;
mod ring;

pub use driver::TestDriver;
pub use driver::io::Request;
pub use mode::{Life, Transport, on_each_transport, with};
pub use ring::{Desc, GuestRing, Used, guest_ram};
