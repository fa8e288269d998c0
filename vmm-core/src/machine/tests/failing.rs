//! Devices that fail or panic at each step of their life, and those who ask at the worst moment.

use ossature_bus::{AddressSpace, RegisterRange as Range};

use super::*;

const HOME: u64 = 0xd800_0000;
/// Written to a register, this gives its device up.
const EJECT: u64 = u64::MAX;

/// A device whose step `at` fails or panics once armed. Its register moves to the page that is written to it.
#[derive(Clone)]
struct Failing {
    id: &'static str,
    base: u64,
    at: &'static str,
    panics: bool,
    armed: Arc<AtomicU32>,
    alive: Arc<AtomicU32>,
    resumed: Arc<AtomicU32>,
}

impl Failing {
    fn new(id: &'static str, base: u64) -> Self {
        let (armed, alive, resumed) = Default::default();
        Self { id, base, at: "", panics: false, armed, alive, resumed }
    }

    fn at(self, at: &'static str, panics: bool) -> Self {
        self.armed.store(1, Ordering::SeqCst);
        Self { at, panics, ..self }
    }

    fn step(&self, name: &str) -> Result<(), DeviceError> {
        if self.at != name || self.armed.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        assert!(!self.panics, "no {name}");
        Err(DeviceError::new(format!("no {name}")))
    }
}

/// Holds its own range, as a register must that moves.
struct Moves(Range, Arc<AtomicU32>);

impl Mmio for Moves {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(7)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        Ok(if value == EJECT { Effect::Remove(self.0.id()) } else { self.0.move_to(Some(value << 12)) })
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for Failing {
    fn id(&self) -> &str {
        self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::memory("moves", 0x1000).fixed(self.base).movable())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        self.step("attach")?;
        let range = assigned.registers("moves")?;
        self.alive.fetch_add(1, Ordering::SeqCst);
        range.answer(Arc::new(Moves(range.clone(), self.alive.clone())));
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.step("quiesce")
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.step("resume")?;
        self.resumed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.step("reset")
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.step("save")?;
        Ok(DeviceState::Saved(Handover::new(Encoder::new("org.example.failing", 1).finish())))
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        self.step("restore").map_err(|_| StateError::Unsupported { reason: "no restore" })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.step("detach")
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

fn with(devices: impl IntoIterator<Item = Failing>, script: Script) -> Machine {
    let devices = devices.into_iter().map(|device| Box::new(device) as Box<dyn Device>);
    Machine::builder("failing")
        .memory(RamConfig::new(1 << 20))
        .devices(devices)
        .device(Probe::named("power"))
        .on_reset(OnReset::Restart)
        .build(&Scripted::new([script]))
        .unwrap()
}

#[test]
fn e1_a_device_that_panics_in_a_step_of_its_life_ends_its_machine_and_no_caller() {
    for at in ["quiesce", "resume", "reset", "save", "restore"] {
        let device = Failing::new("bad", HOME).at(at, true);
        device.armed.store(0, Ordering::SeqCst);
        let armed = device.armed.clone();
        let machine = with([device], Script::new());
        machine.start().unwrap();
        armed.store(1, Ordering::SeqCst);
        let cycle = || {
            let paused = machine.pause()?;
            let state = paused.save()?;
            paused.reset()?;
            paused.restore(state)?;
            paused.resume()
        };
        assert!(cycle().is_err(), "{at}");
        let outcome = Outcome::Panicked { part: "bad".to_owned(), message: format!("no {at}") };
        assert_eq!(machine.outcome(), Some(outcome.clone()), "{at}");
        assert_eq!(machine.wait().unwrap(), outcome, "{at}");
    }
}

#[test]
fn e1_a_device_that_panics_before_or_after_its_time_in_the_machine_is_an_error() {
    let machine = with([], Script::new());
    machine.start().unwrap();
    let error = machine.add_device(Failing::new("bad", HOME).at("attach", true)).unwrap_err();
    assert!(error.to_string().contains("it panicked: no attach"), "{error}");
    machine.add_device(Failing::new("bad", HOME).at("detach", true)).unwrap();
    assert!(machine.remove_device("bad").is_err());
    machine.add_device(Failing::new("bad", HOME)).unwrap();
    for at in ["attach", "restore", "resume"] {
        assert!(machine.replace_device(Failing::new("bad", HOME).at(at, true)).is_err(), "{at}");
    }
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn a_device_that_cannot_resume_does_not_take_anothers_place() {
    let old = Failing::new("one", HOME);
    let machine = with([old.clone()], Script::new());
    machine.start().unwrap();
    let new = Failing::new("one", HOME).at("resume", false);
    assert!(machine.replace_device(new.clone()).is_err());
    assert_eq!(old.resumed.load(Ordering::SeqCst), 2, "the old one goes on");
    assert_eq!(new.alive.load(Ordering::SeqCst), 0, "nothing of the new one is left");
    assert_eq!(old.alive.load(Ordering::SeqCst), 1);
    machine.replace_device(Failing::new("one", HOME)).unwrap();
}

#[test]
fn a_device_that_cannot_be_quiesced_stays_and_goes_on() {
    let old = Failing::new("one", HOME).at("quiesce", false);
    let machine = with([old.clone()], Script::new());
    machine.start().unwrap();
    assert!(machine.remove_device("one").is_err());
    assert!(machine.replace_device(Failing::new("one", HOME)).is_err());
    assert_eq!(old.resumed.load(Ordering::SeqCst), 3, "started, and went on twice");

    old.armed.store(0, Ordering::SeqCst);
    machine.remove_device("one").unwrap();
}

#[test]
fn a_device_that_cannot_be_detached_is_gone_and_what_else_the_guest_asked_for_is_done() {
    let script = Script::new()
        .mmio_write(HOME, Size::B8, EJECT)
        .mmio_write(HOME + 0x1000, Size::B8, EJECT)
        .pio_write(PORT, Size::B1, 1)
        .pio_write(PORT, Size::B1, 0);
    let machine =
        with([Failing::new("bad", HOME).at("detach", false), Failing::new("good", HOME + 0x1000)], script);
    let mut events = machine.events();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    let seen: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    for id in ["bad", "good"] {
        let removed = MachineEvent::DeviceRemoved { id: id.to_owned() };
        assert!(seen.contains(&removed), "{id}: {seen:?}");
    }
    let told = |event: &MachineEvent| {
        let MachineEvent::Device { id, event: DeviceEvent::HostError { reason } } = event else {
            return false;
        };
        id == "bad" && reason.contains("no detach")
    };
    assert!(seen.iter().any(told) && seen.contains(&MachineEvent::Reset), "{seen:?}");
}

#[test]
fn registers_that_move_are_let_go_of_with_their_device() {
    let device = Failing::new("one", HOME);
    let alive = device.alive.clone();
    let machine = with([device.clone()], Script::new());
    machine.start().unwrap();
    machine.replace_device(device.clone()).unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    machine.remove_device("one").unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    machine.add_device(device).unwrap();
    drop(machine);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn a_reset_takes_ranges_back_that_have_changed_places() {
    let (one, two, free) = (HOME, HOME + 0x1000, HOME + 0x8000);
    let script = Script::new()
        .mmio_write(one, Size::B4, free >> 12)
        .mmio_write(two, Size::B4, one >> 12)
        .mmio_write(free, Size::B4, two >> 12)
        .pio_write(PORT, Size::B1, 1)
        .mmio_write(one, Size::B4, free >> 12)
        .mmio_expect(two, Size::B4, 7)
        .mmio_expect(one, Size::B4, 0xffff_ffff)
        .pio_write(PORT, Size::B1, 0);
    let machine = with([Failing::new("one", one), Failing::new("two", two)], script);
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

#[test]
fn a_request_that_has_been_served_does_not_pause_the_vcpus_later() {
    let vm = Scripted::new([Script::new()]).create_vm(&crate::VmConfig::default()).unwrap();
    let bus = |space| ossature_bus::Bus::new(space).cursor();
    let buses = crate::Buses::new(bus(AddressSpace::Pio), bus(AddressSpace::Mmio));
    let kicker = vm.create_vcpu(0, buses).unwrap().kicker();
    let status = super::status::Status::default();
    let mailbox = Arc::new(Mailbox::new());
    status.set_peers(vec![Peer { mailbox: Arc::clone(&mailbox), kicker }]);
    for _ in 0..500 {
        std::thread::scope(|scope| {
            scope.spawn(|| status.request(|requests| requests.pause = true));
            while !status.take_requests().pause {
                std::hint::spin_loop();
            }
            // Served, and resumed.
            status.order(super::mailbox::Order::Run);
        });
        let left = format!("{mailbox:?}");
        assert!(left.contains("order: Run"), "{left}");
    }
}
