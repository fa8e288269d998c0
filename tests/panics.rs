//! Panics in whatever runs for one machine, while another machine's devices are served on the same loop: the first one
//! ends and says what panicked, the other one never notices.

use std::sync::Arc;
use std::time::Duration;

use ossature::bus::state::StateError;
use ossature::bus::{
    DeviceError, DeviceEvent, DeviceState, Event, Handover, MetricVisitor, Size, Syscall, Turn,
};
use ossature::legacy::AcpiPower;
use ossature::memory::RamConfig;
use ossature::memory::vm_memory::GuestAddress;
use ossature::virtio::{
    Activation, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Rng, SharedLoop, Source,
    VirtQueue, VirtioMmio, Worker,
};
use ossature::vmm::machine::{Machine, MachineEvent, Outcome};
use ossature::vmm::scripted::{Script, Scripted};

/// Where the only device of a machine has its registers, and its interrupt line.
const REGISTERS: u64 = 0xd000_0000;
const LINE: u32 = 5;

/// The guest's ring: descriptors, available and used.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x4000;
const SIZE: u16 = 8;

fn set(script: Script, register: u64, value: u64) -> Script {
    script.mmio_write(REGISTERS + register, Size::B4, value)
}

/// A driver that initializes the device with one queue (virtio 1.2, 3.1.1).
fn initialize(mut script: Script) -> Script {
    script = script.mmio_expect(REGISTERS, Size::B4, 0x7472_6976);
    for (register, value) in [
        (0x70, 0),               // status: reset
        (0x70, 1),               // ACKNOWLEDGE
        (0x70, 3),               // DRIVER
        (0x24, 1),               // features from 32 on
        (0x20, 1),               // VERSION_1
        (0x70, 11),              // FEATURES_OK
        (0x30, 0),               // queue 0
        (0x38, u64::from(SIZE)), // its size
        (0x80, DESC),
        (0x90, AVAIL),
        (0xa0, USED),
        (0x44, 1),  // ready
        (0x70, 15), // DRIVER_OK
    ] {
        script = set(script, register, value);
    }
    let descriptor =
        [&BUFFER.to_le_bytes()[..], &16_u32.to_le_bytes(), &2_u16.to_le_bytes(), &[0, 0]].concat();
    script.ram_write(GuestAddress(DESC), &descriptor)
}

/// Makes buffer 0 available for the `nth` time, and kicks.
fn request(script: Script, nth: u16) -> Script {
    let slot = AVAIL + 4 + 2 * u64::from((nth - 1) % SIZE);
    let script = script.ram_write(GuestAddress(slot), &[0, 0]);
    set(script.ram_write(GuestAddress(AVAIL + 2), &nth.to_le_bytes()), 0x50, 0)
}

/// Waits for the answer to the `nth` request.
fn answer(script: Script, nth: u16) -> Script {
    let script = script.await_interrupt(LINE).mmio_expect(REGISTERS + 0x60, Size::B4, 1);
    set(script.ram_expect(GuestAddress(USED + 2), &nth.to_le_bytes()), 0x64, 1)
}

fn machine(name: &str, script: Script, device: Box<dyn LocalDevice>, shared: &Arc<SharedLoop>) -> Machine {
    let machine = Machine::builder(name)
        .memory(RamConfig::new(1 << 20))
        .device(VirtioMmio::new(name, device, shared.clone()))
        .device(AcpiPower::new("power"))
        .build(&Scripted::new([script]))
        .unwrap();
    machine.start().unwrap();
    machine
}

/// A guest that asks 50 times, waits for a kick, asks 50 times more and powers off.
fn other(shared: &Arc<SharedLoop>) -> Machine {
    let ask = |script, nth| answer(request(script, nth), nth);
    let script = (1..=50).fold(initialize(Script::new()), ask).await_kick();
    let script = (51..=100).fold(script, ask);
    machine("other", script.pio_write(0x600, Size::B1, 0x34), Box::new(Rng::new()), shared)
}

/// Where the device has its bug.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    Turn,
    Worker,
    Register,
    Nowhere,
}

struct Broken(Bug);

struct BrokenWorker(Bug, Option<VirtQueue>);

impl Worker for BrokenWorker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.1 = Some(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        self.1.take().into()
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        match self.1.as_mut().map(VirtQueue::pop) {
            Some(Ok(Some(_))) if self.0 == Bug::Turn => panic!("a bug in a turn"),
            _ => Ok(Turn::Sleep),
        }
    }
}

impl LocalDevice for Broken {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::ENTROPY, &[8]).with_config(8)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {
        if self.0 == Bug::Register {
            panic!("a bug in a register")
        }
    }

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        if self.0 == Bug::Worker {
            panic!("a bug in its start")
        }
        Ok(Box::new(BrokenWorker(self.0, None)))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "it has none" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

/// A guest that does everything in which a device can have its bug.
fn broken(bug: Bug, shared: &Arc<SharedLoop>) -> Machine {
    let script = set(request(initialize(Script::new()), 1), 0x100, 7);
    machine("broken", script, Box::new(Broken(bug)), shared)
}

/// `part` of one machine panics, once `set_off`; the other machine goes on.
fn one_ends_and_the_other_goes_on(
    bug: Bug,
    part: &str,
    message: &str,
    set_off: impl FnOnce(&Machine, &Arc<SharedLoop>),
) {
    let shared = Arc::new(SharedLoop::new("io").unwrap());
    let other = other(&shared);
    let broken = broken(bug, &shared);
    set_off(&broken, &shared);
    let expected = Outcome::Panicked { part: part.to_owned(), message: message.to_owned() };
    let outcome = broken.wait_timeout(Duration::from_secs(120)).unwrap();
    assert_eq!(outcome.as_ref(), Some(&expected));
    let mut events = broken.events();
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(MachineEvent::Ended(_))) {
        seen.push(events.next_timeout(Duration::from_secs(120)).expect("the end"));
    }
    assert_eq!(seen.last(), Some(&MachineEvent::Ended(expected.clone())));
    if bug == Bug::Turn {
        let event = DeviceEvent::Panicked { message: message.to_owned() };
        assert!(seen.contains(&MachineEvent::Device { id: part.to_owned(), event }), "{seen:?}");
    }
    assert_eq!(broken.stop().unwrap(), expected, "the outcome stays");
    assert_eq!(other.outcome(), None);
    // The other one's second half: with the broken one still there, and without.
    if bug != Bug::Worker {
        drop(broken);
    }
    while other.outcome().is_none() {
        match other.pause() {
            Ok(paused) => paused.resume().unwrap(),
            Err(error) => assert!(other.outcome().is_some(), "{error}"),
        }
    }
    assert_eq!(other.wait().unwrap(), Outcome::Shutdown);
}

#[test]
fn e1_a_worker_that_panics_in_a_turn_ends_its_machine_and_no_other() {
    one_ends_and_the_other_goes_on(Bug::Turn, "broken", "a bug in a turn", |_, _| ());
}

#[test]
fn e1_a_device_that_panics_when_its_worker_is_made_ends_its_machine_and_no_other() {
    one_ends_and_the_other_goes_on(Bug::Worker, "broken", "a bug in its start", |_, _| ());
}

#[test]
fn e1_a_register_access_that_panics_ends_its_machine_and_no_other() {
    one_ends_and_the_other_goes_on(Bug::Register, "broken", "a bug in a register", |_, _| ());
}

#[test]
fn e1_a_timer_of_the_vmm_that_panics_ends_its_machine_and_no_other() {
    one_ends_and_the_other_goes_on(Bug::Nowhere, "clock", "a bug in a timer", |machine, shared| {
        let guarded = machine.guard(shared.event_loop(), "clock");
        // The timer lives as long as its handle.
        std::mem::forget(guarded.after(Duration::ZERO, || panic!("a bug in a timer")).unwrap());
    });
}

#[test]
fn e1_a_handler_of_the_vmm_that_panics_ends_its_machine_and_no_other() {
    one_ends_and_the_other_goes_on(Bug::Nowhere, "keys", "a bug in a handler", |machine, shared| {
        let event = Event::new().unwrap();
        event.signal().unwrap();
        let guarded = machine.guard(shared.event_loop(), "keys");
        std::mem::forget(guarded.on_readable(event, |_| panic!("a bug in a handler")).unwrap());
    });
}
