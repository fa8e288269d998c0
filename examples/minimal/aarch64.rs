//! A guest that prints a line, on aarch64: a few instructions at EL1, without translation.

use std::sync::Arc;

use ossature::bus::{Bus, BusError, Effect, Mmio, VmRequest};
use ossature::vmm::{Registers, Step};

use super::{CODE, LINE, TEXT};

/// Where the data register of the serial port is, outside of RAM.
const SERIAL: u64 = 0x900_0000;

/// The guest, assembled by hand.
const GUEST: &[u32] = &[
    0x3840_1420, // ldrb w0, [x1], #1: from the line
    0x3900_0260, // strb w0, [x19]: to the serial port
    0x7100_0442, // subs w2, w2, #1
    0x54ff_ffa1, // b.ne to the start
    0x52b0_8000, // mov  w0, #0x84000000
    0x7280_0100, // movk w0, #8: SYSTEM_OFF
    0xd400_0002, // hvc  #0
];

pub fn code() -> Vec<u8> {
    GUEST.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn start() -> Registers {
    let mut registers = Registers::el1(CODE.into());
    (registers.x[1], registers.x[2], registers.x[19]) = (LINE.into(), TEXT.len() as u64, SERIAL);
    registers
}

/// Puts the serial port into memory.
pub fn plug(_: &Bus, memory: &Bus, serial: Arc<dyn Mmio>) -> Result<(), BusError> {
    memory.insert(SERIAL, 1, "serial", serial)
}

/// The guest has powered off.
pub fn ends(step: Step) -> bool {
    step == Step::Effect(Effect::Vm(VmRequest::Shutdown))
}
