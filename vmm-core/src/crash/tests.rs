use super::*;
use crate::arch::testing::{SHOWN, registers_at};

#[test]
fn a_crash_reads_as_reason_registers_and_code() {
    let registers = registers_at(0x1234);
    let crash = VcpuCrash {
        index: 2,
        reason: CrashReason::Emulation,
        registers: Some(registers),
        code: vec![0x0f, 0xff, 0x00],
    };
    let text = crash.to_string();
    let [first, place] = SHOWN;
    assert!(text.starts_with(&format!("vCPU 2: an instruction that KVM cannot emulate\n{first}")), "{text}");
    assert!(text.contains(place), "{text}");
    assert!(text.ends_with("\ncode 0f ff 00"), "{text}");
}

#[test]
fn what_is_not_known_is_said() {
    let reason = CrashReason::FailedEntry { hardware_reason: 0x8000_0021 };
    let crash = VcpuCrash { index: 0, reason, registers: None, code: Vec::new() };
    assert_eq!(
        crash.to_string(),
        "vCPU 0: the processor refused to enter the guest, reason 0x80000021\ncode not readable"
    );
}
