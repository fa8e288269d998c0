//! Loads and stores of a general register, and calls of the firmware that KVM is (PSCI).

use std::thread;
use std::time::Duration;

use ossature_bus::Size::{B1, B2, B4, B8};
use ossature_bus::{Effect, VmRequest};
use ossature_core::{Kicker, Registers, Step, Vcpu, VcpuState, VmConfig, VmState};

use crate::guest::Seen::{Read, Write};
use crate::guest::{CODE, DATA, END, Guest, MMIO, SPIN, bytes, pattern, run_to_halt, start};

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
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;
const AFFINITY_INFO: u32 = 0xc400_0004;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SYSTEM_SUSPEND_32: u32 = 0x8400_000e;
const SYSTEM_SUSPEND: u32 = 0xc400_000e;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const INVALID_ADDRESS: u64 = -9_i64 as u64;
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
fn call(guest: &Guest, vcpu: &mut Vcpu, function: u32, arguments: [u64; 3]) -> u64 {
    set_call(vcpu, function, arguments);
    run_to_halt(vcpu);
    u64::from_le_bytes(guest.read(DATA))
}

/// Has a vCPU whose code is [`calls`] call next.
fn set_call(vcpu: &mut Vcpu, function: u32, arguments: [u64; 3]) {
    let mut registers = start();
    registers.x[0] = function.into();
    registers.x[1..4].copy_from_slice(&arguments);
    vcpu.set_registers(&registers).expect("registers");
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
    for known in [SYSTEM_OFF, SYSTEM_RESET, CPU_ON, CPU_OFF, CPU_SUSPEND, SYSTEM_SUSPEND, SYSTEM_SUSPEND_32] {
        assert_eq!(ask(FEATURES, known.into()), 0, "{known:#x}");
    }
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
    guest.write(SECOND, &bytes(LEAVE_AND_GO_OFF));
    let (mut first, mut second) = (guest.vcpu(0), guest.vcpu(1));
    let kicker = second.kicker();
    let thread = thread::spawn(move || while second.run_once().expect("it runs") != Step::Interrupted {});
    let mut ask = |function, arguments| call(&guest, &mut first, function, arguments);
    assert_eq!(ask(AFFINITY_INFO, [1, 0, 0]), OFF);
    assert_eq!(ask(CPU_ON, [5, SECOND, 0]), INVALID_PARAMETERS, "there is none");
    assert_eq!(ask(CPU_ON, [0, SECOND, 0]), ALREADY_ON, "the one that asks");
    for context in 1..=50 {
        assert_eq!(ask(CPU_ON, [1, SECOND, context]), 0);
        while !guest.memory.seen(Write(8, B8, context)) {
            thread::yield_now();
        }
        while ask(AFFINITY_INFO, [1, 0, 0]) == ON {}
    }
    Kicker::kick(&kicker);
    thread.join().expect("a vCPU's thread");
}

/// Where what sets the GIC up is, and where a suspended vCPU goes on.
const SET_UP: u64 = 0x4000;
const WOKEN: u64 = 0x5000;
/// A line for devices, level-triggered: pending while it is asserted.
const LINE: u32 = 5;

/// Has the lines for devices reach the processor, where they stay masked; leaves the counter at 0x10 of the registers.
const SET_UP_V3: &[u32] = &[
    0xd2be_0016, // mov x22, #0xf0000000
    0x5280_0242, // mov w2, #0x12
    0xb900_02c2, // str w2, [x22]: GICD_CTLR
    0x1280_0002, // mov w2, #-1
    0xb900_86c2, // str w2, [x22, #0x84]: GICD_IGROUPR1
    0xb90c_0adf, // str wzr, [x22, #0xc08]: GICD_ICFGR2
    0xb901_06c2, // str w2, [x22, #0x104]: GICD_ISENABLER1
    0xd280_1fe2, // mov x2, #0xff
    0xd518_4602, // msr icc_pmr_el1, x2
    0xd280_0022, // mov x2, #1
    0xd518_cce2, // msr icc_igrpen1_el1, x2
    0xd53b_e042, // mrs x2, cntvct_el0
    0xf900_0a62, // str x2, [x19, #0x10]
    END,
];
/// The same with a GICv2.
const SET_UP_V2: &[u32] = &[
    0xd2be_0016, // mov x22, #0xf0000000
    0x5280_0022, // mov w2, #1
    0xb900_02c2, // str w2, [x22]: GICD_CTLR
    0x5280_2022, // mov w2, #0x101
    0x72a0_2022, // movk w2, #0x101, lsl #16
    0xb908_26c2, // str w2, [x22, #0x824]: GICD_ITARGETSR9
    0x1280_0002, // mov w2, #-1
    0xb90c_0adf, // str wzr, [x22, #0xc08]: GICD_ICFGR2
    0xb901_06c2, // str w2, [x22, #0x104]: GICD_ISENABLER1
    0xd2be_0037, // mov x23, #0xf0010000
    0x5280_1fe2, // mov w2, #0xff
    0xb900_06e2, // str w2, [x23, #4]: GICC_PMR
    0x5280_0022, // mov w2, #1
    0xb900_02e2, // str w2, [x23]: GICC_CTLR
    0xd53b_e042, // mrs x2, cntvct_el0
    0xf900_0a62, // str x2, [x19, #0x10]
    END,
];
/// Leaves its context at 8 of the registers, the counter and SCTLR_EL1 behind it, and ends its run.
const TELL: &[u32] = &[
    0xd2ba_0013, // mov x19, #0xd0000000
    0xd2ba_2015, // mov x21, #0xd1000000
    0xf900_0660, // str x0, [x19, #8]
    0xd53b_e041, // mrs x1, cntvct_el0
    0xf900_0a61, // str x1, [x19, #0x10]
    0xd538_1001, // mrs x1, sctlr_el1
    0xf900_0e61, // str x1, [x19, #0x18]
    END,
];

/// A guest that calls, that can be woken, and whose first vCPU may have run; and the counter then.
fn guest_that_suspends(cpus: u32) -> (Guest, Vcpu, u64) {
    let guest = Guest::new(VmConfig::new(cpus), &calls(HVC));
    guest.write(SET_UP, &bytes(if guest.vm.has_messages() { SET_UP_V3 } else { SET_UP_V2 }));
    guest.write(WOKEN, &bytes(TELL));
    let mut vcpu = guest.vcpu_with(0, Registers { pc: SET_UP, ..start() });
    run_to_halt(&mut vcpu);
    let counter = match guest.memory.take()[..] {
        [Write(0x10, B8, counter)] => counter,
        ref other => panic!("{other:?}"),
    };
    (guest, vcpu, counter)
}

/// What a vCPU that is woken tells: its context, the counter and SCTLR_EL1.
#[track_caller]
fn told(guest: &Guest) -> [u64; 3] {
    match guest.memory.take()[..] {
        [Write(8, B8, context), Write(0x10, B8, counter), Write(0x18, B8, sctlr)] => {
            [context, counter, sctlr]
        }
        ref other => panic!("{other:?}"),
    }
}

/// Kicks a vCPU while it waits in the kernel.
#[track_caller]
fn waits(vcpu: &mut Vcpu) {
    let kicker = vcpu.kicker();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(vcpu.run_once().expect("a vCPU that waits"), Step::Interrupted);
    thread.join().expect("who kicks");
}

#[test]
fn a_suspended_vcpu_waits_for_an_interrupt_and_goes_on_at_its_entry() {
    let (guest, mut vcpu, mut before) = guest_that_suspends(1);
    let context = 0x1234_5678_9abc_def0;
    for (function, seen) in [(SYSTEM_SUSPEND, context), (SYSTEM_SUSPEND_32, context & 0xffff_ffff)].repeat(10)
    {
        set_call(&mut vcpu, function, [WOKEN, context, 0]);
        assert_eq!(vcpu.run_once().expect("it suspends"), Step::Handled);
        let mut entry = Registers::el1(WOKEN);
        entry.x[0] = seen;
        for _ in 0..3 {
            waits(&mut vcpu);
            assert_eq!(vcpu.registers().expect("registers"), entry);
        }
        guest.vm.set_irq_line(LINE, true).expect("a line");
        assert_eq!(vcpu.run_once().expect("it wakes"), Step::Handled);
        run_to_halt(&mut vcpu);
        guest.vm.set_irq_line(LINE, false).expect("a line");
        let [found, counter, _] = told(&guest);
        assert_eq!(found, seen);
        // As many ticks as there are in a minute of a counter of 1 GHz.
        assert!((before..before + 60_000_000_000).contains(&counter), "{before}, {counter}");
        before = counter;
    }
    // One that is pending already.
    guest.vm.set_irq_line(LINE, true).expect("a line");
    set_call(&mut vcpu, SYSTEM_SUSPEND, [WOKEN, 7, 0]);
    run_to_halt(&mut vcpu);
    assert_eq!(told(&guest)[0], 7);
}

#[test]
fn a_suspended_vcpu_keeps_its_byte_order() {
    let (guest, mut vcpu, _) = guest_that_suspends(1);
    guest.vm.set_irq_line(LINE, true).expect("a line");
    set_call(&mut vcpu, SYSTEM_SUSPEND, [WOKEN, 0, 0]);
    run_to_halt(&mut vcpu);
    let [_, _, little] = told(&guest);
    let turn = [
        0xd538_1003, // mrs x3, sctlr_el1
        0xb267_0063, // orr x3, x3, #0x2000000
        0xd518_1003, // msr sctlr_el1, x3
        0xd503_3fdf, // isb
        HVC,
    ];
    guest.write(CODE.into(), &bytes(&turn));
    set_call(&mut vcpu, SYSTEM_SUSPEND, [WOKEN, 0, 0]);
    run_to_halt(&mut vcpu);
    // Devices see what the processor writes, in another order.
    assert_eq!(told(&guest)[2].swap_bytes(), little | 1 << 25);
}

#[test]
fn a_suspended_vcpu_is_saved_and_wakes_elsewhere_and_is_reset() {
    let (guest, mut vcpu, _) = guest_that_suspends(1);
    set_call(&mut vcpu, SYSTEM_SUSPEND, [WOKEN, 7, 0]);
    assert_eq!(vcpu.run_once().expect("it suspends"), Step::Handled);
    waits(&mut vcpu);
    let machine = VmState::from_saved(&guest.vm.state().expect("a state").to_saved()).expect("its own bytes");
    let state = VcpuState::from_saved(&vcpu.state().expect("a state").to_saved()).expect("its own bytes");

    let (other, mut woken, _) = guest_that_suspends(1);
    other.vm.set_state(&machine).expect("the other's state");
    woken.set_state(&state).expect("the other's state");
    waits(&mut woken);
    other.vm.set_irq_line(LINE, true).expect("a line");
    run_to_halt(&mut woken);
    assert_eq!(told(&other)[0], 7);

    waits(&mut vcpu);
    vcpu.reset().expect("a reset");
    let version = call(&guest, &mut vcpu, VERSION, [0; 3]);
    assert!((0x1_0000..0x2_0000).contains(&version), "it runs: {version:#x}");
}

#[test]
fn a_suspension_with_an_entry_that_is_no_code_is_refused() {
    let (guest, mut vcpu, _) = guest_that_suspends(1);
    for entry in [WOKEN + 1, WOKEN + 2, 0x1_0000, MMIO, u64::MAX - 3, u64::MAX] {
        assert_eq!(call(&guest, &mut vcpu, SYSTEM_SUSPEND, [entry, 0, 0]), INVALID_ADDRESS, "{entry:#x}");
    }
}

#[test]
fn another_vcpu_goes_on_while_one_is_suspended() {
    let (guest, mut first, _) = guest_that_suspends(2);
    guest.write(SECOND, &bytes(SPIN));
    let mut second = guest.vcpu(1);
    let kicker = second.kicker();
    let runs = thread::spawn(move || {
        while second.run_once().expect("it runs") != Step::Interrupted {}
        second
    });
    assert_eq!(call(&guest, &mut first, CPU_ON, [1, SECOND, 0]), 0);
    set_call(&mut first, SYSTEM_SUSPEND, [WOKEN, 7, 0]);
    assert_eq!(first.run_once().expect("it suspends"), Step::Handled);
    waits(&mut first);
    kicker.kick();
    let second = runs.join().expect("a vCPU's thread");
    let pc = second.registers().expect("registers").pc;
    assert!((SECOND..SECOND + bytes(SPIN).len() as u64).contains(&pc), "{pc:#x}");
    guest.vm.set_irq_line(LINE, true).expect("a line");
    run_to_halt(&mut first);
    assert_eq!(told(&guest)[0], 7);
}

#[test]
fn a_vcpu_that_waits_by_a_call_goes_on_behind_it() {
    let (guest, mut vcpu, _) = guest_that_suspends(1);
    for _ in 0..3 {
        set_call(&mut vcpu, CPU_SUSPEND, [0; 3]);
        waits(&mut vcpu);
        guest.vm.set_irq_line(LINE, true).expect("a line");
        run_to_halt(&mut vcpu);
        assert_eq!(guest.read(DATA), [0; 8]);
        assert_eq!(call(&guest, &mut vcpu, CPU_SUSPEND, [0; 3]), 0, "it is pending");
        guest.vm.set_irq_line(LINE, false).expect("a line");
    }
}

#[test]
fn an_access_is_complete_once_the_vcpu_is_interrupted() {
    let guest = Guest::bare(&[0xb940_0662, END]); // ldr w2, [x19, #4]
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let registers = vcpu.registers().expect("registers");
    assert_eq!((registers.x[2], registers.pc), (pattern(B4), u64::from(CODE) + 8));
}
