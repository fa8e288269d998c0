//! Exits of every size and direction, as a guest's instructions make them.

use crate::guest::Seen::{Read, Write};
use crate::guest::{DATA, Guest, MMIO, pattern, run_to_halt};
use ossature_bus::Size::{B1, B2, B4, B8};

#[test]
fn port_accesses_of_each_width() {
    let guest = Guest::bare(&[
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, 0xa1, 0xee, // mov al, 0xa1; out dx, al
        0xb8, 0xb2, 0xb1, 0xef, // mov ax, 0xb1b2; out dx, ax
        0x66, 0xb8, 0xc4, 0xc3, 0xc2, 0xc1, 0x66, 0xef, // mov eax, 0xc1c2c3c4; out dx, eax
        0xec, 0xa2, 0x00, 0x20, // in al, dx; mov [DATA], al
        0xed, 0xa3, 0x04, 0x20, // in ax, dx; mov [DATA + 4], ax
        0x66, 0xed, 0x66, 0xa3, 0x08, 0x20, // in eax, dx; mov [DATA + 8], eax
        0xf4, // hlt
    ]);
    run_to_halt(&mut guest.vcpu(0));
    let port = 0x3f8;
    assert_eq!(
        guest.ports.take(),
        [
            Write(port, B1, 0xa1),
            Write(port, B2, 0xb1b2),
            Write(port, B4, 0xc1c2_c3c4),
            Read(port, B1),
            Read(port, B2),
            Read(port, B4),
        ]
    );
    assert_eq!(guest.read(DATA), [0x11]);
    assert_eq!(u16::from_le_bytes(guest.read(DATA + 4)), pattern(B2) as u16);
    assert_eq!(u32::from_le_bytes(guest.read(DATA + 8)), pattern(B4) as u32);
}

#[test]
fn string_output_of_each_width() {
    for (size, opcode) in [(B1, &[0xf3, 0x6e][..]), (B2, &[0xf3, 0x6f]), (B4, &[0x66, 0xf3, 0x6f])] {
        let mut code = vec![
            0xba, 0x10, 0x00, // mov dx, 0x10
            0xbe, 0x00, 0x20, // mov si, DATA
            0xb9, 0x05, 0x00, // mov cx, 5
            0xfc, // cld
        ];
        code.extend_from_slice(opcode); // rep outs
        code.push(0xf4); // hlt
        let guest = Guest::bare(&code);
        let bytes: Vec<u8> = (1..=20).collect();
        guest.write(DATA, &bytes);
        run_to_halt(&mut guest.vcpu(0));
        let expected: Vec<_> = bytes
            .chunks_exact(size as usize)
            .take(5)
            .map(|element| Write(0x10, size, element.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))))
            .collect();
        assert_eq!(guest.ports.take(), expected, "{size:?}");
    }
}

#[test]
fn string_input_of_each_width() {
    for (size, opcode) in [(B1, &[0xf3, 0x6c][..]), (B2, &[0xf3, 0x6d]), (B4, &[0x66, 0xf3, 0x6d])] {
        let mut code = vec![
            0xba, 0x10, 0x00, // mov dx, 0x10
            0xbf, 0x00, 0x20, // mov di, DATA
            0xb9, 0x03, 0x00, // mov cx, 3
            0xfc, // cld
        ];
        code.extend_from_slice(opcode); // rep ins
        code.push(0xf4); // hlt
        let guest = Guest::bare(&code);
        run_to_halt(&mut guest.vcpu(0));
        // KVM reads ahead by as much as fits its buffer, never beyond the count.
        assert_eq!(guest.ports.take(), [Read(0x10, size); 3], "{size:?}");
        let element = &pattern(size).to_le_bytes()[..size as usize];
        let memory: [u8; 16] = guest.read(DATA);
        let mut expected = element.repeat(3);
        expected.resize(16, 0);
        assert_eq!(memory.as_slice(), expected, "{size:?}");
    }
}

#[test]
fn memory_accesses_of_each_width() {
    let guest = Guest::bare(&[
        0x64, 0xa0, 0x00, 0x00, // mov al, fs:[0]
        0x64, 0xa2, 0x10, 0x00, // mov fs:[0x10], al
        0x64, 0xa1, 0x02, 0x00, // mov ax, fs:[2]
        0x64, 0xa3, 0x12, 0x00, // mov fs:[0x12], ax
        0x64, 0x66, 0xa1, 0x04, 0x00, // mov eax, fs:[4]
        0x64, 0x66, 0xa3, 0x14, 0x00, // mov fs:[0x14], eax
        0x64, 0x0f, 0x6f, 0x06, 0x08, 0x00, // movq mm0, fs:[8]
        0x64, 0x0f, 0x7f, 0x06, 0x18, 0x00, // movq fs:[0x18], mm0
        0xf4, // hlt
    ]);
    run_to_halt(&mut guest.vcpu(0));
    let expected = [(B1, 0), (B2, 2), (B4, 4), (B8, 8)]
        .into_iter()
        .flat_map(|(size, at)| [Read(MMIO + at, size), Write(MMIO + 0x10 + at, size, pattern(size))]);
    let offset = |seen| match seen {
        Read(at, size) => Read(at - MMIO, size),
        Write(at, size, value) => Write(at - MMIO, size, value),
    };
    assert_eq!(guest.memory.take(), expected.map(offset).collect::<Vec<_>>());
}

#[test]
fn memory_that_nobody_answers_reads_all_ones_and_is_counted() {
    let guest = Guest::bare(&[
        0x64, 0x66, 0xa1, 0x00, 0x20, // mov eax, fs:[0x2000]
        0x66, 0xe7, 0x10, // out 0x10, eax
        0x64, 0x66, 0xa3, 0x00, 0x20, // mov fs:[0x2000], eax
        0xf4, // hlt
    ]);
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    assert_eq!(guest.ports.take(), [Write(0x10, B4, 0xffff_ffff)]);
    assert_eq!(vcpu.buses().mmio.faults().unmapped, 2);
    assert!(guest.memory.take().is_empty());
}
