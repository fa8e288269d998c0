//! Devices that come, go, take each other's place and move while vCPUs run.

use ossature_bus::{Event, RegisterRange as Range};
use ossature_memory::Backing;

use super::*;
use crate::error_chain;

const COUNTER: u64 = 0xd800_0000;

/// A register in memory that counts its reads, and moves where it is told to. It has everything that a board connects:
/// a page, a doorbell, an edge and a level interrupt.
struct Counter {
    id: &'static str,
    base: u64,
    reads: Arc<AtomicU32>,
    range: Arc<Mutex<Option<Range>>>,
    events: Arc<Mutex<Vec<Arc<Event>>>>,
}

impl Counter {
    fn new(id: &'static str, base: u64, reads: &Arc<AtomicU32>) -> Self {
        Self { id, base, reads: reads.clone(), range: Arc::default(), events: Arc::default() }
    }
}

struct CounterRegisters {
    reads: Arc<AtomicU32>,
    range: Range,
}

impl Mmio for CounterRegisters {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(u64::from(self.reads.fetch_add(1, Ordering::SeqCst)) & 0x7fff_ffff)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        Ok(self.range.move_to((value != 0).then_some(value << 12)))
    }
}

impl Device for Counter {
    fn id(&self) -> &str {
        self.id
    }

    fn requires(&self) -> Requires {
        let bell = ossature_bus::DoorbellRequest::new("bell", 0x50, Size::B4).value(7);
        let ignored = ossature_bus::DoorbellRequest::new("ignored", 0x64, Size::B4).ignored();
        let registers = RegistersRequest::memory("counter", 0x1000).fixed(self.base).movable();
        Requires::new()
            .registers(registers.doorbell(ignored).doorbell(bell))
            .interrupt(InterruptRequest::edge("edge"))
            .interrupt(InterruptRequest::level("level"))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let range = assigned.registers("counter")?;
        range.answer(Arc::new(CounterRegisters { reads: self.reads.clone(), range: range.clone() }));
        *self.range.lock().unwrap() = Some(range.clone());
        let edge = assigned.interrupt("edge")?.event().unwrap().clone();
        // Nobody is to wait for it.
        assert!(assigned.doorbell("ignored").is_err());
        *self.events.lock().unwrap() = vec![assigned.doorbell("bell")?.clone(), edge];
        assigned.interrupt("level")?.assert().unwrap();
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new("org.example.counter", 1);
        fields.u32(SAVED_READS, self.reads.load(Ordering::SeqCst));
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, "org.example.counter", 1..=1)?;
        let reads = fields.u32(SAVED_READS)?;
        fields.finish()?;
        self.reads.store(reads, Ordering::SeqCst);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        *self.range.lock().unwrap() = None;
        self.events.lock().unwrap().clear();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

fn empty(scripts: Vec<Script>) -> Machine {
    Machine::builder("board")
        .cpus(scripts.len() as u32)
        .memory(RamConfig::new(1 << 20))
        .build(&Scripted::new(scripts))
        .unwrap()
}

#[test]
fn a_device_is_added_found_and_removed_in_every_state() {
    let machine = empty(vec![
        Script::new()
            .await_kick()
            .mmio_expect(COUNTER, Size::B4, 0)
            .mmio_expect(COUNTER, Size::B4, 1)
            .await_kick()
            .mmio_expect(COUNTER, Size::B4, 0xffff_ffff)
            .pio_write(0x80, Size::B1, 0),
    ]);
    let reads = Arc::default();
    machine.add_device(Probe::named("power")).unwrap();
    machine.start().unwrap();
    machine.add_device(Counter::new("counter", COUNTER, &reads)).unwrap();
    assert_eq!(
        machine.add_device(Counter::new("counter", COUNTER + 0x1000, &reads)).unwrap_err().to_string(),
        "device id \"counter\" is used twice; give each device a unique id"
    );
    // A kick lets the guest go on.
    machine.pause().unwrap().resume().unwrap();
    while reads.load(Ordering::SeqCst) < 2 {
        std::thread::yield_now();
    }
    let paused = machine.pause().unwrap();
    let device = paused.remove_device("counter").unwrap();
    assert_eq!(device.id(), "counter");
    assert_eq!(
        paused.remove_device("counter").unwrap_err().to_string(),
        "the machine has no device \"counter\""
    );
    paused.resume().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    let changes: Vec<_> = events(&machine)
        .into_iter()
        .filter(|event| {
            matches!(event, MachineEvent::DeviceAdded { .. } | MachineEvent::DeviceRemoved { .. })
        })
        .collect();
    assert_eq!(changes.len(), 3);
}

#[test]
fn a_thousand_times_added_replaced_and_removed_while_vcpus_look() {
    // Whatever is there: the counter's next value, or nobody.
    let looks = |script: Script| (0..30_000).fold(script, |script, _| script.mmio_read(COUNTER, Size::B4));
    let machine = empty(vec![looks(Script::new()), looks(Script::new())]);
    machine.start().unwrap();
    let reads: Arc<AtomicU32> = Arc::default();
    for _ in 0..1000 {
        machine.add_device(Counter::new("counter", COUNTER, &reads)).unwrap();
        let old = machine.replace_device(Counter::new("counter", COUNTER, &reads)).unwrap();
        drop(old);
        let device = machine.remove_device("counter").unwrap();
        let unreached = reads.load(Ordering::SeqCst);
        drop(device);
        assert_eq!(reads.load(Ordering::SeqCst), unreached, "a vCPU has reached a device that was removed");
    }
    machine.stop().unwrap();
}

#[test]
fn a_device_that_takes_anothers_place_has_its_state_and_its_interrupts() {
    let machine = empty(vec![Script::new()]);
    let (first, second) = (Arc::new(AtomicU32::new(40)), Arc::<AtomicU32>::default());
    let old = Counter::new("counter", COUNTER, &first);
    let old_events = old.events.clone();
    machine.add_device(old).unwrap();
    machine.start().unwrap();
    let wired = old_events.lock().unwrap().clone();
    let new = Counter::new("counter", COUNTER, &second);
    let new_events = new.events.clone();
    machine.replace_device(new).unwrap();
    assert_eq!(second.load(Ordering::SeqCst), 40);
    let same = new_events.lock().unwrap().iter().zip(&wired).all(|(new, old)| Arc::ptr_eq(new, old));
    assert!(same && wired.len() == 2, "doorbell and interrupt are those that the guest knows");
    assert!(old_events.lock().unwrap().is_empty(), "the old device has let go of them");
}

#[test]
fn a_device_that_does_not_fit_leaves_the_old_one_at_work() {
    let probe = Probe::named("probe");
    let machine =
        machine(vec![Script::new().await_kick().pio_expect(PORT, Size::B1, 7).await_kick()], &probe);
    machine.start().unwrap();
    let refused = |device: Probe, text: &str| {
        let error = machine.replace_device(device).unwrap_err();
        assert_eq!(error.to_string(), text);
    };
    refused(Probe::named("nobody"), "the machine has no device \"nobody\"");
    refused(
        Probe { refuses: Some("attach"), ..Probe::named("probe") },
        "device \"probe\": its cable is missing: entity not found",
    );
    refused(
        Probe { refuses: Some("restore"), ..Probe::named("probe") },
        "device \"probe\" refuses its state: the device takes no saved state: a stubborn probe",
    );
    let error = machine.replace_device(Counter::new("probe", COUNTER, &Arc::default())).unwrap_err();
    assert!(matches!(error, LifecycleError::DifferentDevice { .. }), "{error}");
    let quiet = probe.count(QUIESCED);
    assert_eq!(probe.count(RESUMED), quiet + 1, "it goes on after each refusal");
    assert_eq!(machine.state(), LifecycleState::Running);
    while probe.count(READS) == 0 {
        machine.pause().unwrap().resume().unwrap();
    }
}

#[test]
fn a_range_moves_where_its_device_wants_it_and_stays_where_it_cannot() {
    let (to, ram, taken) = (COUNTER + 0x5000, 0u64, COUNTER + 0x9000);
    let reads = Arc::default();
    let machine = empty(vec![
        Script::new()
            .mmio_write(COUNTER, Size::B4, to >> 12)
            .mmio_expect(COUNTER, Size::B4, 0xffff_ffff)
            .mmio_expect(to, Size::B4, 0)
            .mmio_write(to + 0x50, Size::B4, 7)
            .mmio_write(to, Size::B4, (ram >> 12) + 0x10)
            .mmio_expect(to, Size::B4, 1)
            .mmio_write(to, Size::B4, taken >> 12)
            .mmio_expect(to, Size::B4, 2)
            .mmio_write(to, Size::B4, 0xfee0_0000 >> 12)
            .mmio_expect(to, Size::B4, 3)
            .mmio_write(to, Size::B4, 0)
            .mmio_expect(to, Size::B4, 0xffff_ffff)
            .pio_write(PORT, Size::B1, 0),
    ]);
    machine.add_device(Probe::named("power")).unwrap();
    machine.add_device(Counter::new("other", taken, &Arc::default())).unwrap();
    let counter = Counter::new("counter", COUNTER, &reads);
    let (range, wired) = (counter.range.clone(), counter.events.clone());
    machine.add_device(counter).unwrap();
    let bell = wired.lock().unwrap()[0].clone();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    assert_eq!(range.lock().unwrap().as_ref().unwrap().base(), None);
    assert_eq!(bell.take().unwrap(), 1, "the doorbell has moved with its range");
    let mut refused = None;
    machine.metrics(&mut |scope, metric, value| {
        if (scope, metric.name) == ("machine", "refused_moves") {
            refused = Some(value);
        }
    });
    assert_eq!(refused, Some(3));
}

#[test]
fn ram_and_devices_keep_out_of_each_others_places() {
    let machine = Machine::builder("places")
        .memory(RamConfig::new(1 << 20))
        .device(Counter::new("counter", COUNTER, &Arc::default()))
        .build(&Scripted::new([Script::new()]))
        .unwrap();
    let add = |at| machine.ram().add_slot(at, 0x10_0000, &Backing::Anonymous);
    let text = error_chain(&add(COUNTER & !0xf_ffff).unwrap_err());
    assert!(text.contains("of counter"), "{text}");
    let text = error_chain(&add(0xfee0_0000).unwrap_err());
    assert!(text.contains("the platform's own registers"), "{text}");
    // Where neither is, RAM comes and goes; while it is there, no device gets in.
    let place = (COUNTER & !0xf_ffff) + 0x10_0000;
    let slot = add(place).unwrap();
    let late = || Counter::new("late", place + 0x1000, &Arc::default());
    let text = machine.add_device(late()).unwrap_err().to_string();
    assert!(text.contains("of RAM"), "{text}");
    machine.ram().remove_slot(slot).unwrap();
    machine.add_device(late()).unwrap();
    assert!(add(place).is_err());
}

#[test]
fn a_reset_takes_a_moved_range_back() {
    let reads = Arc::default();
    let machine = Machine::builder("moved")
        .memory(RamConfig::new(1 << 20))
        .device(Probe::named("power"))
        .device(Counter::new("counter", COUNTER, &reads))
        .on_reset(OnReset::Restart)
        .build(&Scripted::new([Script::new()
            .mmio_write(COUNTER, Size::B4, 0)
            .pio_write(PORT, Size::B1, 1)
            .mmio_expect(COUNTER, Size::B4, 0)
            .pio_write(PORT, Size::B1, 0)]))
        .unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

#[test]
fn a_reset_takes_ranges_back_that_have_taken_each_others_place() {
    let other = COUNTER + 0x1000;
    let machine = Machine::builder("swapped")
        .memory(RamConfig::new(1 << 20))
        .device(Probe::named("power"))
        .device(Counter::new("a", COUNTER, &Arc::new(AtomicU32::new(10))))
        .device(Counter::new("b", other, &Arc::new(AtomicU32::new(20))))
        .on_reset(OnReset::Restart)
        .build(&Scripted::new([Script::new()
            .mmio_write(COUNTER, Size::B4, (other + 0x1000) >> 12)
            .mmio_write(other, Size::B4, COUNTER >> 12)
            .mmio_write(other + 0x1000, Size::B4, other >> 12)
            .pio_write(PORT, Size::B1, 1)
            .mmio_expect(COUNTER, Size::B4, 10)
            .mmio_expect(other, Size::B4, 20)
            .pio_write(PORT, Size::B1, 0)]))
        .unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

#[test]
fn a_device_of_a_machine_that_has_ended_by_itself_can_be_removed_before_anyone_has_waited() {
    let probe = Probe::named("probe");
    let machine = machine(vec![ask(0), Script::new()], &probe);
    machine.start().unwrap();
    while machine.outcome().is_none() {
        std::thread::yield_now();
    }
    // No vCPU takes notice any more; a removal that waits for one waits for ever.
    assert_eq!(machine.remove_device("probe").unwrap().id(), "probe");
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

/// A device on a level line that others share.
struct OnLine(&'static str, Arc<Mutex<Option<ossature_bus::Interrupt>>>);

impl Device for OnLine {
    fn id(&self) -> &str {
        self.0
    }

    fn requires(&self) -> Requires {
        Requires::new().interrupt(InterruptRequest::level("irq").fixed(6))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        *self.1.lock().unwrap() = Some(assigned.interrupt("irq")?.clone());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "it has none" })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        *self.1.lock().unwrap() = None;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

#[test]
fn a_shared_level_line_is_asserted_until_the_last_device_lets_go() {
    let script = Script::new().await_interrupt(6).expect_line(6, true);
    let script = script.pio_expect(PORT, Size::B1, 7).await_interrupt(5).expect_line(6, true);
    let script = script.pio_expect(PORT, Size::B1, 7).await_interrupt(5).expect_line(6, false);
    let probe = Probe::named("probe");
    let machine = machine(vec![script.pio_write(PORT, Size::B1, 0)], &probe);
    let irqs = [Arc::default(), Arc::default()];
    machine.add_device(OnLine("one", Arc::clone(&irqs[0]))).unwrap();
    machine.add_device(OnLine("two", Arc::clone(&irqs[1]))).unwrap();
    machine.start().unwrap();
    let irq = |n: usize| irqs[n].lock().unwrap().clone().unwrap();
    let looked = |times| {
        while probe.count(READS) < times {
            assert_eq!(machine.outcome(), None);
            std::thread::yield_now();
        }
    };
    let look_again = || {
        let assigned = probe.assigned.lock().unwrap();
        assigned.as_ref().unwrap().interrupt("irq").unwrap().signal().unwrap();
    };
    irq(0).assert().unwrap();
    irq(0).assert().unwrap();
    irq(1).assert().unwrap();
    looked(1);
    irq(0).deassert().unwrap();
    irq(0).deassert().unwrap();
    look_again();
    looked(2);
    // A device that is removed takes its part of the line with it.
    machine.remove_device("two").unwrap();
    look_again();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

/// Two ranges that begin nowhere. A write says where both are to be, in units of 4 KiB: the first in its lower half, the
/// second in its upper one; a write of `EJECT` gives the device up.
struct Pair {
    saved: Arc<Mutex<u64>>,
    ranges: Arc<Mutex<Vec<Range>>>,
}

const CONTROL: u64 = 0xd700_0000;
const EJECT: u64 = u64::MAX;
const SAVED_PLACES: Field = Field::new(1, "places");

struct PairRegisters {
    places: Arc<Mutex<u64>>,
    ranges: Vec<Range>,
    value: u64,
}

/// Asks for both ranges to be moved.
fn put(ranges: &[Range], places: u64) -> Effect {
    let halves = [places & 0xffff_ffff, places >> 32];
    let effects =
        ranges.iter().zip(halves).map(|(range, half)| range.move_to((half != 0).then_some(half << 12)));
    effects.fold(Effect::None, |_, effect| effect)
}

impl Mmio for PairRegisters {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(self.value)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        if value == EJECT {
            return Ok(Effect::Remove(self.ranges[1].id()));
        }
        *self.places.lock().unwrap() = value;
        Ok(put(&self.ranges, value))
    }
}

impl Device for Pair {
    fn id(&self) -> &str {
        "pair"
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::memory("control", 0x1000).fixed(CONTROL))
            .registers(RegistersRequest::memory("first", 0x1000).unplaced())
            .registers(RegistersRequest::memory("second", 0x1000).unplaced())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let ranges: Vec<_> = assigned.all_registers()[1..].to_vec();
        for (value, range) in (0..).zip(assigned.all_registers()) {
            let (places, ranges) = (self.saved.clone(), ranges.clone());
            range.answer(Arc::new(PairRegisters { places, ranges, value }));
        }
        *self.ranges.lock().unwrap() = ranges;
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        *self.saved.lock().unwrap() = 0;
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new("org.example.pair", 1);
        fields.u64(SAVED_PLACES, *self.saved.lock().unwrap());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, "org.example.pair", 1..=1)?;
        let places = fields.u64(SAVED_PLACES)?;
        fields.finish()?;
        *self.saved.lock().unwrap() = places;
        let _ = put(&self.ranges.lock().unwrap(), places);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.ranges.lock().unwrap().clear();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

impl Pair {
    fn new() -> Self {
        Self { saved: Arc::default(), ranges: Arc::default() }
    }
}

fn both(first: u64, second: u64) -> u64 {
    first >> 12 | second >> 12 << 32
}

const NOBODY: u64 = 0xffff_ffff;

#[test]
fn one_effect_moves_all_ranges_of_its_device_even_where_they_swap_places() {
    let (a, b) = (COUNTER, COUNTER + 0x1000);
    let machine = empty(vec![
        Script::new()
            .mmio_expect(a, Size::B4, NOBODY)
            .mmio_write(CONTROL, Size::B8, both(a, b))
            .mmio_expect(a, Size::B4, 1)
            .mmio_expect(b, Size::B4, 2)
            .mmio_write(CONTROL, Size::B8, both(b, a))
            .mmio_expect(a, Size::B4, 2)
            .mmio_expect(b, Size::B4, 1)
            // RAM is no place for the first; the second goes where it is wanted all the same.
            .mmio_write(CONTROL, Size::B8, both(0x1000, b + 0x1000))
            .mmio_expect(a, Size::B4, NOBODY)
            .mmio_expect(b, Size::B4, 1)
            .mmio_expect(b + 0x1000, Size::B4, 2)
            .mmio_write(CONTROL, Size::B8, 0)
            .mmio_expect(b, Size::B4, NOBODY)
            .pio_write(PORT, Size::B1, 0),
    ]);
    machine.add_device(Probe::named("power")).unwrap();
    machine.add_device(Pair::new()).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
}

#[test]
fn a_reset_takes_ranges_out_and_a_restored_state_puts_them_back() {
    let (a, b) = (COUNTER, COUNTER + 0x1000);
    let machine = empty(vec![
        Script::new().mmio_write(CONTROL, Size::B8, both(a, b)).mmio_expect(b, Size::B4, 2).await_kick(),
    ]);
    let pair = Pair::new();
    let ranges = pair.ranges.clone();
    let bases = || ranges.lock().unwrap().iter().map(|range| range.base()).collect::<Vec<_>>();
    machine.add_device(pair).unwrap();
    machine.start().unwrap();
    while bases() != [Some(a), Some(b)] {
        std::thread::yield_now();
    }
    let paused = machine.pause().unwrap();
    let state = paused.save().unwrap();
    machine.handle().reset().unwrap();
    assert_eq!(bases(), [None, None]);
    paused.restore(state).unwrap();
    assert_eq!(bases(), [Some(a), Some(b)]);
}

#[test]
fn a_device_that_its_guest_ejects_is_removed_by_whoever_waits() {
    let machine = empty(vec![
        Script::new()
            .mmio_expect(CONTROL, Size::B4, 0)
            .mmio_write(CONTROL, Size::B8, EJECT)
            .mmio_write(CONTROL, Size::B8, EJECT)
            .await_kick(),
    ]);
    let pair = Pair::new();
    let ranges = pair.ranges.clone();
    machine.add_device(pair).unwrap();
    machine.start().unwrap();
    let removed = MachineEvent::DeviceRemoved { id: "pair".to_owned() };
    let mut stream = machine.handle().events();
    let waits = std::thread::spawn({
        let handle = machine.handle();
        move || handle.wait()
    });
    while stream.next_timeout(Duration::from_secs(60)) != Some(removed.clone()) {}
    assert!(ranges.lock().unwrap().is_empty(), "it has been detached");
    machine.handle().stop();
    assert_eq!(waits.join().unwrap().unwrap(), Outcome::Stopped);
}
