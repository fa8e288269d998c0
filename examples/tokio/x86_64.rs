//! What guests of a few instructions do, on x86_64.

use super::HELLO;

/// What code is made of.
pub type Unit = u8;

/// Prints the text, after opening the port: what follows decides how the guest goes on.
pub const SAY_HELLO: &[u8] = &[
    0xba,
    0xfc,
    0x03,
    0xb0,
    0x03,
    0xee, // mov dx, 0x3fc; mov al, DTR and RTS; out dx, al
    0xba,
    0xf8,
    0x03,
    0xbe,
    0x00,
    0x20, // mov dx, 0x3f8; mov si, TEXT
    0xb9,
    HELLO.len() as u8,
    0x00,
    0xf3,
    0x6e, // mov cx, its length; rep outsb
];
/// mov dx, 0x600; mov al, S5; out dx, al
pub const POWER_OFF: &[u8] = &[0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
/// jmp to itself
pub const HANG: &[u8] = &[0xeb, 0xfe];
/// mov dx, 0x3fd; in al, dx; test al, data ready; jz to the in
pub const AWAIT_KEY: &[u8] = &[0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb];

/// Code as it is in memory.
pub fn bytes(code: &[u8]) -> Vec<u8> {
    code.to_vec()
}
