//! A guest that prints a line, on x86_64: a few instructions in real mode.

use std::sync::Arc;

use ossature::bus::{Bus, BusError, Mmio};
use ossature::vmm::{Registers, Step};

use super::{CODE, LINE, TEXT};

/// The first serial port of a PC.
const COM1: u16 = 0x3f8;

/// The guest, assembled by hand.
pub fn code() -> Vec<u8> {
    let mut code = vec![0xba]; // mov dx, COM1
    code.extend(COM1.to_le_bytes());
    code.push(0xbe); // mov si, LINE
    code.extend(LINE.to_le_bytes());
    code.push(0xb9); // mov cx, the length of TEXT
    code.extend((TEXT.len() as u16).to_le_bytes());
    code.extend([0xf3, 0x6e]); // rep outsb: CX bytes from SI to port DX
    code.push(0xf4); // hlt
    code
}

pub fn start() -> Registers {
    Registers::real_mode(CODE)
}

/// Puts the serial port at its I/O port.
pub fn plug(ports: &Bus, _: &Bus, serial: Arc<dyn Mmio>) -> Result<(), BusError> {
    ports.insert(COM1.into(), 1, "serial", serial)
}

/// The guest has halted.
pub fn ends(step: Step) -> bool {
    step == Step::Halted
}
