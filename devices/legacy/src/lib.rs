//! Legacy PC devices for virtual machine monitors.
#![forbid(unsafe_code)]

pub mod backend;
mod serial;
mod terminal;

pub use backend::Backend;
pub use serial::{Escape, EscapeFilter, Serial, SerialInput, SerialPort};
pub use terminal::RawTerminal;
