//! Legacy devices of PCs and Arm machines for virtual machine monitors: what a guest expects of its machine before any driver
//! for a paravirtual device runs. Those at ports are for guests of x86_64 only.
//!
//! | device | what for | where |
//! |---|---|---|
//! | [`Serial`] | 16550A UART on a terminal, file, pseudo-terminal or socket | ports 0x3f8 and so on, IRQ 4 or 3 |
//! | [`Serial::pl011`] | PL011 UART of Arm machines, on the same | a page of memory, any IRQ |
//! | [`I8042`] | reset, Ctrl-Alt-Del | ports 0x60 and 0x64, IRQ 1 |
//! | [`Rtc`] | the time of day | ports 0x70 and 0x71 |
//! | [`Pl031`] | the same, on Arm machines | a page of memory, any IRQ |
//! | [`AcpiPower`] | power off, reset, power button | ports 0x600 to 0x602, any IRQ |
//! | [`AcpiPower::button_only`] | power button | any IRQ |
//! | [`VmGenId`] | the guest learns that it is a copy | a page of memory, any IRQ |
//! | [`FwCfg`] | files for the guest: a name, a token | ports 0x510 to 0x51b, or 24 bytes of memory |
//! | [`Pvpanic`] | the guest says that it has panicked | port 0x505 |
//! | [`DebugPort`] | boot times | port 0x3f0 |
//!
//! Each is an [`ossature_bus::Device`] with a name that the caller chooses: it says what it needs, and answers the
//! guest through the registers that it is assigned when it is attached. No device knows the hypervisor or another
//! device. It may be detached and attached again, to the same machine or another one.
//!
//! What the VMM does with a device goes through handles ([`SerialInput`], [`Keyboard`], [`PowerButton`], [`Stamps`],
//! [`Generation`], [`FwCfgFiles`]), which may be cloned, used from any thread, and kept longer than the device. What
//! needs a machine does nothing while the device is not attached, and says so.
//!
//! Beside the devices: [`RawTerminal`] and [`window_size`] for the user's terminal, [`EscapeFilter`] and [`KeyFilter`] for
//! the keys that mean the VMM.
//!
//! # Example
//!
//! Here the test board does the part of the machine, and the example that of the guest:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use ossature_bus::testing::TestBoard;
//! use ossature_bus::{Access, Device, Size};
//! use ossature_legacy::{Serial, SerialPort, backend};
//! # struct Shown(Arc<Mutex<Vec<u8>>>);
//! # impl std::io::Write for Shown {
//! #     fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
//! #         self.0.lock().unwrap().write(buf)
//! #     }
//! #     fn flush(&mut self) -> std::io::Result<()> {
//! #         Ok(())
//! #     }
//! # }
//! # let shown = Arc::new(Mutex::new(Vec::new()));
//! # let writer = Shown(shown.clone());
//!
//! let mut serial = Serial::new("com1", SerialPort::COM1, backend::writer(writer));
//! let mut board = TestBoard::default();
//! board.attach(&mut serial)?;
//! serial.resume()?;
//!
//! // The guest switches the receive interrupt on and prints.
//! let guest = board.port("registers").unwrap();
//! let register = |offset| Access { offset, size: Size::B1 };
//! guest.write(register(1), 0x01).unwrap();
//! for byte in b"login: " {
//!     guest.write(register(0), u64::from(*byte)).unwrap();
//! }
//! # assert_eq!(*shown.lock().unwrap(), b"login: ");
//!
//! // The user types: the guest gets an interrupt, then the byte.
//! assert_eq!(serial.input().try_write(b"r"), 1);
//! assert_eq!(board.edges("irq").unwrap().take()?, 1);
//! assert_eq!(guest.read(register(0)), Ok(u64::from(b'r')));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod acpi_power;
pub mod backend;
mod debug_port;
mod escape;
mod fw_cfg;
mod i8042;
mod key_filter;
mod pvpanic;
mod register;
mod rtc;
mod serial;
mod terminal;
#[cfg(test)]
mod testing;
mod vm_gen_id;

pub use acpi_power::{AcpiPower, PowerButton};
pub use backend::Backend;
pub use debug_port::{DebugPort, Stamp, Stamps};
pub use escape::{Escape, EscapeFilter};
pub use fw_cfg::{FwCfg, FwCfgError, FwCfgFiles};
pub use i8042::{I8042, Keyboard};
pub use key_filter::KeyFilter;
pub use pvpanic::Pvpanic;
pub use rtc::{Pl031, RealTimeClock, Rtc};
pub use serial::{Pl011, Serial, SerialInput, SerialPort, TYPEAHEAD_CAPACITY, Uart, Uart16550, Written};
pub use terminal::{RawTerminal, window_size};
pub use vm_gen_id::{Generation, GenerationId, VmGenId};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
