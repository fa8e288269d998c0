//! Guests that read and write at [`MORE`], to which x22 points.

use ossature_core::Registers;

use crate::MORE;
use crate::guest::{END, start};

/// As guests start, with x22 at [`MORE`].
pub fn at_more() -> Registers {
    let mut registers = start();
    registers.x[22] = MORE;
    registers
}

/// Reads 32 bits at MORE.
pub const READ: &[u32] = &[0xb940_02c2, END]; // ldr w2, [x22]

/// What it has read.
pub fn value(registers: &Registers) -> u64 {
    registers.x[2]
}

/// Writes to DATA and to the fourth page from MORE on; then to 0x5000.
pub const WRITE: &[u32] = &[
    0x3900_0282, // strb w2, [x20]
    0x9140_0ec3, // add x3, x22, #0x3000
    0x3900_0062, // strb w2, [x3]
    END,
    0xd28a_0003, // mov x3, #0x5000
    0x3900_0062, // strb w2, [x3]
    END,
];

/// Writes to the fourth page from MORE on.
pub const WRITE_MORE: &[u32] = &[
    0x9140_0ec3, // add x3, x22, #0x3000
    0x3900_0062, // strb w2, [x3]
    END,
];

/// Writes a byte to each of 3,000 pages from MORE on, with as many instructions between two writes as `pause` says.
pub fn write_pages(pause: u8) -> Vec<u32> {
    let mut code = vec![
        0x5281_7702, // mov w2, #3000
        0xaa16_03e3, // mov x3, x22
        0x3900_0062, // strb w2, [x3]
        0x9140_0463, // add x3, x3, #0x1000
    ];
    code.extend(std::iter::repeat_n(0xd503_201f, pause.into())); // nop
    let back = (1 << 19) - 3 - u32::from(pause);
    code.extend([0x5100_0442, 0x3500_0002 | back << 5, END]); // sub w2, w2, #1; cbnz w2 to the write
    code
}
