//! Interrupts by the GIC.

use std::sync::Arc;

use ossature_bus::Size::B4;
use ossature_bus::{Event, MsiMessage};
use ossature_core::machine::{Machine, Outcome};
use ossature_core::{Kvm, Step, VmConfig};
use ossature_memory::vm_memory::GuestAddress;

use crate::guest::Seen::Write;
use crate::guest::{DATA, Guest, bytes, machine, start};
use crate::run;

/// The line that is used, as the GIC numbers it: its lines for devices begin at 32.
const LINE: u32 = 5;
const INTERRUPT: u64 = 37;

/// The GIC's distributor on, all of the first lines for devices enabled and line 5 edge-triggered; its processor interface
/// on; vectors at 0x8000.
const SET_UP: &[u32] = &[
    0xd2be_0000, // mov x0, #0xf0000000
    0x5280_0241, // mov w1, #0x12
    0xb900_0001, // str w1, [x0]: GICD_CTLR
    0x1280_0001, // mov w1, #-1
    0xb900_8401, // str w1, [x0, #0x84]: GICD_IGROUPR1
    0x5281_0001, // mov w1, #0x800
    0xb90c_0801, // str w1, [x0, #0xc08]: GICD_ICFGR2
    0x1280_0001, // mov w1, #-1
    0xb901_0401, // str w1, [x0, #0x104]: GICD_ISENABLER1
    0xd280_1fe1, // mov x1, #0xff
    0xd518_4601, // msr icc_pmr_el1, x1
    0xd280_0021, // mov x1, #1
    0xd518_cce1, // msr icc_igrpen1_el1, x1
    0xd290_0001, // mov x1, #0x8000
    0xd518_c001, // msr vbar_el1, x1
    0xd503_3fdf, // isb
    0xb900_067f, // str wzr, [x19, #4]: ready
    0xd503_42ff, // msr daifclr, #2
    0xd503_207f, // wfi
    0x17ff_ffff, // b to it
];
/// The same with a GICv2, whose interface is in memory; line 5 goes to the first processor.
const SET_UP_V2: &[u32] = &[
    0xd2be_0000, // mov x0, #0xf0000000
    0x5280_0021, // mov w1, #1
    0xb900_0001, // str w1, [x0]: GICD_CTLR
    0x5280_2021, // mov w1, #0x101
    0x72a0_2021, // movk w1, #0x101, lsl #16
    0xb908_2401, // str w1, [x0, #0x824]: GICD_ITARGETSR9
    0x5281_0001, // mov w1, #0x800
    0xb90c_0801, // str w1, [x0, #0xc08]: GICD_ICFGR2
    0x1280_0001, // mov w1, #-1
    0xb901_0401, // str w1, [x0, #0x104]: GICD_ISENABLER1
    0xd2be_0020, // mov x0, #0xf0010000
    0x5280_1fe1, // mov w1, #0xff
    0xb900_0401, // str w1, [x0, #4]: GICC_PMR
    0x5280_0021, // mov w1, #1
    0xb900_0001, // str w1, [x0]: GICC_CTLR
    0xd290_0001, // mov x1, #0x8000
    0xd518_c001, // msr vbar_el1, x1
    0xd503_3fdf, // isb
    0xb900_067f, // str wzr, [x19, #4]: ready
    0xd503_42ff, // msr daifclr, #2
    0xd503_207f, // wfi
    0x17ff_ffff, // b to it
];
/// Where the vector of interrupts of the level that runs is.
const VECTOR: u64 = 0x8280;
/// Says which interrupt it is.
const HANDLE: &[u32] = &[
    0xd538_cc01, // mrs x1, icc_iar1_el1
    0xb900_0261, // str w1, [x19]
    0xd518_cc21, // msr icc_eoir1_el1, x1
    0xd69f_03e0, // eret
];

/// The same with a GICv2.
const HANDLE_V2: &[u32] = &[
    0xb940_0c01, // ldr w1, [x0, #0xc]: GICC_IAR
    0xb900_0261, // str w1, [x19]
    0xb900_1001, // str w1, [x0, #0x10]: GICC_EOIR
    0xd69f_03e0, // eret
];

/// A guest that says which interrupts it has, by the interrupt controller that the host offers.
fn guest_of_interrupts() -> Guest {
    let guest = Guest::new(VmConfig::default(), SET_UP);
    if guest.vm.has_messages() {
        guest.write(VECTOR, &bytes(HANDLE));
        return guest;
    }
    let guest = Guest::new(VmConfig::default(), SET_UP_V2);
    guest.write(VECTOR, &bytes(HANDLE_V2));
    guest
}

#[test]
fn a_message_has_a_route_or_is_refused_by_name() {
    let guest = Guest::new(VmConfig::default(), SET_UP);
    let message = MsiMessage::new(0xf003_0040, 0);
    match guest.vm.add_msi_route(message) {
        Ok(_) => assert!(guest.vm.has_messages()),
        Err(error) => {
            assert!(!guest.vm.has_messages());
            assert!(error.to_string().contains("needs a GICv3"), "{error}");
        }
    }
}

#[test]
fn an_irqfd_and_a_call_raise_an_edge_each() {
    let guest = guest_of_interrupts();
    let event = Arc::new(Event::new().expect("an eventfd"));
    let _line = guest.vm.irqfd(&event, LINE, None).expect("an irqfd");
    let vcpu = guest.vcpu(0);
    let kicker = vcpu.kicker();
    let (seen, thread) = run(vcpu);
    assert_eq!(seen.recv().expect("the guest is ready"), Step::Handled);
    assert_eq!(guest.memory.take(), [Write(4, B4, 0)]);
    for n in 0..100 {
        if n % 2 == 0 {
            event.signal().expect("a signal");
        } else {
            guest.vm.raise_edge(LINE).expect("an edge");
        }
        assert_eq!(seen.recv().expect("an interrupt"), Step::Handled);
        assert_eq!(guest.memory.take(), [Write(0, B4, INTERRUPT)]);
    }
    kicker.kick();
    thread.join().expect("the vCPU's thread");
}

#[test]
fn registers_read_as_they_were_set_whether_or_not_the_guest_has_run() {
    let code = [
        0x0b03_0042, // add w2, w2, w3
        0xb900_0262, // str w2, [x19]
        0x17ff_fffe, // b to the start
    ];
    let guest = Guest::new(VmConfig::new(2), &code);
    let mut set = start();
    (set.x[2], set.x[3], set.sp) = (1, 7, 0x8000);
    for index in [1, 0] {
        let mut vcpu = guest.vcpu(index);
        vcpu.set_registers(&set).expect("registers");
        assert_eq!(vcpu.registers().expect("registers"), set, "vCPU {index}");
        // Back to what a reset leaves: each that is to be so again is written, too.
        vcpu.set_registers(&start()).expect("registers");
        assert_eq!(vcpu.registers().expect("registers"), start(), "vCPU {index}");
        vcpu.set_registers(&set).expect("registers");
        if index == 0 {
            assert_eq!(vcpu.run_once().expect("an exit"), Step::Handled);
            assert_eq!(guest.memory.take(), [Write(0, B4, 8)]);
            vcpu.kicker().kick();
            assert_eq!(vcpu.run_once().expect("an interruption"), Step::Interrupted);
            let mut after = vcpu.registers().expect("registers");
            assert_eq!((after.x[2], after.pc), (8, set.pc + 8));
            after.x[2] = 0x20;
            vcpu.set_registers(&after).expect("registers");
            assert_eq!(vcpu.run_once().expect("an exit"), Step::Handled);
            assert_eq!(guest.memory.take(), [Write(0, B4, 0x27)]);
        }
    }
}

const VCPUS: u64 = 8;
/// Starts the other vCPUs by PSCI. Each counts up 64 bits of its own, from DATA on, at which its context points.
const START_ALL: &[u32] = &[
    0xd280_0039, // mov x25, #1
    0x52b8_8000, // mov w0, #0xc4000000
    0x7280_0060, // movk w0, #3: CPU_ON
    0xaa19_03e1, // mov x1, x25
    0xd282_0682, // mov x2, #0x1034
    0x8b19_0e83, // add x3, x20, x25, lsl #3
    0xd400_0002, // hvc #0
    0x9100_0739, // add x25, x25, #1
    0xf100_233f, // cmp x25, #8
    0x54ff_ff01, // b.ne to the first mov to w0
    0xaa14_03e0, // mov x0, x20
    0xd282_0682, // mov x2, #0x1034
    0xd61f_0040, // br x2
    0xf940_0002, // ldr x2, [x0]: this is at 0x1034
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0x17ff_fffd, // b to the ldr
];

#[test]
fn many_vcpus_are_started_paused_and_go_on_together() {
    let machine =
        machine("many", START_ALL).cpus(VCPUS as u32).build(&Kvm::open().expect("KVM")).expect("a machine");
    machine.start().expect("a start");
    let counts = |machine: &Machine| -> Vec<u64> {
        let count = |n| machine.ram().dma().read_obj(GuestAddress(DATA + 8 * n)).expect("RAM");
        (0..VCPUS).map(count).collect()
    };
    for _ in 0..20 {
        let before = counts(&machine);
        while counts(&machine).iter().zip(&before).any(|(now, before)| now == before) {
            assert_eq!(machine.outcome(), None);
            std::thread::yield_now();
        }
        let paused = machine.pause().expect("a pause");
        let stopped = counts(&machine);
        for index in 0..VCPUS as u32 {
            let registers = paused.vcpus().registers(index).expect("registers");
            assert_eq!(registers.x[0], DATA + 8 * u64::from(index));
        }
        assert_eq!(counts(&machine), stopped);
        paused.resume().expect("a resume");
    }
    assert_eq!(machine.stop().expect("a stop"), Outcome::Stopped);
}
