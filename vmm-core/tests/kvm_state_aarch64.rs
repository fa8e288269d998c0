//! States of vCPUs and of the GIC on aarch64: saved, reset, restored, refused.
#![cfg(target_arch = "aarch64")]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests, too, may panic

mod guest;

use std::thread;
use std::time::{Duration, Instant};

use guest::Seen::Write;
use guest::{COUNT, DATA, END, Guest, Seen, complete, counter, halts, start};
use ossature_bus::Device;
use ossature_bus::Size::B4;
use ossature_bus::state::{Encoder, Field};
use ossature_core::machine::{ForkPlan, GuestClock, Machine, Outcome, Snapshot};
use ossature_core::{Hypervisor, Kvm, Registers, Step, Vcpu, VcpuState, VmConfig, VmError, VmState};
use ossature_legacy::{GenerationId, VmGenId};

const LIMIT: Duration = Duration::from_secs(120);
const MPIDR_EL1: u64 = 0x6030_0000_0013_c005;
const ID_AA64PFR0_EL1: u64 = 0x6030_0000_0013_c020;
const TPIDR_EL1: u64 = 0x6030_0000_0013_c684;
const CNTVCT_EL0: u64 = 0x6030_0000_0013_df1a;

/// As the guests' own, of a vCPU that may leave at once because a state was set.
fn run_to_halt(vcpu: &mut Vcpu) {
    loop {
        match vcpu.run_once().expect("a guest that ends its run") {
            Step::Handled | Step::Interrupted => {}
            step if halts(step) => return complete(vcpu),
            step => panic!("{step:?}"),
        }
    }
}

/// Sets a register, a system register and a vector; ends its run; tells what they are and clears them; ends its run.
const SET_AND_TELL: &[u32] = &[
    0xd2a0_0603, // mov x3, #0x300000
    0xd518_1043, // msr cpacr_el1, x3: vectors may be used
    0xd503_3fdf, // isb
    0x528a_cf02, // mov w2, #0x5678
    0x72a2_4682, // movk w2, #0x1234, lsl #16
    0xd518_d082, // msr tpidr_el1, x2
    0x3dc0_0680, // ldr q0, [x20, #16]
    END,
    0xb900_0262, // str w2, [x19]
    0xd538_d083, // mrs x3, tpidr_el1
    0xb900_0263, // str w3, [x19]
    0x3d80_0280, // str q0, [x20]
    0x5280_0002, // mov w2, #0
    0xd518_d09f, // msr tpidr_el1, xzr
    0x6f00_e400, // movi v0.2d, #0
    END,
];
const VECTOR: [u8; 16] = *b"all of a vector.";
const TOLD: [Seen; 2] = [Write(0, B4, 0x1234_5678), Write(0, B4, 0x1234_5678)];

#[test]
fn a_guest_goes_on_where_its_state_was_taken() {
    let guest = Guest::new(VmConfig::default(), SET_AND_TELL);
    guest.write(DATA + 16, &VECTOR);
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let state = vcpu.state().expect("a state");
    for _ in 0..10 {
        guest.write(DATA, &[0; 16]);
        run_to_halt(&mut vcpu);
        assert_eq!((guest.memory.take(), guest.read(DATA)), (TOLD.to_vec(), VECTOR));
        vcpu.set_state(&state).expect("the state before");
    }
}

#[test]
fn a_state_is_taken_over_by_another_machine() {
    let first = Guest::new(VmConfig::default(), SET_AND_TELL);
    first.write(DATA + 16, &VECTOR);
    let mut vcpu = first.vcpu(0);
    run_to_halt(&mut vcpu);
    let state = vcpu.state().expect("a state");
    let second = Guest::new(VmConfig::default(), SET_AND_TELL);
    let mut vcpu = second.vcpu(0);
    let saved = VcpuState::from_saved(&state.to_saved()).expect("its own bytes");
    assert_eq!(saved, state);
    let machine = VmState::from_saved(&first.vm.state().expect("a state").to_saved()).expect("its own bytes");
    second.vm.set_state(&machine).expect("the other's state");
    vcpu.set_state(&saved).expect("the other's state");
    run_to_halt(&mut vcpu);
    assert_eq!((second.memory.take(), second.read(DATA)), (TOLD.to_vec(), VECTOR));
}

/// With SVE: loads two vectors, a predicate and the first-fault register, tells how long vectors are, and ends its run; stores
/// all of them elsewhere, and ends its run. Without: tells 0.
const LONG_VECTORS: &[u32] = &[
    0xd538_0402, // mrs x2, id_aa64pfr0_el1
    0xd360_8c42, // ubfx x2, x2, #32, #4
    0xb400_01c2, // cbz x2, to the str
    0xd2a0_0663, // mov x3, #0x330000
    0xd518_1043, // msr cpacr_el1, x3: vectors of any length may be used
    0xd503_3fdf, // isb
    0xd280_01e4, // mov x4, #15
    0xd518_1204, // msr zcr_el1, x4: as long as they can be
    0xd503_3fdf, // isb
    0x9110_0296, // add x22, x20, #0x400
    0x8580_4280, // ldr z0, [x20]
    0x8580_469f, // ldr z31, [x20, #1, mul vl]
    0x8580_02c3, // ldr p3, [x22]
    0x8580_06c5, // ldr p5, [x22, #1, mul vl]
    0x2528_90a0, // wrffr p5.b
    0x04bf_5022, // rdvl x2, #1
    0xb900_0262, // str w2, [x19]
    END,
    0xe580_4a80, // str z0, [x20, #2, mul vl]
    0xe580_4e9f, // str z31, [x20, #3, mul vl]
    0xe580_0ac3, // str p3, [x22, #2, mul vl]
    0x2519_f004, // rdffr p4.b
    0xe580_0ec4, // str p4, [x22, #3, mul vl]
    END,
];

#[test]
fn vectors_and_predicates_of_sve_are_taken_over_by_another_machine() {
    let first = Guest::new(VmConfig::default(), LONG_VECTORS);
    // The last register is for faults: ones, and then zeros.
    let vectors: [u8; 512] = std::array::from_fn(|at| (at * 7 + 1) as u8);
    let predicates: [u8; 64] = std::array::from_fn(|at| (at * 5 + 3) as u8);
    first.write(DATA, &vectors);
    let mut vcpu = first.vcpu(0);
    let host_has_sve = std::fs::read_to_string("/proc/cpuinfo").expect("a file").contains(" sve ");
    // As long as vectors are, of which a predicate has a bit for each byte.
    let length = {
        let probe = Guest::new(VmConfig::default(), LONG_VECTORS);
        run_to_halt(&mut probe.vcpu(0));
        match probe.memory.take()[..] {
            [Write(0, B4, length)] => length as usize,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(length > 0, host_has_sve);
    if length == 0 {
        return;
    }
    let predicate = length / 8;
    let mut own = predicates;
    own[predicate..2 * predicate].fill(0);
    own[predicate] = 0x0f;
    first.write(DATA + 0x400, &own);
    run_to_halt(&mut vcpu);
    let state = VcpuState::from_saved(&vcpu.state().expect("a state").to_saved()).expect("its own bytes");
    let second = Guest::new(VmConfig::default(), LONG_VECTORS);
    let mut vcpu = second.vcpu(0);
    vcpu.set_state(&state).expect("the other's state");
    run_to_halt(&mut vcpu);
    let stored: [u8; 1024] = second.read(DATA);
    assert_eq!(stored[2 * length..4 * length], vectors[..2 * length]);
    let stored: [u8; 128] = second.read(DATA + 0x400);
    assert_eq!(stored[2 * predicate..4 * predicate], own[..2 * predicate]);
}

#[test]
fn a_reset_vcpu_is_as_a_new_one_a_hundred_times() {
    let guest = Guest::new(VmConfig::default(), SET_AND_TELL);
    guest.write(DATA + 16, &VECTOR);
    let mut vcpu = guest.vm.create_vcpu(0, guest.buses()).expect("a vCPU");
    let new = vcpu.registers().expect("registers");
    for _ in 0..100 {
        vcpu.set_registers(&start()).expect("registers");
        run_to_halt(&mut vcpu);
        vcpu.reset().expect("a reset");
        assert_eq!(vcpu.registers().expect("registers"), new);
        // At the second part, which tells what is there: not the vector, which it may not use now.
        let second = Registers { pc: start().pc + 32, ..start() };
        vcpu.set_registers(&second).expect("registers");
        let mut told = Vec::new();
        while told.len() < 2 {
            assert!(matches!(vcpu.run_once(), Ok(Step::Handled | Step::Interrupted)));
            told.extend(guest.memory.take());
        }
        // The system register has no value that the architecture says.
        assert!(told[0] == Write(0, B4, 0) && told[1] != TOLD[1], "{told:?}");
        vcpu.reset().expect("a reset");
    }
}

/// Starts vCPU 1 at DATA with 0x77, by PSCI, and tells what became of it.
const START_SECOND: &[u32] = &[
    0xd280_0060, // mov x0, #3
    0xf2b8_8000, // movk x0, #0xc400, lsl #16
    0xd280_0021, // mov x1, #1
    0xd284_0002, // mov x2, #0x2000
    0xd280_0ee3, // mov x3, #0x77
    0xd400_0002, // hvc #0
    0xb900_0260, // str w0, [x19]
    0x1400_0000, // b .
];
/// Tells what it was started with.
const SECOND: &[u32] = &[
    0xd2ba_0013, // mov x19, #0xd0000000
    0xb900_0660, // str w0, [x19, #4]
    0x1400_0000, // b .
];

#[test]
fn a_second_vcpu_is_off_again_after_each_reset_until_it_is_started() {
    let guest = Guest::new(VmConfig::new(2), START_SECOND);
    guest.write(DATA, &guest::bytes(SECOND));
    let (mut first, mut second) = (guest.vcpu(0), guest.vm.create_vcpu(1, guest.buses()).expect("a vCPU"));
    for _ in 0..20 {
        let kicker = second.kicker();
        let runs = thread::spawn(move || {
            while second.run_once().expect("a vCPU that is off or runs") != Step::Interrupted {}
            second
        });
        while !guest.memory.seen(Write(0, B4, 0)) {
            first.run_once().expect("an access");
        }
        while !guest.memory.seen(Write(4, B4, 0x77)) {
            thread::yield_now();
        }
        kicker.kick();
        second = runs.join().expect("the vCPU's thread");
        // On, both of them: what is restored is what was saved.
        let states = [&mut first, &mut second].map(|vcpu| vcpu.state().expect("a state"));
        guest.vm.reset().expect("a reset");
        second.reset().expect("a reset");
        first.reset().expect("a reset");
        assert_ne!(second.state().expect("a state"), states[1]);
        guest.memory.take();
        // It is off: otherwise it could not be started in the next round.
        first.set_registers(&start()).expect("registers");
    }
}

/// Tells which lines are enabled, the priority of four and the mask of the CPU interface; sets others; ends its run. With a
/// GICv3.
const GIC_V3: &[u32] = &[
    0xd2be_0016, // mov x22, #0xf0000000: the distributor
    0xb941_06c2, // ldr w2, [x22, #0x104]
    0xb900_0262, // str w2, [x19]
    0xb944_22c2, // ldr w2, [x22, #0x420]
    0xb900_0262, // str w2, [x19]
    0x5280_00a2, // mov w2, #5
    0xb901_06c2, // str w2, [x22, #0x104]
    0x5280_1402, // mov w2, #0xa0
    0xb904_22c2, // str w2, [x22, #0x420]
    0xd538_4602, // mrs x2, icc_pmr_el1
    0xb900_0262, // str w2, [x19]
    0xd280_1e02, // mov x2, #0xf0
    0xd518_4602, // msr icc_pmr_el1, x2
    END,
];

/// The same with a GICv2, whose CPU interface is in memory. Tells who has sent the interrupts 0 to 3 of software, too, and sends
/// itself the last one.
const GIC_V2: &[u32] = &[
    0xd2be_0016, // mov x22, #0xf0000000: the distributor
    0xd2be_0037, // mov x23, #0xf0010000: the CPU interface
    0xb941_06c2, // ldr w2, [x22, #0x104]
    0xb900_0262, // str w2, [x19]
    0xb944_22c2, // ldr w2, [x22, #0x420]
    0xb900_0262, // str w2, [x19]
    0x5280_00a2, // mov w2, #5
    0xb901_06c2, // str w2, [x22, #0x104]
    0x5280_1402, // mov w2, #0xa0
    0xb904_22c2, // str w2, [x22, #0x420]
    0xb940_06e2, // ldr w2, [x23, #4]
    0xb900_0262, // str w2, [x19]
    0xd280_1e02, // mov x2, #0xf0
    0xb900_06e2, // str w2, [x23, #4]
    0xb94f_22c2, // ldr w2, [x22, #0xf20]: GICD_SPENDSGIR0
    0xb900_0262, // str w2, [x19]
    0x5280_0062, // mov w2, #3
    0x72a0_4002, // movk w2, #0x200, lsl #16
    0xb90f_02c2, // str w2, [x22, #0xf00]: GICD_SGIR
    END,
];

/// A guest that does so with what its host has.
fn guest_of_the_gic() -> Guest {
    let guest = Guest::new(VmConfig::default(), GIC_V3);
    if guest.vm.has_messages() { guest } else { Guest::new(VmConfig::default(), GIC_V2) }
}

#[test]
fn the_gic_is_reset_and_restored() {
    let guest = guest_of_the_gic();
    let mut vcpu = guest.vcpu(0);
    let mut tell = || {
        vcpu.set_registers(&start()).expect("registers");
        run_to_halt(&mut vcpu);
        let value = |seen: &Seen| match seen {
            Write(0, B4, value) => *value,
            other => panic!("{other:?}"),
        };
        guest.memory.take().iter().map(value).collect::<Vec<_>>()
    };
    let (new, set) = if guest.vm.has_messages() {
        (vec![0; 3], vec![5, 0xa0, 0xf0])
    } else {
        (vec![0; 4], vec![5, 0xa0, 0xf0, 1 << 24])
    };
    assert_eq!(tell(), new);
    let state = guest.vm.state().expect("a state");
    assert_eq!(guest.vm.state().expect("a state"), state);
    for _ in 0..10 {
        guest.vm.reset().expect("a reset");
        assert_ne!(guest.vm.state().expect("a state"), state);
        assert_eq!(tell(), new);
        guest.vm.set_state(&state).expect("the state before");
        assert_eq!(guest.vm.state().expect("a state"), state);
        assert_eq!(tell(), set);
    }
}

#[test]
fn a_line_that_is_asserted_is_part_of_the_state() {
    let guest = guest_of_the_gic();
    let _vcpu = guest.vcpu(0);
    let low = guest.vm.state().expect("a state");
    guest.vm.set_irq_line(40, true).expect("a line");
    let high = guest.vm.state().expect("a state");
    assert_ne!(high, low);
    for state in [&low, &high, &low] {
        guest.vm.set_state(state).expect("a state");
        assert_eq!(&guest.vm.state().expect("a state"), state);
    }
}

/// Where the value of a register is in a state's bytes.
fn place(bytes: &[u8], register: u64) -> usize {
    bytes.windows(8).position(|window| window == register.to_le_bytes()).expect("a register") + 8
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn the_counter_goes_back_with_a_state_and_on_with_a_reset() {
    let guest = Guest::new(VmConfig::default(), SET_AND_TELL);
    let mut vcpu = guest.vcpu(0);
    let saved = vcpu.state().expect("a state");
    let bytes = saved.to_saved().payload.into_owned();
    let at = place(&bytes, CNTVCT_EL0);
    let (counter, frequency) = (number(&bytes, at), number(&bytes, bytes.len() - 8));
    let now = |vcpu: &mut Vcpu| number(&vcpu.state().expect("a state").to_saved().payload, at);
    let before = now(&mut vcpu);
    assert!(before > counter);
    vcpu.reset().expect("a reset");
    assert!(now(&mut vcpu) > before);
    thread::sleep(Duration::from_millis(300));
    let since = Instant::now();
    vcpu.set_state(&saved).expect("the state before");
    let after = now(&mut vcpu);
    let passed = since.elapsed().as_nanos() * u128::from(frequency) / 1_000_000_000;
    assert!(after >= counter && u128::from(after - counter) <= passed + 1, "{counter}, {after}, {passed}");
}

#[test]
fn d2_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let guest = Guest::new(VmConfig::default(), SET_AND_TELL);
    let mut vcpu = guest.vcpu(0);
    let before = vcpu.registers().expect("registers");
    let saved = vcpu.state().expect("a state").to_saved().into_owned();
    let last = saved.payload.len() - 8;
    let changes: [(usize, u64, &str); 4] = [
        (place(&saved.payload, MPIDR_EL1), 0x8000_0001, "MPIDR_EL1"),
        (place(&saved.payload, ID_AA64PFR0_EL1), u64::MAX, "ID_AA64PFR0_EL1 of 0xffffffffffffffff"),
        // The name of a register, which no processor has then.
        (place(&saved.payload, TPIDR_EL1) - 8, TPIDR_EL1 + 1, "S3_0_C13_C0_5"),
        (last, 1, "a counter of 1 Hz"),
    ];
    for (at, value, name) in changes {
        let mut changed = saved.clone();
        changed.payload.to_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let state = VcpuState::from_saved(&changed).expect("a list of registers");
        let error = vcpu.set_state(&state).expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(vcpu.registers().expect("registers"), before);
    }
    let two = Guest::new(VmConfig::new(2), SET_AND_TELL);
    let _vcpus = [two.vcpu(0), two.vcpu(1)];
    let error = guest.vm.set_state(&two.vm.state().expect("a state"));
    assert!(matches!(error, Err(VmError::InvalidState { part: "GIC", .. })), "{error:?}");
    run_to_halt(&mut vcpu);
}

/// The state of another version of the GIC than this machine's, for one vCPU.
fn state_of_the_other_gic(is_v3: bool) -> VmState {
    // GICD_TYPER, GICD_IIDR, the distributor, vCPUs with their private interrupts and CPU interfaces.
    let gic = |fields: &mut Encoder, words: [usize; 3]| {
        let [distributor, private, interface] = words;
        let mut registers = vec![0; interface * 8];
        registers[9] = 4; // Five bits of priorities, where version 3 has them.
        fields.u32(Field::new(1, "type"), 0).u32(Field::new(2, "implementer"), 0);
        fields.bytes(Field::new(3, "distributor"), &vec![0; distributor * 4]);
        fields.list(Field::new(4, "vCPUs"), &[()], |fields, ()| {
            fields.bytes(Field::new(1, "private"), &vec![0; private * 4]);
            fields.bytes(Field::new(2, "interface"), &registers);
        });
    };
    let mut fields = Encoder::new("org.ossature.vm.aarch64", 1);
    if is_v3 {
        fields.nested(Field::new(3, "GICv2"), |fields| gic(fields, [67, 18, 8]));
    } else {
        fields.nested(Field::new(1, "GIC"), |fields| gic(fields, [238, 20, 9]));
        fields.nested(Field::new(2, "ITS"), |fields| {
            (1..=5).for_each(|n| _ = fields.u64(Field::new(n, "ITS"), 0));
            fields.bytes(Field::new(6, "tables"), &[0; 64]);
        });
    }
    VmState::from_saved(&fields.finish()).expect("a state")
}

#[test]
fn d2_a_gic_of_the_other_version_is_refused_by_name_and_changes_nothing() {
    let guest = guest_of_the_gic();
    let _vcpu = guest.vcpu(0);
    guest.vm.set_irq_line(40, true).expect("a line");
    let before = guest.vm.state().expect("a state");
    let is_v3 = guest.vm.has_messages();
    let error = guest.vm.set_state(&state_of_the_other_gic(is_v3)).expect_err("another version").to_string();
    let lacks = if is_v3 { "a GICv2" } else { "a GICv3" };
    assert!(error.ends_with(lacks), "{error}");
    assert_eq!(guest.vm.state().expect("a state"), before);
}

#[test]
fn d2_a_gic_that_can_do_more_is_refused_by_name_and_changes_nothing() {
    let guest = guest_of_the_gic();
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    guest.vm.set_irq_line(40, true).expect("a line");
    let before = guest.vm.state().expect("a state");
    let saved = before.to_saved().into_owned();
    // What KVM says of its makers: GICD_IIDR and GITS_IIDR.
    let is_maker = |bytes: &[u8]| matches!(bytes, [0x3b, revision, 0, 0x4b] if revision & 0xf == 4);
    let makers: Vec<_> = saved.payload.windows(4).enumerate().filter(|(_, bytes)| is_maker(bytes)).collect();
    let mut changes = vec![(makers[0].0, 0x3c, "GICD_IIDR")];
    if guest.vm.has_messages() {
        // ICC_CTLR_EL1 comes after ICC_SRE_EL1, and says in bits 11 to 13 how many bits interrupts have.
        let is_interface = |bytes: &[u8]| number(bytes, 0) == 7 && number(bytes, 8) & 0x700 != 0;
        let interface = saved.payload.windows(16).position(is_interface).expect("a CPU interface");
        changes.push((interface + 9, saved.payload[interface + 9] | 0x38, "ICC_CTLR_EL1"));
        changes.push((makers[1].0 + 1, 0xf4, "GITS_IIDR"));
    }
    assert_eq!(makers.len(), if guest.vm.has_messages() { 2 } else { 1 });
    for (at, value, name) in changes {
        let mut changed = saved.clone();
        changed.payload.to_mut()[at] = value;
        let state = VmState::from_saved(&changed).expect("a state");
        let error = guest.vm.set_state(&state).expect_err(name);
        assert!(matches!(&error, VmError::MissingFeature { feature } if feature.contains(name)), "{error}");
        assert_eq!(guest.vm.state().expect("a state"), before, "{name}");
    }
}

#[test]
fn as_many_vcpus_as_the_gic_can_have_are_created_and_saved() {
    let is_v3 = Guest::new(VmConfig::default(), SET_AND_TELL).vm.has_messages();
    let (count, chosen) = if is_v3 { (200, &[0, 15, 16, 199][..]) } else { (8, &[0, 7][..]) };
    if !is_v3 {
        let error = Kvm::open().expect("KVM").create_vm(&VmConfig::new(9));
        assert!(matches!(error, Err(VmError::TooManyVcpus { index: 8, max: 8 })), "{error:?}");
    }
    let config = VmConfig::new(count);
    let create = || {
        let guest = Guest::new(config.clone(), SET_AND_TELL);
        let vcpus: Vec<_> =
            (0..count).map(|index| guest.vm.create_vcpu(index, guest.buses()).expect("a vCPU")).collect();
        (guest, vcpus)
    };
    let (one, mut vcpus) = create();
    let state = VmState::from_saved(&one.vm.state().expect("a state").to_saved()).expect("its own bytes");
    let (other, mut others) = create();
    other.vm.set_state(&state).expect("the other's state");
    assert_eq!(other.vm.state().expect("a state"), state);
    for &index in chosen {
        let state = vcpus[index].state().expect("a state");
        others[index].set_state(&state).expect("the other's state");
        assert!(others[(index + 1) % vcpus.len()].set_state(&state).is_err(), "that of vCPU {index}");
    }
}

#[track_caller]
fn goes_on(machine: &Machine) {
    let (from, since) = (counter(machine), Instant::now());
    while counter(machine) < from.wrapping_add(100) {
        assert_eq!(machine.outcome(), None);
        assert!(since.elapsed() < LIMIT, "it does not count");
        thread::yield_now();
    }
}

#[test]
fn a_machine_goes_back_goes_on_elsewhere_and_becomes_many() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("guest.snap");
    let kvm = Kvm::open().expect("KVM");
    let generation = || VmGenId::new("generation", GenerationId::random().expect("random bytes"));
    let machine = guest::machine("counts", COUNT).cpus(2).device(generation());
    let machine = machine.build(&kvm).expect("a machine");
    machine.start().expect("a start");
    goes_on(&machine);
    let mut checkpoint = machine.checkpoint().expect("a checkpoint");
    let paused = machine.pause().expect("a pause");
    machine.reset_to(&mut checkpoint).expect("a reset");
    let (from, registers) = (counter(&machine), paused.vcpus().registers(0).expect("registers"));
    paused.resume().expect("it goes on");
    for round in 0..50 {
        goes_on(&machine);
        let paused = machine.pause().expect("a pause");
        machine.reset_to(&mut checkpoint).expect("a reset");
        let now = (counter(&machine), paused.vcpus().registers(0).expect("registers"));
        assert_eq!(now, (from, registers), "round {round}");
        paused.resume().expect("it goes on");
    }
    machine.snapshot(&path).expect("a snapshot");
    goes_on(&machine);
    for snapshot in [Snapshot::open(&path), Snapshot::open(&path).map(Snapshot::on_demand)] {
        let snapshot = snapshot.expect("a snapshot");
        let restored = Machine::builder("restored")
            .device(generation())
            .restore(snapshot)
            .build(&kvm)
            .expect("a machine");
        restored.start().expect("a start");
        goes_on(&restored);
    }
    let plan =
        ForkPlan::new(4, GuestClock::CatchUp, move |_| Ok(vec![Box::new(generation()) as Box<dyn Device>]));
    let children = machine.fork(&kvm, &plan).expect("forks");
    children.iter().for_each(goes_on);
    machine.reset().expect("a reset");
    goes_on(&machine);
}

/// Has the lines for devices reach the processor, by what sets the mask of its interface, and suspends until one does: counts up
/// the 32 bits at DATA then.
const fn suspend_and_count(mask: [u32; 2]) -> [u32; 18] {
    [
        0xd2be_0016, // mov x22, #0xf0000000: the distributor
        0x5280_0262, // mov w2, #0x13
        0xb900_02c2, // str w2, [x22]: GICD_CTLR
        0x1280_0002, // mov w2, #-1
        0xb900_86c2, // str w2, [x22, #0x84]: GICD_IGROUPR1
        0xb901_06c2, // str w2, [x22, #0x104]: GICD_ISENABLER1
        mask[0],
        mask[1],
        0x52b8_8000, // mov w0, #0xc4000000
        0x7280_01c0, // movk w0, #0xe: SYSTEM_SUSPEND
        0xd282_0681, // mov x1, #0x1034
        0xaa14_03e2, // mov x2, x20
        0xd400_0002, // hvc #0
        0xaa00_03f4, // mov x20, x0: this is at 0x1034
        COUNT[0],
        COUNT[1],
        COUNT[2],
        COUNT[3],
    ]
}
const SUSPEND_V3: &[u32] = &suspend_and_count([
    0xd280_1fe2, // mov x2, #0xff
    0xd518_4602, // msr icc_pmr_el1, x2
]);
const SUSPEND_V2: &[u32] = &suspend_and_count([
    0xd2be_0037, // mov x23, #0xf0010000
    0xb900_06e2, // str w2, [x23, #4]: GICC_PMR
]);
/// What a vCPU that is suspended has: where it goes on, and its context.
const SUSPENDED: (u64, u64) = (0x1034, DATA);

#[test]
fn a_suspended_machine_is_paused_saved_forked_and_reset() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("guest.snap");
    let kvm = Kvm::open().expect("KVM");
    let is_v3 = Guest::new(VmConfig::default(), SET_AND_TELL).vm.has_messages();
    // Where it finds itself restored or forked, it has another number, and raises an interrupt.
    let generation = || VmGenId::new("generation", GenerationId::random().expect("random bytes"));
    let machine = guest::machine("suspends", if is_v3 { SUSPEND_V3 } else { SUSPEND_V2 });
    let machine = machine.device(generation()).build(&kvm).expect("a machine");
    let place = || {
        let paused = machine.pause().expect("a pause");
        let registers = paused.vcpus().registers(0).expect("registers");
        paused.resume().expect("it goes on");
        (registers.pc, registers.x[0])
    };
    let suspends = || {
        let since = Instant::now();
        while place() != SUSPENDED {
            assert!(since.elapsed() < LIMIT, "it does not suspend");
        }
    };
    machine.start().expect("a start");
    suspends();
    for _ in 0..50 {
        assert_eq!(place(), SUSPENDED);
    }
    machine.snapshot(&path).expect("a snapshot");
    let restored = Machine::builder("restored").device(generation());
    let restored =
        restored.restore(Snapshot::open(&path).expect("a snapshot")).build(&kvm).expect("a machine");
    restored.start().expect("a start");
    goes_on(&restored);
    let plan =
        ForkPlan::new(2, GuestClock::CatchUp, move |_| Ok(vec![Box::new(generation()) as Box<dyn Device>]));
    let children = machine.fork(&kvm, &plan).expect("forks");
    children.iter().for_each(goes_on);
    assert_eq!((place(), counter(&machine)), (SUSPENDED, 0), "the machine itself sleeps on");
    machine.reset().expect("a reset");
    suspends();
    assert_eq!(counter(&machine), 0);
    assert_eq!(machine.stop().expect("a stop"), Outcome::Stopped);
}
