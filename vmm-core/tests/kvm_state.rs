//! States of vCPUs and machines: saved, reset, restored.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use guest::Seen::Write;
use guest::{DATA, Guest, LAPIC, MMIO};
use ossature_bus::Size::{B1, B4};
use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, VmRequest};
use ossature_core::scripted::{Script, Scripted};
use ossature_core::{Buses, Hypervisor, Registers, Step, Vcpu, VcpuState, VmConfig, VmError, VmState};

fn run_to_halt(vcpu: &mut Vcpu) {
    loop {
        match vcpu.run_once().expect("a guest that halts") {
            Step::Handled | Step::Interrupted => {}
            Step::Halted => return,
            step => panic!("{step:?}"),
        }
    }
}

/// Sets a register, an MSR and a register of the FPU; halts; tells what they are and clears them; halts.
const SET_AND_TELL: &[u8] = &[
    0x66, 0xbb, 0x78, 0x56, 0x34, 0x12, // mov ebx, 0x12345678
    0x66, 0xb9, 0x74, 0x01, 0x00, 0x00, // mov ecx, IA32_SYSENTER_CS
    0x66, 0xb8, 0x21, 0x43, 0x00, 0x00, // mov eax, 0x4321
    0x66, 0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0x0f, 0x6f, 0x06, 0x08, 0x20, // movq mm0, [DATA + 8]
    0xf4, // hlt
    0x66, 0x89, 0xd8, 0x66, 0xe7, 0x80, // mov eax, ebx; out 0x80, eax
    0x0f, 0x32, 0x66, 0xe7, 0x80, // rdmsr; out 0x80, eax
    0x0f, 0x7f, 0x06, 0x00, 0x20, // movq [DATA], mm0
    0x0f, 0x6f, 0x06, 0x10, 0x20, // movq mm0, [DATA + 16]
    0x66, 0x31, 0xdb, // xor ebx, ebx
    0x66, 0x31, 0xc0, // xor eax, eax
    0x0f, 0x30, // wrmsr
    0xf4, // hlt
];
const MMX: [u8; 8] = *b"a vector";
const TOLD: [guest::Seen; 2] = [Write(0x80, B4, 0x1234_5678), Write(0x80, B4, 0x4321)];

#[test]
fn a_guest_goes_on_where_its_state_was_taken() {
    let guest = Guest::bare(SET_AND_TELL);
    guest.write(DATA + 8, &MMX);
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let state = vcpu.state().expect("a state");
    for _ in 0..10 {
        guest.write(DATA, &[0; 8]);
        run_to_halt(&mut vcpu);
        assert_eq!((guest.ports.take(), guest.read(DATA)), (TOLD.to_vec(), MMX));
        vcpu.set_state(&state).expect("the state before");
    }
}

#[test]
fn a_state_is_taken_over_by_another_machine() {
    let first = Guest::bare(SET_AND_TELL);
    first.write(DATA + 8, &MMX);
    let mut vcpu = first.vcpu(0);
    run_to_halt(&mut vcpu);
    let state = vcpu.state().expect("a state");
    let second = Guest::bare(SET_AND_TELL);
    let mut vcpu = second.vcpu(0);
    let saved = VcpuState::from_saved(&state.to_saved()).expect("its own bytes");
    assert_eq!(saved, state);
    vcpu.set_state(&saved).expect("the other's state");
    let machine = VmState::from_saved(&first.vm.state().expect("a state").to_saved()).expect("its own bytes");
    second.vm.set_state(&machine).expect("the other's state");
    run_to_halt(&mut vcpu);
    assert_eq!((second.ports.take(), second.read(DATA)), (TOLD.to_vec(), MMX));
}

#[test]
fn registers_that_the_kernel_has_not_taken_yet_are_part_of_the_state() {
    let guest = Guest::bare(&[0xf4]);
    let mut vcpu = guest.vcpu(0);
    let set = Registers { rbx: 5, ..vcpu.registers().expect("registers") };
    vcpu.set_registers(&set).expect("registers");
    let state = vcpu.state().expect("a state");
    vcpu.set_registers(&Registers { rbx: 6, ..set }).expect("registers");
    vcpu.set_state(&state).expect("the state before");
    assert_eq!(vcpu.registers().expect("registers"), set);
}

#[test]
fn a_reset_vcpu_is_as_a_new_one_a_hundred_times() {
    let guest = Guest::bare(SET_AND_TELL);
    guest.write(DATA + 8, &MMX);
    let mut vcpu = guest.vm.create_vcpu(0, guest.buses()).expect("a vCPU");
    let new = vcpu.registers().expect("registers");
    for _ in 0..100 {
        vcpu.set_registers(&Registers::real_mode(guest::CODE)).expect("registers");
        run_to_halt(&mut vcpu);
        vcpu.reset().expect("a reset");
        assert_eq!(vcpu.registers().expect("registers"), new);
        // At the second part, which tells what is there.
        vcpu.set_registers(&Registers { rcx: 0x174, ..Registers::real_mode(guest::CODE + 29) })
            .expect("registers");
        run_to_halt(&mut vcpu);
        assert_eq!(guest.ports.take(), [Write(0x80, B4, 0), Write(0x80, B4, 0)]);
        assert_eq!(guest.read(DATA), [0; 8]);
        vcpu.reset().expect("a reset");
    }
}

#[test]
fn a_reset_in_the_middle_of_an_access_leaves_nothing_of_it() {
    let string = [0xb9, 0x03, 0x00, 0xbf, 0x00, 0x20, 0xba, 0x10, 0x00, 0xf3, 0x6c, 0xf4]; // rep insb, 3 of them
    let memory = [0x64, 0x66, 0xa1, 0x00, 0x00, 0xf4]; // mov eax, fs:[0]
    let port = [0xe5, 0x80, 0xf4]; // in ax, 0x80
    for code in [&string[..], &memory, &port] {
        let guest = Guest::bare(code);
        let mut vcpu = guest.vcpu(0);
        let state = vcpu.state().expect("a state");
        assert_eq!(vcpu.run_once().expect("an access"), Step::Handled);
        vcpu.reset().expect("a reset");
        guest.write(DATA, &[0xf4]);
        let start = Registers { rax: 0x77, ..Registers::real_mode(DATA as u16) };
        vcpu.set_registers(&start).expect("registers");
        run_to_halt(&mut vcpu);
        let after = vcpu.registers().expect("registers");
        assert_eq!((after.rax, after.rip), (0x77, DATA + 1), "{code:x?}");
        // The same with a state, which is the one before the access.
        vcpu.set_state(&state).expect("a state");
        assert_eq!(vcpu.run_once().expect("an access"), Step::Handled);
        vcpu.set_state(&state).expect("a state");
        assert_eq!(vcpu.registers().expect("registers").rip, u64::from(guest::CODE));
    }
}

#[test]
fn a_second_vcpu_waits_again_after_each_reset_until_it_is_started() {
    let guest = Guest::new(
        VmConfig::new(2),
        &[
            0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // local APIC: on
            0x64, 0x66, 0xc7, 0x06, 0x10, 0x03, 0x00, 0x00, 0x00, 0x01, // to APIC 1:
            0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x00, 0x45, 0x00, 0x00, // INIT
            0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x02, 0x46, 0x00, 0x00, // start at DATA
            0xe6, 0x81, 0xf4, // out 0x81, al; hlt
        ],
    );
    guest.write(DATA, &[0xb0, 0x77, 0xe6, 0x82, 0xf4]); // mov al, 0x77; out 0x82, al; hlt
    let mut registers = Registers::real_mode(guest::CODE);
    registers.fs.base = LAPIC;
    let (mut first, mut second) = (guest.vcpu_with(0, registers), guest.vcpu(1));
    for round in 0..20 {
        let kicker = second.kicker();
        let runs = thread::spawn(move || {
            let mut accesses = 0;
            while second.run_once().expect("a vCPU that waits or runs") != Step::Interrupted {
                accesses += usize::from(second.last_access() == Some((AddressSpace::Pio, 0x82)));
            }
            (second, accesses)
        });
        while first.run_once().expect("an access") == Step::Interrupted {}
        while !guest.ports.seen(Write(0x82, B1, 0x77)) {
            thread::yield_now();
        }
        kicker.kick();
        let accesses;
        (second, accesses) = runs.join().expect("the vCPU's thread");
        assert_eq!(accesses, 1, "round {round}");
        guest.ports.take();
        guest.vm.reset().expect("a reset");
        second.reset().expect("a reset");
        first.reset().expect("a reset");
        // It waits: nothing but a kick ends that.
        second.kicker().kick();
        while second.run_once().expect("a vCPU that waits") != Step::Interrupted {}
        assert!(guest.ports.take().is_empty(), "round {round}");
        first.set_registers(&registers).expect("registers");
    }
}

#[test]
fn interrupt_controllers_and_timer_are_reset_and_restored() {
    // Mask and read back the PICs' lines; read and set the timer's first channel.
    let code = [
        0xe4, 0x21, 0xe6, 0x80, // in al, 0x21; out 0x80, al
        0xb0, 0x5a, 0xe6, 0x21, // mov al, 0x5a; out 0x21, al
        0xe4, 0x21, 0xe6, 0x80, // in al, 0x21; out 0x80, al
        0xe4, 0x61, 0xe6, 0x80, // in al, 0x61; out 0x80, al
        0xb0, 0x01, 0xe6, 0x61, // the second channel's gate: on
        0xe4, 0x61, 0xe6, 0x80, 0xeb, 0xe6, // in al, 0x61; out 0x80, al; jmp back
    ];
    let guest = Guest::new(VmConfig::default().pit(), &code);
    let mut vcpu = guest.vcpu(0);
    let mut tell = |guest: &Guest| {
        vcpu.set_registers(&Registers::real_mode(guest::CODE)).expect("registers");
        let mut told = Vec::new();
        while told.len() < 4 {
            while vcpu.run_once().expect("an access") == Step::Interrupted {}
            told.extend(guest.ports.take());
        }
        let value = |seen: &guest::Seen| match seen {
            Write(0x80, B1, value) => *value,
            other => panic!("{other:?}"),
        };
        let told: Vec<_> = told.iter().map(value).collect();
        // Bit 4 of port 0x61 toggles, bit 5 is the channel's output.
        [told[0], told[1], told[2] & 1, told[3] & 1]
    };
    let first = tell(&guest);
    assert_eq!(first[1..], [0x5a, 0, 1]);
    let masked = guest.vm.state().expect("a state");
    for _ in 0..10 {
        guest.vm.reset().expect("a reset");
        assert_eq!(tell(&guest), first);
        guest.vm.set_state(&masked).expect("the state before");
        assert_eq!(tell(&guest), [0x5a, 0x5a, 1, 1]);
    }
}

#[test]
fn the_clock_goes_back_with_a_state_and_on_with_a_reset() {
    let guest = Guest::new(VmConfig::default(), &[0xf4]);
    let _vcpu = guest.vcpu(0);
    let first = guest.vm.state().expect("a state");
    let clock = |text: String| -> u64 {
        let digits = text.split("clock: ").nth(1).expect("a clock").split(|c: char| !c.is_ascii_digit());
        digits.map(str::to_owned).next().expect("digits").parse().expect("a number")
    };
    let read = || clock(format!("{:?}", guest.vm.state().expect("a state")));
    let saved = clock(format!("{first:?}"));
    while read() < saved + 50_000_000 {
        thread::yield_now();
    }
    guest.vm.reset().expect("a reset");
    assert!(read() >= saved + 50_000_000);
    let before = read();
    guest.vm.set_state(&first).expect("the state before");
    assert!(read() < before);
}

#[test]
fn t9_a_guest_without_a_clock_does_not_mind_being_told_of_a_pause() {
    let guest = Guest::bare(&[0xf4]);
    let mut vcpu = guest.vcpu(0);
    vcpu.notify_paused().expect("nobody to tell");
    run_to_halt(&mut vcpu);
    vcpu.notify_paused().expect("nobody to tell");
}

#[test]
fn t9_a_guest_with_a_clock_is_told_of_a_pause() {
    // MSR_KVM_SYSTEM_TIME_NEW = DATA | 1: the flags are at DATA + 29, where bit 1 says that the guest was paused.
    let code = [
        0x66, 0xb9, 0x01, 0x4d, 0x56, 0x4b, // mov ecx, 0x4b564d01
        0x66, 0xb8, 0x01, 0x20, 0x00, 0x00, // mov eax, DATA | 1
        0x66, 0x31, 0xd2, 0x0f, 0x30, // xor edx, edx; wrmsr
        0xf4, 0xf4, // hlt; hlt
    ];
    let guest = Guest::bare(&code);
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let flags = || guest.read::<1>(DATA + 29)[0] & 2;
    assert_eq!(flags(), 0);
    vcpu.notify_paused().expect("a guest to tell");
    run_to_halt(&mut vcpu);
    assert_eq!(flags(), 2);
}

#[test]
fn the_last_access_names_its_place() {
    // out 0x80, al; mov eax, fs:[4]; hlt
    let guest = Guest::bare(&[0xe6, 0x80, 0x64, 0x66, 0xa1, 0x04, 0x00, 0xf4]);
    let mut vcpu = guest.vcpu(0);
    assert_eq!(vcpu.last_access(), None);
    let places = [Some((AddressSpace::Pio, 0x80)), Some((AddressSpace::Mmio, MMIO + 4)), None];
    for place in places {
        vcpu.run_once().expect("a step");
        assert_eq!(vcpu.last_access(), place);
    }
}

#[test]
fn d2_a_state_that_does_not_fit_is_refused() {
    let guest = Guest::bare(&[0xf4]);
    let mut vcpu = guest.vcpu(0);
    let bare = vcpu.state().expect("a state");
    let other = Guest::new(VmConfig::default(), &[0xf4]);
    let mut with_irqchip = other.vcpu(0);
    assert!(matches!(with_irqchip.set_state(&bare), Err(VmError::InvalidState { .. })));
    assert!(matches!(
        other.vm.set_state(&guest.vm.state().expect("a state")),
        Err(VmError::InvalidState { .. })
    ));

    // An MSR that no vCPU has.
    let mut saved = bare.to_saved();
    let payload = saved.payload.to_mut();
    let sysenter = payload.windows(4).rposition(|bytes| bytes == 0x174u32.to_le_bytes()).expect("an MSR");
    payload[sysenter..sysenter + 4].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
    let other_msr = VcpuState::from_saved(&saved).expect("a list of MSRs");
    let error = vcpu.set_state(&other_msr).expect_err("no such MSR");
    assert!(error.to_string().contains("MSRs"), "{error}");

    let scripted = Scripted::new([Script::new()]).create_vm(&VmConfig::default()).expect("a machine");
    let mut played = scripted.create_vcpu(0, guest.buses()).expect("a vCPU");
    let error = vcpu.set_state(&played.state().expect("a state")).expect_err("another back end's");
    assert!(error.to_string().contains("back end"), "{error}");
    assert!(played.set_state(&bare).is_err());
    run_to_halt(&mut vcpu);
}

/// Counts what is written to it; 2 asks for a power-off.
#[derive(Default)]
struct Asks(AtomicU64);

impl Mmio for Asks {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(BusFault::WriteOnly)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(if value == 2 { Effect::Vm(VmRequest::Shutdown) } else { Effect::None })
    }
}

/// mov dword fs:[0xffe], 0x20000; hlt
const ACROSS_PAGES: &[u8] = &[0x64, 0x66, 0xc7, 0x06, 0xfe, 0x0f, 0x00, 0x00, 0x02, 0x00, 0xf4];

#[test]
fn what_a_later_piece_of_an_access_asks_for_is_the_next_step_and_goes_with_its_guest() {
    let guest = Guest::bare(ACROSS_PAGES);
    let (ports, memory) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
    let asks = Arc::new(Asks::default());
    memory.insert(MMIO, 0x2000, "asks", asks.clone()).expect("an empty bus");
    let mut registers = Registers::real_mode(guest::CODE);
    registers.fs.base = MMIO;
    let buses = Buses::new(ports.cursor(), memory.cursor());
    let mut vcpu = guest.vm.create_vcpu(0, buses).expect("a vCPU");
    vcpu.set_registers(&registers).expect("registers");
    let pieces = || asks.0.load(Ordering::Relaxed);
    while pieces() == 0 {
        assert!(matches!(vcpu.run_once(), Ok(Step::Handled | Step::Interrupted)));
    }
    assert_eq!(pieces(), 1, "each page is a piece of its own");
    let state = vcpu.state().expect("a state");
    assert_eq!(pieces(), 2, "the access is complete");
    // Nothing is lost by asking twice.
    vcpu.state().expect("a state");
    assert_eq!(vcpu.run_once().expect("a step"), Step::Effect(Effect::Vm(VmRequest::Shutdown)));
    run_to_halt(&mut vcpu);

    // A guest that is put in the place of the one that asked has not asked.
    vcpu.set_registers(&registers).expect("registers");
    while pieces() == 2 {
        assert!(matches!(vcpu.run_once(), Ok(Step::Handled | Step::Interrupted)));
    }
    vcpu.set_state(&state).expect("the state before");
    assert_eq!(pieces(), 4, "the access is complete");
    run_to_halt(&mut vcpu);
}
