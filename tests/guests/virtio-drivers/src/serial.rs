//! Text on the first serial port.

use core::fmt;

use crate::start::{inb, outb};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// The port.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            outb(DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        // The port takes everything.
        let _ = writeln!($crate::serial::Serial, $($arguments)*);
    }};
}
pub(crate) use println;
