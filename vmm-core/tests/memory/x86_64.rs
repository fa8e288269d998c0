//! Guests that read and write at [`MORE`], to which FS points.

use ossature_core::{Registers, SegmentRegister};

use crate::MORE;
use crate::guest::CODE;

/// Real mode at [`CODE`], with FS at [`MORE`] and without a limit.
pub fn at_more() -> Registers {
    let real = Registers::real_mode(CODE);
    Registers { fs: SegmentRegister { base: MORE, limit: u32::MAX, access: 0x8093, ..real.fs }, ..real }
}

/// Reads 32 bits at MORE.
pub const READ: &[u8] = &[0x64, 0x66, 0xa1, 0x00, 0x00, 0xf4]; // mov eax, fs:[0]; hlt

/// What it has read.
pub fn value(registers: &Registers) -> u64 {
    registers.rax
}

/// Writes to DATA and to the fourth page from MORE on; then to 0x5000.
pub const WRITE: &[u8] = &[
    0xa2, 0x00, 0x20, // mov [DATA], al
    0x64, 0xa2, 0x00, 0x30, // mov fs:[0x3000], al
    0xf4, // hlt
    0xa2, 0x00, 0x50, 0xf4, // mov [0x5000], al; hlt
];

/// Writes to the fourth page from MORE on.
pub const WRITE_MORE: &[u8] = &[0x64, 0xa2, 0x00, 0x30, 0xf4]; // mov fs:[0x3000], al; hlt

/// Writes a byte to each of 3,000 pages from MORE on, with as many instructions between two writes as `pause` says.
pub fn write_pages(pause: u8) -> Vec<u8> {
    let mut code = vec![
        0x66, 0xb9, 0xb8, 0x0b, 0x00, 0x00, // mov ecx, 3000
        0x66, 0x31, 0xff, // xor edi, edi
        0x64, 0x67, 0x88, 0x0f, // mov fs:[edi], cl
        0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    ];
    code.extend(std::iter::repeat_n(0x90, pause.into()));
    code.extend([0x66, 0x49, 0x75, 0xf1 - pause, 0xf4]); // dec ecx; jnz to the write; hlt
    code
}
