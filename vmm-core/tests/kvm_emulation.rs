//! Whether this host's KVM has the processor run its guests.
#![cfg(target_arch = "x86_64")]

use std::fs;

use ossature_core::Kvm;

#[test]
fn c5_a_kvm_without_the_processors_help_is_told_with_its_speed() {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let emulation = Kvm::open().unwrap().emulation().unwrap();
    match emulation {
        Some(_) if hardware => panic!("{emulation:?} on a processor that runs guests"),
        Some(emulation) => {
            let nanoseconds = emulation.per_instruction.as_nanos();
            // Whatever the machine does besides: no interpreter needs as little or as much.
            assert!((100..1_000_000).contains(&nanoseconds), "{nanoseconds} ns");
            assert!(emulation.to_string().contains(&format!("{nanoseconds} ns")), "{emulation}");
        }
        None => assert!(hardware, "without VMX and SVM, who runs the guests?"),
    }
}
