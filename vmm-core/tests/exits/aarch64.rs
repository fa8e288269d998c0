//! Loads and stores of a general register, and calls of the firmware that KVM is (PSCI).

use ossature_bus::Size::{B1, B2, B4, B8};
use ossature_bus::{Effect, VmRequest};
use ossature_core::{Kicker, Step, VmConfig};

use crate::guest::Seen::{Read, Write};
use crate::guest::{CODE, DATA, END, Guest, pattern, run_to_halt, start};

#[test]
fn memory_accesses_of_each_width() {
    let guest = Guest::bare(&[
        0x3940_0262, // ldrb w2, [x19]
        0x3900_4262, // strb w2, [x19, #0x10]
        0x7940_0662, // ldrh w2, [x19, #2]
        0x7900_2662, // strh w2, [x19, #0x12]
        0xb940_0662, // ldr w2, [x19, #4]
        0xb900_1662, // str w2, [x19, #0x14]
        0xf940_0662, // ldr x2, [x19, #8]
        0xf900_0e62, // str x2, [x19, #0x18]
        END,
    ]);
    assert_eq!(run_to_halt(&mut guest.vcpu(0)), 8);
    let expected = [(B1, 0), (B2, 2), (B4, 4), (B8, 8)]
        .into_iter()
        .flat_map(|(size, at)| [Read(at, size), Write(0x10 + at, size, pattern(size))]);
    assert_eq!(guest.memory.take(), expected.collect::<Vec<_>>());
}

#[test]
fn memory_that_nobody_answers_reads_all_ones_and_is_counted() {
    let guest = Guest::bare(&[
        0xb940_02c2, // ldr w2, [x22]
        0xb900_0262, // str w2, [x19]
        0xb900_02c2, // str w2, [x22]
        END,
    ]);
    let mut registers = start();
    registers.x[22] = 0xd200_0000;
    let mut vcpu = guest.vcpu_with(0, registers);
    run_to_halt(&mut vcpu);
    assert_eq!(guest.memory.take(), [Write(0, B4, 0xffff_ffff)]);
    assert_eq!(vcpu.buses().mmio.faults().unmapped, 2);
}

/// What PSCI's functions and answers are called (Arm DEN 0022).
const VERSION: u32 = 0x8400_0000;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;
const AFFINITY_INFO: u32 = 0xc400_0004;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SYSTEM_SUSPEND: u32 = 0xc400_000e;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const ON: u64 = 0;
const OFF: u64 = 1;

const HVC: u32 = 0xd400_0002; // hvc #0
const SMC: u32 = 0xd400_0003; // smc #0

/// Calls what x0 says, with x1 to x3, leaves the answer at DATA, and ends its run; again and again.
const fn calls(call: u32) -> [u32; 4] {
    [
        call,
        0xf900_0280, // str x0, [x20]
        END,
        0x17ff_fffd, // b to the start
    ]
}

/// Has vCPU 0 of `guest`, whose code is [`calls`], call; the answer.
fn call(guest: &Guest, vcpu: &mut ossature_core::Vcpu, function: u32, arguments: [u64; 3]) -> u64 {
    let mut registers = start();
    registers.x[0] = function.into();
    registers.x[1..4].copy_from_slice(&arguments);
    vcpu.set_registers(&registers).expect("registers");
    run_to_halt(vcpu);
    u64::from_le_bytes(guest.read(DATA))
}

#[test]
fn kvm_answers_calls_and_what_it_does_not_know_is_not_supported() {
    let guest = Guest::bare(&calls(HVC));
    let mut vcpu = guest.vcpu(0);
    let mut ask = |function, first| call(&guest, &mut vcpu, function, [first, 0, 0]);
    let version = ask(VERSION, 0);
    assert!((0x1_0000..0x2_0000).contains(&version), "version {version:#x}");
    // Unknown ones of the firmware, of the processor's maker, of the hypervisor, and no number at all.
    for unknown in [0x8400_7fff, 0x8000_0fff, 0x8600_fff0, 0, u32::MAX] {
        assert_eq!(ask(unknown, 0), NOT_SUPPORTED, "{unknown:#x}");
    }
    for known in [SYSTEM_OFF, SYSTEM_RESET, CPU_ON, CPU_OFF] {
        assert_eq!(ask(FEATURES, known.into()), 0, "{known:#x}");
    }
    // A suspended machine would have to be woken by somebody: none is offered.
    assert_eq!(ask(FEATURES, SYSTEM_SUSPEND.into()), NOT_SUPPORTED);
    assert_eq!(ask(SYSTEM_SUSPEND, 0), NOT_SUPPORTED);
}

#[test]
fn secure_monitor_calls_are_not_supported() {
    let guest = Guest::bare(&calls(SMC));
    let mut vcpu = guest.vcpu(0);
    for function in [0x8400_7fff, 0, u32::MAX] {
        assert_eq!(call(&guest, &mut vcpu, function, [0; 3]), NOT_SUPPORTED, "{function:#x}");
    }
}

#[test]
fn the_machine_is_asked_to_go_off_and_to_reset() {
    for (function, request) in [(SYSTEM_OFF, VmRequest::Shutdown), (SYSTEM_RESET, VmRequest::Reset)] {
        let guest = Guest::bare(&calls(HVC));
        let mut registers = start();
        registers.x[0] = function.into();
        let mut vcpu = guest.vcpu_with(0, registers);
        assert_eq!(vcpu.run_once().expect("a request"), Step::Effect(Effect::Vm(request)));
        assert!(guest.memory.take().is_empty(), "it does not go on");
    }
}

/// Where the second vCPU starts.
const SECOND: u64 = 0x3000;
/// Leaves its context at 8 of the registers, and goes off.
const LEAVE_AND_GO_OFF: &[u32] = &[
    0xd2ba_0013, // mov x19, #0xd0000000
    0xf900_0660, // str x0, [x19, #8]
    0x52b0_8000, // mov w0, #0x84000000
    0x7280_0040, // movk w0, #2
    HVC,
    0x1400_0000, // b .
];

#[test]
fn a_second_vcpu_goes_on_and_off_as_often_as_it_is_told() {
    let guest = Guest::new(VmConfig::new(2), &calls(HVC));
    guest.write(SECOND, &crate::guest::bytes(LEAVE_AND_GO_OFF));
    let (mut first, mut second) = (guest.vcpu(0), guest.vcpu(1));
    let kicker = second.kicker();
    let thread =
        std::thread::spawn(move || while second.run_once().expect("it runs") != Step::Interrupted {});
    let mut ask = |function, arguments| call(&guest, &mut first, function, arguments);
    assert_eq!(ask(AFFINITY_INFO, [1, 0, 0]), OFF);
    assert_eq!(ask(CPU_ON, [5, SECOND, 0]), INVALID_PARAMETERS, "there is none");
    assert_eq!(ask(CPU_ON, [0, SECOND, 0]), ALREADY_ON, "the one that asks");
    for context in 1..=50 {
        assert_eq!(ask(CPU_ON, [1, SECOND, context]), 0);
        while !guest.memory.seen(Write(8, B8, context)) {
            std::thread::yield_now();
        }
        while ask(AFFINITY_INFO, [1, 0, 0]) == ON {}
    }
    Kicker::kick(&kicker);
    thread.join().expect("a vCPU's thread");
}

#[test]
fn an_access_is_complete_once_the_vcpu_is_interrupted() {
    let guest = Guest::bare(&[0xb940_0662, END]); // ldr w2, [x19, #4]
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let registers = vcpu.registers().expect("registers");
    assert_eq!((registers.x[2], registers.pc), (pattern(B4), u64::from(CODE) + 8));
}
