//! Files of a firmware configuration device, read by a guest of a few instructions: by DMA, which Linux uses for nothing
//! that it reads, and by a string instruction.

mod cli;

use std::fs;
use std::process::Command;

use cli::{Files, X86_64, kernel, microvm, run};

/// mov dword [AT], VALUE
fn store(at: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x04, 0x25], &at.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

/// mov dx, PORT
fn port(port: u16) -> Vec<u8> {
    [&[0x66, 0xba], &port.to_le_bytes()[..]].concat()
}

/// mov esi or edi, AT; mov ecx, COUNT; mov dx, PORT; rep outsb or insb
fn string(register: u8, at: u32, count: u32, to: u16, instruction: u8) -> Vec<u8> {
    let registers = [&[register], &at.to_le_bytes()[..], &[0xb9], &count.to_le_bytes()].concat();
    [registers, port(to), vec![0xf3, instruction]].concat()
}

fn print(at: u32, count: u32) -> Vec<u8> {
    string(0xbe, at, count, 0x3f8, 0x6e)
}

#[test]
fn a_guest_reads_a_file_by_dma_and_by_a_string_instruction() {
    const REQUEST: u32 = 0x2_0000;
    const TO: u32 = 0x2_0100;
    let big = u32::swap_bytes;
    let code = [
        // Select the first file, read ten bytes.
        store(REQUEST, big(0x20 << 16 | 1 << 3 | 1 << 1)),
        store(REQUEST + 4, big(10)),
        store(REQUEST + 8, 0),
        store(REQUEST + 12, big(TO)),
        port(0x518),
        [&[0xb8], &big(REQUEST).to_le_bytes()[..], &[0xef]].concat(), // mov eax, REQUEST; out dx, eax
        print(REQUEST, 4),
        print(TO, 10),
        // The second one, by the traditional interface.
        port(0x510),
        vec![0x66, 0xb8, 0x21, 0x00, 0x66, 0xef], // mov ax, 0x21; out dx, ax
        string(0xbf, TO, 7, 0x511, 0x6c),
        print(TO, 7),
        // Power off by ACPI.
        port(0x600),
        vec![0xb0, 0x34, 0xee, 0xf4],
    ];
    let files = Files::new();
    let kernel = files.with("guest", &kernel(X86_64, &code.concat()));
    let second = files.with("second", b"\xff\0 file");
    let output = files.with("output", b"");
    let mut command = Command::new(microvm());
    command.args(["--memory", "16M", "--kernel", &kernel, "--serial", &format!("file={output}")]);
    command.args(["--fw-cfg", "name=opt/a,string=by DMA"]);
    command.args(["--fw-cfg", &format!("name=opt/b,file={second}")]);
    let (code, text) = run(&mut command);
    assert_eq!(code, 0, "{text}");
    assert_eq!(fs::read(&output).unwrap(), b"\0\0\0\0by DMA\0\0\0\0\xff\0 file");
}
