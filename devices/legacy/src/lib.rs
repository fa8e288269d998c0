//! Legacy PC devices for virtual machine monitors.
#![forbid(unsafe_code)]

mod acpi_power;
pub mod backend;
mod debug_port;
mod i8042;
mod pvpanic;
mod register;
mod rtc;
mod serial;
mod terminal;
#[cfg(test)]
mod testing;

pub use acpi_power::{AcpiPower, PowerButton};
pub use backend::Backend;
pub use debug_port::{DebugPort, Stamp, Stamps};
pub use i8042::{I8042, Keyboard};
pub use pvpanic::Pvpanic;
pub use rtc::Rtc;
pub use serial::{Escape, EscapeFilter, Serial, SerialInput, SerialPort};
pub use terminal::RawTerminal;
