//! A program for the guest that writes one byte to the boot timer's port: Debian's cloud kernel has no `/dev/port`.

/// The port of the boot timer.
const PORT: u16 = 0x3f0;
/// Where the file is in the program's memory.
const BASE: u64 = 0x40_0000;
/// The sizes of an ELF file's header and of one program header.
const HEADERS: u64 = 64 + 56;

/// A static ELF program (System V ABI, "Object files") that writes `value`.
pub fn program(value: u8) -> Vec<u8> {
    let [low, high] = PORT.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb8, 173, 0, 0, 0,             // mov eax, ioperm
        0xbf, low, high, 0, 0,          // mov edi, PORT
        0xbe, 1, 0, 0, 0,               // mov esi, 1
        0xba, 1, 0, 0, 0,               // mov edx, 1
        0x0f, 0x05,                     // syscall
        0x89, 0xc7,                     // mov edi, eax: the exit code
        0x85, 0xc0,                     // test eax, eax
        0x75, 7,                        // jnz over the next three
        0x66, 0xba, low, high,          // mov dx, PORT
        0xb0, value,                    // mov al, value
        0xee,                           // out dx, al
        0xb8, 60, 0, 0, 0,              // mov eax, exit
        0x0f, 0x05,                     // syscall
    ];
    let size = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // The header: an executable for x86-64, where it starts, one program header, no sections.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&(BASE + HEADERS).to_le_bytes());
    put(&64_u64.to_le_bytes());
    put(&[0; 12]);
    put(&[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // The program header: load the whole file, readable and executable.
    put(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [0, BASE, BASE, size, size, 4096] {
        put(&field.to_le_bytes());
    }
    put(&code);
    file
}
