//! What guests of a few instructions do, on aarch64: x19 points to the serial port.

use super::HELLO;

/// What code is made of.
pub type Unit = u32;

/// Prints the text: what follows decides how the guest goes on.
pub const SAY_HELLO: &[u32] = &[
    0xd284_0001,                             // mov  x1, #TEXT
    0x5280_0002 | (HELLO.len() as u32) << 5, // mov  w2, its length
    0x3840_1420,                             // ldrb w0, [x1], #1
    0x3900_0260,                             // strb w0, [x19]
    0x7100_0442,                             // subs w2, w2, #1
    0x54ff_ffa1,                             // b.ne to the ldrb
];
/// mov w0, #0x84000000; movk w0, #8 (SYSTEM_OFF); hvc #0
pub const POWER_OFF: &[u32] = &[0x52b0_8000, 0x7280_0100, 0xd400_0002];
/// b to itself
pub const HANG: &[u32] = &[0x1400_0000];
/// mov w3, #0x10; str w3, [x19, #0x38] (interrupts of the receiver, without which it does not listen);
/// ldr w3, [x19, #0x18]; tbnz w3, #4 (nothing received), to the ldr
pub const AWAIT_KEY: &[u32] = &[0x5280_0203, 0xb900_3a63, 0xb940_1a63, 0x3727_ffe3];

/// Code as it is in memory.
pub fn bytes(code: &[u32]) -> Vec<u8> {
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}
