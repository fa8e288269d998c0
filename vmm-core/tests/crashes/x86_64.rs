//! Guests that cannot go on: the error says why, with registers and code.

use crate::guest::{CODE, Guest};
use ossature_core::{CrashReason, Registers, SegmentRegister, Step, Table, Vcpu, VcpuCrash, VcpuError};

fn crash(vcpu: &mut Vcpu) -> VcpuCrash {
    loop {
        match vcpu.run_once() {
            Ok(Step::Handled) => {}
            Err(VcpuError::Crash(crash)) => return *crash,
            other => panic!("{other:?}"),
        }
    }
}

/// 32-bit protected mode, flat, where each fault is one too many.
fn protected_mode_without_handlers() -> Registers {
    let real = Registers::real_mode(CODE);
    let data = SegmentRegister { selector: 16, base: 0, limit: u32::MAX, access: 0xc093 };
    let code = SegmentRegister { selector: 8, access: 0xc09b, ..data };
    let (cr0, none) = (real.cr0 | 1, Table::default());
    Registers {
        cr0,
        idt: none,
        gdt: none,
        cs: code,
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        ..real
    }
}

#[test]
fn a_triple_fault_has_registers_and_code() {
    // mov eax, 0x1234; ud2
    let guest = Guest::bare(&[0xb8, 0x34, 0x12, 0x00, 0x00, 0x0f, 0x0b]);
    let crash = crash(&mut guest.vcpu_with(0, protected_mode_without_handlers()));
    assert_eq!((crash.index, &crash.reason), (0, &CrashReason::TripleFault));
    let text = crash.to_string();
    assert!(text.starts_with("vCPU 0: triple fault\nrax"), "{text}");
    // AMD hosts reset the registers first; others leave them as they were.
    let registers = crash.registers.expect("registers");
    if registers.rip == u64::from(CODE) + 5 {
        assert_eq!(registers.rax, 0x1234);
        assert!(crash.code.starts_with(&[0x0f, 0x0b]), "{text}");
    }
}

#[test]
fn code_outside_ram_is_an_emulation_failure() {
    // jmp 0xd000:0x0000, where there is no RAM
    let guest = Guest::bare(&[0xea, 0x00, 0x00, 0x00, 0xd0]);
    let crash = crash(&mut guest.vcpu(0));
    assert_eq!(crash.reason, CrashReason::Emulation);
    let registers = crash.registers.as_ref().expect("registers");
    assert_eq!((registers.cs.base, registers.rip), (0xd_0000, 0));
    assert!(crash.to_string().ends_with("code not readable"), "{crash}");
}
