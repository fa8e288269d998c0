//! vm-superio, and its adapters: its devices in our machines, and its triggers as our interrupts.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`Serial`] | the registers of an [`ossature_legacy::Serial`], on any of its back ends | [`SuperioUart`] |
//! | [`Rtc`], a PL031 | [`Device`](ossature_bus::Device), for a machine | [`SuperioRtc`] |
//! | [`I8042Device`] | [`Device`](ossature_bus::Device), for a machine | [`SuperioI8042`] |
//! | [`Trigger`] | [`Interrupt`](ossature_bus::Interrupt) | [`interrupt`] |
//! | [`Trigger`], for a device of theirs | [`Interrupt`](ossature_bus::Interrupt) | [`InterruptTrigger`] |
//!
//! In the other direction, vm-superio has no trait for a device: our serial port, clock and keyboard controller go onto
//! a bus of rust-vmm's by [`ToVmDevice`](crate::vm_device::ToVmDevice).
//!
//! # Their serial port on one of our back ends
//!
//! ```
//! use std::io::Read;
//! use ossature_bus::testing::TestBoard;
//! use ossature_bus::{Access, Device, Size};
//! use ossature_legacy::{Serial, SerialPort, backend};
//! use ossature_rust_vmm::vm_superio::SuperioUart;
//!
//! let (mut user, line) = std::os::unix::net::UnixStream::pair()?;
//! let line = backend::fds(Some(line.try_clone()?.into()), Some(line.into()))?;
//! let mut serial = Serial::with_uart("com1", SerialPort::COM1, line, SuperioUart::new());
//! let mut board = TestBoard::default();
//! board.attach(&mut serial)?;
//! serial.resume()?;
//!
//! let guest = board.port("registers").unwrap();
//! for byte in b"login: " {
//!     guest.write(Access { offset: 0, size: Size::B1 }, u64::from(*byte)).unwrap();
//! }
//! let mut shown = [0; 7];
//! user.read_exact(&mut shown)?;
//! assert_eq!(&shown, b"login: ");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use ::vm_superio::*;

mod clock;
mod reset;
mod trigger;
mod uart;
mod uart_state;

pub use clock::SuperioRtc;
pub use reset::SuperioI8042;
pub use trigger::{InterruptTrigger, interrupt};
pub use uart::SuperioUart;

#[cfg(test)]
mod tests;
