//! A guest that copies bytes from one device to two others, on x86_64.

use ossature::boot::Platform;
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use ossature::vmm::Registers;

use super::{GREETER, platform};

/// Copies until it reads 0, then powers off.
const GUEST: &[u8] = &[
    0xa0, 0x00, 0x00, // next: mov al, [0]: the greeter
    0x84, 0xc0, //             test al, al
    0x74, 0x09, //             jz done
    0xba, 0xf8, 0x03, //       mov dx, 0x3f8: the serial port
    0xee, //                   out dx, al
    0xa2, 0x00, 0x10, //       mov [0x1000], al: the tally
    0xeb, 0xf0, //             jmp next
    0xba, 0x00, 0x06, // done: mov dx, 0x600
    0xb0, 0x34, //             mov al, 0x34 (S5, sleep enable)
    0xee, //                   out dx, al
    0xf4, //                   hlt
];

/// Puts the guest into memory. Its data segment begins at the greeter.
pub fn load(memory: &GuestMmap, machine: &Platform) -> Result<Registers, GuestMemoryError> {
    memory.write_slice(GUEST, GuestAddress(0x1000))?;
    let mut registers = platform::start(0x1000, machine);
    registers.ds.base = GREETER;
    Ok(registers)
}
