use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc;
use std::thread;

use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, Event, Mmio, MsiMessage, RangeId};
use ossature_memory::{Ram, RamConfig, RegisterPage};

use super::*;
use crate::arch::WIRED_LINES;
use crate::arch::testing::registers_at;
use crate::{Buses, CrashReason, Doorbell, DoorbellAddress, Irqchip, Step, Vcpu, VcpuError};

fn empty_buses() -> Buses {
    Buses::new(Bus::new(AddressSpace::Pio).cursor(), Bus::new(AddressSpace::Mmio).cursor())
}

fn machine(script: Script) -> (Scripted, Box<dyn Vm>) {
    let scripted = Scripted::new([script]);
    let vm = scripted.create_vm(&VmConfig::default()).unwrap();
    (scripted, vm)
}

fn vcpu(vm: &dyn Vm) -> Vcpu {
    vm.create_vcpu(0, empty_buses()).unwrap()
}

fn script_error(vcpu: &mut Vcpu) -> (usize, String) {
    match vcpu.run_once() {
        Err(VcpuError::Script { index: 0, step, reason }) => (step, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_access_that_nobody_answers_reads_all_ones_and_is_counted() {
    let script = Script::new()
        .pio_expect(0x10, Size::B1, 0xff)
        .mmio_expect(0x10, Size::B8, u64::MAX)
        .mmio_write(0x10, Size::B4, 1);
    let (scripted, vm) = machine(script);
    let mut vcpu = vcpu(&*vm);
    for _ in 0..3 {
        assert_eq!(vcpu.run_once().unwrap(), Step::Handled);
    }
    assert_eq!((vcpu.buses().pio.faults().unmapped, vcpu.buses().mmio.faults().unmapped), (1, 2));
    assert_eq!(scripted.remaining(), 0);
}

#[test]
fn a_failed_expectation_names_its_step_and_the_values() {
    let (scripted, vm) =
        machine(Script::new().pio_write(0x10, Size::B1, 1).mmio_expect(0x20, Size::B2, 0x1234));
    let mut vcpu = vcpu(&*vm);
    assert_eq!(vcpu.run_once().unwrap(), Step::Handled);
    let (step, reason) = script_error(&mut vcpu);
    assert_eq!((step, reason.as_str()), (1, "expected 0x1234 from memory 0x20 (16 bits), read 0xffff"));
    assert_eq!(scripted.remaining(), 1);
}

#[test]
fn ram_is_written_and_compared() {
    let at = GuestAddress(0x800);
    let (_, vm) =
        machine(Script::new().ram_write(at, b"abc").ram_expect(at, b"abc").ram_expect(at, b"abd").halt());
    let ram = Ram::new(&RamConfig::new(0x1000)).unwrap();
    vm.set_memory(&ram).unwrap();
    let (step, reason) = script_error(&mut vcpu(&*vm));
    assert_eq!(step, 2);
    assert_eq!(reason, "expected [61, 62, 64] in RAM at 0x800, found [61, 62, 63]");
    assert_eq!(ram.dma().read_obj::<u8>(at).unwrap(), b'a');
    assert!(matches!(vm.set_memory(&ram), Err(VmError::MemoryAlreadySet)));
}

#[test]
fn ram_that_is_not_there_is_an_error_of_the_script() {
    let (_, vm) = machine(Script::new().ram_write(GuestAddress(0x10_0000), b"abc"));
    let mut vcpu = vcpu(&*vm);
    assert_eq!(script_error(&mut vcpu).1, "the machine has no RAM");
    vm.set_memory(&Ram::new(&RamConfig::new(0x1000)).unwrap()).unwrap();
    assert!(script_error(&mut vcpu).1.contains("is not RAM"));
}

#[test]
fn doorbells_ring_instead_of_reaching_the_bus() {
    let (any, five, port) =
        (DoorbellAddress::Mmio(0x50), DoorbellAddress::Mmio(0x60), DoorbellAddress::Pio(0x70));
    let script = Script::new()
        .mmio_write(0x50, Size::B2, 9)
        .mmio_write(0x60, Size::B4, 5)
        .pio_write(0x70, Size::B1, 0)
        .pio_write(0x70, Size::B2, 0)
        // Not these: another value, another width, another port.
        .mmio_write(0x60, Size::B4, 6)
        .mmio_write(0x60, Size::B2, 5)
        .pio_write(0x71, Size::B1, 0);
    let (scripted, vm) = machine(script);
    let bells = [
        Doorbell::new(any, Size::B4, None),
        Doorbell::new(five, Size::B4, Some(5)),
        Doorbell::new(port, Size::B1, None),
    ];
    let events = bells.map(|bell| {
        let event = Arc::new(Event::new().unwrap());
        (vm.ioeventfd(&event, bell).unwrap(), event)
    });
    let mut vcpu = vcpu(&*vm);
    for exit in 1..=3 {
        assert_eq!(vcpu.run_once().unwrap(), Step::Handled);
        assert_eq!(scripted.remaining(), 3 - exit);
    }
    assert_eq!((vcpu.buses().mmio.faults().unmapped, vcpu.buses().pio.faults().unmapped), (2, 1));
    assert_eq!(events.map(|(_bell, event)| event.take().unwrap()), [1, 1, 2]);
}

#[test]
fn register_pages_answer_reads_of_any_width() {
    let script = Script::new()
        .mmio_expect(0xd000_0004, Size::B4, 0x4433_2211)
        .mmio_expect(0xd000_0005, Size::B1, 0x22)
        .mmio_expect(0xd000_0006, Size::B2, 0x4433)
        .mmio_expect(0xd000_0000, Size::B8, 0x4433_2211_0000_0000)
        .halt();
    let (_, vm) = machine(script);
    let page = Arc::new(RegisterPage::new().unwrap());
    let _slot = vm.map_register_page(GuestAddress(0xd000_0000), &page).unwrap().unwrap();
    page.store(4, 0x4433_2211);
    assert_eq!(vcpu(&*vm).run_once().unwrap(), Step::Halted);
}

#[test]
fn interrupts_wake_the_step_that_awaits_them() {
    let (scripted, vm) = machine(Script::new().await_interrupt(5).await_interrupt(WIRED_LINES).halt());
    let (wired, message) = (Arc::new(Event::new().unwrap()), Arc::new(Event::new().unwrap()));
    let route = vm.add_msi_route(MsiMessage::new(0xfee0_0000, 33)).unwrap();
    route.set(MsiMessage::new(0xfee0_0000, 34)).unwrap();
    let _lines = [vm.irqfd(&wired, 5, None).unwrap(), vm.irqfd(&message, route.gsi(), None).unwrap()];
    let mut vcpu = vcpu(&*vm);
    let guest = thread::spawn(move || vcpu.run_once().unwrap());
    message.signal().unwrap();
    wired.signal().unwrap();
    assert_eq!(guest.join().unwrap(), Step::Halted);
    assert_eq!(scripted.remaining(), 0);
}

#[test]
fn a_kick_interrupts_a_wait_which_then_goes_on() {
    let (_, vm) = machine(Script::new().await_interrupt(5).halt());
    let event = Arc::new(Event::new().unwrap());
    let _line = vm.irqfd(&event, 5, None).unwrap();
    let mut vcpu = vcpu(&*vm);
    let kicker = vcpu.kicker();
    let (steps, seen) = mpsc::channel();
    let guest = thread::spawn(move || {
        for _ in 0..2 {
            steps.send(vcpu.run_once().unwrap()).unwrap();
        }
    });
    kicker.kick();
    assert_eq!(seen.recv().unwrap(), Step::Interrupted);
    event.signal().unwrap();
    assert_eq!(seen.recv().unwrap(), Step::Halted);
    guest.join().unwrap();
}

#[test]
fn an_idle_vcpu_can_be_kicked_and_kicks_are_not_lost() {
    let (scripted, vm) = machine(Script::new().await_kick());
    let mut vcpu = vcpu(&*vm);
    let kicker = vcpu.kicker();
    for remaining in [0, 0, 0] {
        kicker.kick();
        assert_eq!(vcpu.run_once().unwrap(), Step::Interrupted);
        assert_eq!(scripted.remaining(), remaining);
    }
    drop(vcpu);
    kicker.kick();
}

#[test]
fn waiting_for_a_line_that_nobody_drives_is_an_error() {
    let (_, vm) = machine(Script::new().await_interrupt(7));
    assert_eq!(script_error(&mut vcpu(&*vm)).1, "nothing is connected to interrupt 7");
}

#[test]
fn a_crash_carries_the_registers() {
    let (_, vm) = machine(Script::new().triple_fault());
    let mut vcpu = vcpu(&*vm);
    let registers = registers_at(0x1234);
    vcpu.set_registers(&registers).unwrap();
    match vcpu.run_once() {
        Err(VcpuError::Crash(crash)) => {
            assert_eq!((crash.reason, crash.registers), (CrashReason::TripleFault, Some(registers)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_are_kvms() {
    let scripted = Scripted::new([]);
    let vm = scripted.create_vm(&VmConfig::default().irqchip(Irqchip::None)).unwrap();
    assert!(matches!(scripted.create_vm(&VmConfig::default()), Err(VmError::Unsupported { .. })));
    assert!(matches!(vm.create_vcpu(1, empty_buses()), Err(VmError::TooManyVcpus { index: 1, max: 1 })));
    let event = Arc::new(Event::new().unwrap());
    assert!(matches!(vm.irqfd(&event, 4, None), Err(VmError::NoIrqchip { gsi: 4 })));
}

/// Panics at each access.
struct Panics;

impl Mmio for Panics {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        panic!("a device's mistake");
    }
    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        panic!("a device's mistake");
    }
}

#[test]
fn e1_a_vcpu_goes_on_with_its_next_step_after_a_panic_of_a_device() {
    let (scripted, vm) =
        machine(Script::new().pio_write(0x70, Size::B1, 1).mmio_expect(0x80, Size::B4, 0).halt());
    let (ports, memory) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
    ports.insert(0x70, 1, "panics", Arc::new(Panics)).unwrap();
    memory.insert(0x80, 4, "panics", Arc::new(Panics)).unwrap();
    let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), memory.cursor())).unwrap();
    assert_eq!(vcpu.last_access(), None);
    for place in [(AddressSpace::Pio, 0x70), (AddressSpace::Mmio, 0x80)] {
        panic::catch_unwind(AssertUnwindSafe(|| vcpu.run_once())).unwrap_err();
        assert_eq!(vcpu.last_access(), Some(place));
    }
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    assert_eq!((vcpu.last_access(), scripted.remaining()), (None, 0));
}

/// Asks for the range to be removed whose number is written.
struct Removes;

impl Mmio for Removes {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(0)
    }
    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        Ok(Effect::Remove(RangeId(value as u32)))
    }
}

#[test]
fn everything_that_a_string_instruction_asks_for_is_a_step_once() {
    let script = || Script::new().pio_write_bytes(0x70, &[3, 1, 3, 1, 2]).halt();
    let ports = Bus::new(AddressSpace::Pio);
    ports.insert(0x70, 1, "removes", Arc::new(Removes)).unwrap();
    let buses = || Buses::new(ports.cursor(), Bus::new(AddressSpace::Mmio).cursor());
    let vm = machine(script()).1;
    let mut vcpu = vm.create_vcpu(0, buses()).unwrap();
    for range in [3, 1, 2] {
        assert_eq!(vcpu.run_once().unwrap(), Step::Effect(Effect::Remove(RangeId(range))));
    }
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    // A guest that is gone asks for nothing.
    let vm = machine(script()).1;
    let mut vcpu = vm.create_vcpu(0, buses()).unwrap();
    vcpu.run_once().unwrap();
    vcpu.reset().unwrap();
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
}

#[test]
fn the_script_goes_on_over_resets_and_states() {
    let (scripted, vm) = machine(
        Script::new().expect_line(5, true).halt().expect_line(5, false).halt().expect_line(5, true).halt(),
    );
    let mut vcpu = vcpu(&*vm);
    let registers = registers_at(0x1234);
    vcpu.set_registers(&registers).unwrap();
    vm.set_irq_line(5, true).unwrap();
    let (state, machine) = (vcpu.state().unwrap(), vm.state().unwrap());
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    vcpu.reset().unwrap();
    vm.reset().unwrap();
    assert_ne!(vcpu.registers().unwrap(), registers);
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    vcpu.set_state(&state).unwrap();
    vm.set_state(&machine).unwrap();
    assert_eq!(vcpu.registers().unwrap(), registers);
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    assert_eq!(scripted.remaining(), 0);
}

#[test]
fn what_was_removed_is_unused_once_a_paused_vcpu_has_taken_notice() {
    let (_, vm) = machine(Script::new());
    let ports = Bus::new(AddressSpace::Pio);
    ports.insert(0x70, 1, "panics", Arc::new(Panics)).unwrap();
    let mut vcpu =
        vm.create_vcpu(0, Buses::new(ports.cursor(), Bus::new(AddressSpace::Mmio).cursor())).unwrap();
    vcpu.sync_buses();
    let retired = ports.remove(0x70).unwrap();
    assert!(!retired.is_passed());
    vcpu.sync_buses();
    assert!(retired.is_passed());
}
