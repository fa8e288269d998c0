use super::*;
use crate::arch::testing::{SHOWN, registers_at};

#[test]
fn a_crash_reads_as_reason_registers_and_code() {
    let registers = registers_at(0x1234);
    let crash = VcpuCrash {
        index: 2,
        reason: CrashReason::Emulation,
        registers: Some(registers),
        exception: vec![("one", 1), ("two", 2), ("three", 3), ("four", 4)],
        code: vec![0x0f, 0xff, 0x00],
    };
    let text = crash.to_string();
    let [first, place] = SHOWN;
    assert!(text.starts_with(&format!("vCPU 2: an instruction that KVM cannot emulate\n{first}")), "{text}");
    assert!(text.contains(place), "{text}");
    let end = "\none 0000000000000001  two 0000000000000002  three 0000000000000003\nfour 0000000000000004\ncode 0f ff 00";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn what_is_not_known_is_said() {
    let reason = CrashReason::FailedEntry { hardware_reason: 0x8000_0021 };
    let crash = VcpuCrash { index: 0, reason, registers: None, exception: Vec::new(), code: Vec::new() };
    assert_eq!(
        crash.to_string(),
        "vCPU 0: the processor refused to enter the guest, reason 0x80000021\ncode not readable"
    );
}
