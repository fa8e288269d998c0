//! A guest that counts in memory, on x86_64.

use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use ossature::vmm::Registers;

const CODE: GuestAddress = GuestAddress(0x1000);
/// inc dword [0x2000]; jmp to itself
const GUEST: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9];

/// Puts the guest into memory, and says how it starts.
pub fn load(memory: &GuestMmap) -> Result<Registers, GuestMemoryError> {
    memory.write_slice(GUEST, CODE)?;
    Ok(Registers::real_mode(CODE.0 as u16))
}
