//! A guest that copies bytes from one device to two others, on aarch64.

use ossature::boot::Platform;
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use ossature::vmm::Registers;

use super::{GREETER, TALLY, platform};

/// Copies until it reads 0, then powers off.
const GUEST: &[u32] = &[
    0x3940_0280, // next: ldrb w0, [x20]: the greeter
    0x3400_0080, //       cbz  w0, done
    0x3900_0260, //       strb w0, [x19]: the serial port
    0x3900_02a0, //       strb w0, [x21]: the tally
    0x17ff_fffc, //       b    next
    0x52b0_8000, // done: mov  w0, #0x84000000
    0x7280_0100, //       movk w0, #8: SYSTEM_OFF
    0xd400_0002, //       hvc  #0
];

/// Puts the guest into memory.
pub fn load(memory: &GuestMmap, machine: &Platform) -> Result<Registers, GuestMemoryError> {
    let code: Vec<u8> = GUEST.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&code, GuestAddress(0x1000))?;
    let mut registers = platform::start(0x1000, machine);
    (registers.x[20], registers.x[21]) = (GREETER, TALLY);
    Ok(registers)
}
