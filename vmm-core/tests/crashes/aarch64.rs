//! What KVM does not carry out is told with all that helps to find out why.

use ossature_core::{CrashReason, Step, VcpuCrash, VcpuError};

use crate::guest::{CODE, Guest, MMIO, start};

fn crash_of(code: &[u32]) -> VcpuCrash {
    let guest = Guest::bare(code);
    let mut vcpu = guest.vcpu(0);
    loop {
        match vcpu.run_once() {
            Ok(Step::Handled) => {}
            Err(VcpuError::Crash(crash)) => return *crash,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_access_that_the_processor_does_not_decode_is_told_with_its_address_and_instruction() {
    let instructions = [
        0xa940_0e62_u32, // ldp x2, x3, [x19]
        0xa900_0e62,     // stp x2, x3, [x19]
        0xf840_8662,     // ldr x2, [x19], #8
    ];
    for instruction in instructions {
        let crash = crash_of(&[0xd503_201f, instruction]); // nop first
        let CrashReason::UndecodedAccess { address, .. } = crash.reason else { panic!("{crash}") };
        assert_eq!((crash.index, address), (0, MMIO));
        assert_eq!(crash.registers.map(|registers| registers.pc), Some(u64::from(CODE) + 4));
        assert_eq!(crash.code, instruction.to_le_bytes());
        let text = crash.to_string();
        assert!(
            text.starts_with("vCPU 0: an access to 0xd0000000 by an instruction that the processor"),
            "{text}"
        );
        assert!(text.contains("\nx0  ") && text.contains("\nesr_el1 "), "{text}");
    }
}

#[test]
fn the_last_exception_is_told() {
    let code = [
        0xd518_c014, // msr vbar_el1, x20
        0xd503_3fdf, // isb
        0xd420_00e0, // brk #7
    ];
    let guest = Guest::bare(&code);
    // The vector of exceptions of the level that runs is at 0x200 of the table: ldp x2, x3, [x19].
    let vectors = 0x8000;
    guest.write(vectors + 0x200, &0xa940_0e62_u32.to_le_bytes());
    let mut registers = start();
    registers.x[20] = vectors;
    let crash = match guest.vcpu_with(0, registers).run_once() {
        Err(VcpuError::Crash(crash)) => crash,
        other => panic!("{other:?}"),
    };
    let value = |name| crash.exception.iter().find(|(known, _)| *known == name).expect("a register").1;
    // The class of BRK is 0x3c, of an instruction of 32 bits, with its number.
    assert_eq!(value("esr_el1"), 0x3c << 26 | 1 << 25 | 7);
    assert_eq!(value("elr_el1"), u64::from(CODE) + 8);
    assert_eq!(value("spsr_el1") & 0x3cf, 0x3c5);
    assert_eq!(value("vbar_el1"), vectors);
    assert!(crash.exception.iter().any(|(name, _)| *name == "far_el1"));
    assert_eq!(crash.registers.expect("registers").pc, vectors + 0x200);
    assert_eq!(crash.code, 0xa940_0e62_u32.to_le_bytes());
}
