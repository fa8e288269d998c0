//! A guest that counts in memory, on aarch64. It turns translation on first: without, it would write past the caches, and
//! the host would not see it.

use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use ossature::vmm::Registers;

const CODE: GuestAddress = GuestAddress(0x1000);
const TABLE: GuestAddress = GuestAddress(0x3000);
/// The first GiB as it is: a block of memory with attributes 0, shared by all processors, accessed before.
const FIRST_GIB: u64 = 0x701;
const GUEST: &[u32] = &[
    0xd280_1fe0, // mov  x0, #0xff: attributes 0 are those of memory that is cached
    0xd518_a200, // msr  mair_el1, x0
    0xd286_a320, // mov  x0, #0x3519: addresses of 39 bits, cached tables
    0xf2a0_1000, // movk x0, #0x80, lsl #16: no upper half
    0xd518_2040, // msr  tcr_el1, x0
    0xd286_0000, // mov  x0, #0x3000
    0xd518_2000, // msr  ttbr0_el1, x0
    0xd503_3fdf, // isb
    0xd538_1000, // mrs  x0, sctlr_el1
    0xd282_00a2, // mov  x2, #0x1005: translation and caches
    0xaa02_0000, // orr  x0, x0, x2
    0xd518_1000, // msr  sctlr_el1, x0
    0xd503_3fdf, // isb
    0xd284_0001, // mov  x1, #0x2000
    0xb940_0020, // ldr  w0, [x1]
    0x1100_0400, // add  w0, w0, #1
    0xb900_0020, // str  w0, [x1]
    0x17ff_fffd, // b    to the ldr
];

/// Puts the guest into memory, and says how it starts.
pub fn load(memory: &GuestMmap) -> Result<Registers, GuestMemoryError> {
    let code: Vec<u8> = GUEST.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&code, CODE)?;
    memory.write_obj(FIRST_GIB, TABLE)?;
    Ok(Registers::el1(CODE.0))
}
