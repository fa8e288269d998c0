//! PCI functions in a whole machine, with a guest that a script plays: it places BARs, sets MSI-X and a queue up, and has
//! its device replaced, saved and restored under it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ossature::bus::{Device, Size};
use ossature::memory::RamConfig;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::pci::PciBus;
use ossature::virtio::{Rng, SharedLoop, VirtioPci};
use ossature::vmm::error_chain;
use ossature::vmm::machine::{Machine, Outcome};
use ossature::vmm::scripted::{Script, Scripted};

/// Where a machine puts configuration space, and the windows that it has for BARs.
const ECAM: u64 = 0xd000_0000;
const LOW: u64 = 0xe000_0000;

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const MSIX_CONTROL: u64 = 0x42;

/// In the BAR: registers of the transport, doorbells, pending bits, entry 1 of the MSI-X table.
const STATUS: u64 = 20;
const NOTIFY: u64 = 0x1000;
const PENDING: u64 = 0x2000;
const ENTRY: u64 = 0x4010;
/// The line of the first message that is not masked any more.
const LINE: u32 = 24;
/// The line of the bus, by which the test tells the guest to go on.
const HOTPLUG: u32 = 5;

/// The rings, and what the descriptor points to.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;
/// Where the guest says how far it has come.
const MARK: u64 = 0x5000;

fn config(slot: u64, register: u64) -> u64 {
    ECAM + (slot << 15) + register
}

/// Places the BAR of a slot's function.
fn place(script: Script, slot: u64, base: u64) -> Script {
    script
        .mmio_write(config(slot, BAR0), Size::B4, base)
        .mmio_write(config(slot, BAR0 + 4), Size::B4, 0)
        .mmio_write(config(slot, COMMAND), Size::B2, 6)
}

/// Finds the device in slot 1, places its BAR and sets it up with a queue whose vector is 1.
fn set_up() -> Script {
    let script = Script::new().mmio_expect(config(1, 0), Size::B4, 0x1044_1af4);
    let script = place(script, 1, LOW)
        .mmio_write(LOW + ENTRY, Size::B4, 0xfee0_0000)
        .mmio_write(LOW + ENTRY + 8, Size::B4, 0x41)
        .mmio_write(LOW + ENTRY + 12, Size::B4, 0)
        .mmio_write(config(1, MSIX_CONTROL), Size::B2, 0x8000)
        .mmio_write(LOW + STATUS, Size::B1, 1)
        .mmio_write(LOW + STATUS, Size::B1, 3)
        .mmio_write(LOW + 8, Size::B4, 1)
        .mmio_write(LOW + 12, Size::B4, 1)
        .mmio_write(LOW + STATUS, Size::B1, 11)
        .mmio_write(LOW + 24, Size::B2, 8)
        .mmio_write(LOW + 26, Size::B2, 1)
        .mmio_write(LOW + 32, Size::B8, DESC)
        .mmio_write(LOW + 40, Size::B8, AVAIL)
        .mmio_write(LOW + 48, Size::B8, USED)
        .mmio_write(LOW + 28, Size::B2, 1)
        .mmio_write(LOW + STATUS, Size::B1, 15)
        .mmio_expect(LOW + STATUS, Size::B1, 15);
    let descriptor = [DATA.to_le_bytes(), (4_u64 | 2 << 32).to_le_bytes()].concat();
    script.ram_write(GuestAddress(DESC), &descriptor)
}

/// Offers the descriptor for the `number`th time.
fn kick(script: Script, number: u16) -> Script {
    script.ram_write(GuestAddress(AVAIL + 2), &number.to_le_bytes()).mmio_write(LOW + NOTIFY, Size::B2, 0)
}

/// The same, and waits for the interrupt.
fn request(script: Script, number: u16) -> Script {
    kick(script, number).await_interrupt(LINE).ram_expect(GuestAddress(USED + 2), &number.to_le_bytes())
}

/// Says that it has come to `number`, and waits until the test says that it goes on.
fn meet(script: Script, number: u16) -> Script {
    script.ram_write(GuestAddress(MARK), &number.to_le_bytes()).await_interrupt(HOTPLUG)
}

fn rng(io: &Arc<SharedLoop>, bus: &PciBus) -> VirtioPci {
    VirtioPci::new("rng", Box::new(Rng::new()), io.clone(), bus)
}

fn machine(script: Script, bus: &PciBus, devices: Vec<VirtioPci>) -> (Machine, Scripted) {
    let scripted = Scripted::new([script]);
    let devices = devices.into_iter().map(|device| Box::new(device) as Box<dyn Device>);
    let builder = Machine::builder("pci").memory(RamConfig::new(1 << 20)).device(bus.host("pci"));
    (builder.devices(devices).build(&scripted).unwrap(), scripted)
}

/// Waits until a condition holds. The machine must not end meanwhile.
fn until(machine: &Machine, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert_eq!(machine.outcome(), None, "{what}");
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn number(machine: &Machine, address: u64) -> u16 {
    machine.ram().map().read_obj(GuestAddress(address)).unwrap()
}

/// The guest has come to `number`, and all that it has asked for is done.
fn met(machine: &Machine, number: u16) {
    until(machine, "the guest comes to a request, which is answered", || {
        self::number(machine, MARK) == number && self::number(machine, USED + 2) == number
    });
}

#[test]
fn a_function_is_replaced_and_its_bar_its_vectors_and_its_queue_stay() {
    const ROUNDS: u16 = 20;
    let mut script = request(set_up(), 1);
    for number in 2..2 + ROUNDS {
        script = meet(script, number - 1)
            // A new device does not know what its driver has seen.
            .await_interrupt(LINE)
            .mmio_expect(config(1, BAR0), Size::B4, LOW | 4)
            .mmio_expect(config(1, MSIX_CONTROL), Size::B2, 0x8001)
            .mmio_expect(LOW + STATUS, Size::B1, 15)
            .mmio_expect(LOW + 26, Size::B2, 1)
            .mmio_expect(LOW + ENTRY + 8, Size::B8, 0x41);
        script = request(script, number);
    }
    // What is pending behind a mask comes when it is lifted.
    script = kick(script.mmio_write(LOW + ENTRY + 12, Size::B4, 1), 2 + ROUNDS);
    script = meet(script, 2 + ROUNDS)
        .mmio_expect(LOW + PENDING, Size::B8, 2)
        .mmio_expect(LOW + ENTRY + 12, Size::B4, 1)
        .mmio_write(LOW + ENTRY + 12, Size::B4, 0)
        .await_interrupt(LINE)
        .mmio_expect(LOW + PENDING, Size::B8, 0);
    script = request(script, 3 + ROUNDS);

    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let (machine, scripted) = machine(script, &bus, vec![rng(&io, &bus)]);
    machine.start().unwrap();
    for number in (1..=ROUNDS).chain([2 + ROUNDS]) {
        met(&machine, number);
        let old = machine.replace_device(rng(&io, &bus)).unwrap();
        assert_eq!(old.id(), "rng");
        assert_eq!(bus.slot_of("rng"), Some(1), "the guest sees the new one");
        bus.request_removal("rng").unwrap();
    }
    until(&machine, "the script ends", || scripted.remaining() == 0);
    assert_eq!(number(&machine, USED + 2), 3 + ROUNDS);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn the_host_of_a_bus_is_not_replaced_whatever_the_bus_of_the_other() {
    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let script = request(meet(request(set_up(), 1), 1), 2);
    let (machine, scripted) = machine(script, &bus, vec![rng(&io, &bus)]);
    machine.start().unwrap();
    met(&machine, 1);
    for other in [bus.host("pci"), PciBus::new().host("pci")] {
        let error = machine.replace_device(other).unwrap_err().to_string();
        assert!(error.starts_with("device \"pci\" cannot be replaced: "), "{error}");
    }
    // The guest still finds its functions, and is told of what is to go.
    bus.request_removal("rng").unwrap();
    until(&machine, "the script ends", || scripted.remaining() == 0);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn a_function_that_is_replaced_while_the_machine_is_paused_goes_on_with_it() {
    let script = request(meet(request(set_up(), 1), 1).await_interrupt(LINE), 2);
    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let (machine, scripted) = machine(script, &bus, vec![rng(&io, &bus)]);
    machine.start().unwrap();
    met(&machine, 1);
    let paused = machine.pause().unwrap();
    for _ in 0..3 {
        machine.handle().replace_device(rng(&io, &bus)).unwrap();
    }
    paused.resume().unwrap();
    bus.request_removal("rng").unwrap();
    until(&machine, "the script ends", || scripted.remaining() == 0);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn b7_a_machine_whose_guest_put_one_bar_onto_another_is_restored() {
    let other =
        |io: &Arc<SharedLoop>, bus: &PciBus| VirtioPci::new("another", Box::new(Rng::new()), io.clone(), bus);
    let script = place(place(Script::new(), 1, LOW), 2, LOW + 0x8000);
    let script = place(script, 2, LOW).mmio_write(LOW + STATUS, Size::B1, 1);
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let bus = PciBus::new();
    let (first, scripted) = machine(script, &bus, vec![rng(&io, &bus), other(&io, &bus)]);
    first.start().unwrap();
    until(&first, "the script ends", || scripted.remaining() == 0);
    let state = first.pause().unwrap().save().unwrap();
    first.stop().unwrap();

    let bus = PciBus::new();
    let script = Script::new()
        .await_kick()
        .mmio_expect(config(2, BAR0), Size::B4, LOW | 4)
        .mmio_expect(LOW + STATUS, Size::B1, 1)
        .mmio_expect(LOW + 0x8000 + STATUS, Size::B1, 0);
    let (second, scripted) = machine(script, &bus, vec![rng(&io, &bus), other(&io, &bus)]);
    second.start().unwrap();
    let paused = second.pause().unwrap();
    paused.restore(state).unwrap();
    paused.resume().unwrap();
    until(&second, "the script ends", || scripted.remaining() == 0);
    second.stop().unwrap();
}

#[test]
fn c1_a_function_is_in_the_machine_of_its_bus_or_in_none() {
    const REFUSED: &str = "device \"rng\" is on a PCI bus whose host bridge is not in this machine: add the device of PciBus::host";
    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let build = |devices: Vec<Box<dyn Device>>| {
        let builder = Machine::builder("pci").memory(RamConfig::new(1 << 20)).devices(devices);
        builder.build(&Scripted::new([Script::new()]))
    };
    let alone = build(vec![Box::new(rng(&io, &bus))]);
    assert_eq!(alone.unwrap_err().to_string(), REFUSED);
    let of_another = build(vec![Box::new(PciBus::new().host("pci")), Box::new(rng(&io, &bus))]);
    assert_eq!(of_another.unwrap_err().to_string(), REFUSED);

    // The bus is a machine's: no other one's devices are on it.
    let first = build(vec![Box::new(bus.host("pci"))]).unwrap();
    assert_eq!(build(vec![Box::new(rng(&io, &bus))]).unwrap_err().to_string(), REFUSED);
    let second = build(vec![Box::new(PciBus::new().host("pci"))]).unwrap();
    assert_eq!(second.add_device(rng(&io, &bus)).unwrap_err().to_string(), REFUSED);
    let both = build(vec![Box::new(rng(&io, &bus)), Box::new(bus.host("pci"))]).unwrap_err().to_string();
    assert_eq!(both, "device \"pci\" cannot be attached: the bus has a host bridge already");
    assert_eq!(bus.slot_of("rng"), None);
    first.start().unwrap();
    first.add_device(rng(&io, &bus)).unwrap();
    assert_eq!(bus.slot_of("rng"), Some(1));
}

#[test]
fn an_error_of_a_function_names_its_device_once() {
    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let other = VirtioPci::new("other", Box::new(Rng::new()), io.clone(), &bus).at(3);
    let (machine, _) = machine(Script::new(), &bus, vec![rng(&io, &bus).at(3)]);
    let error = machine.add_device(other).unwrap_err();
    let text = "device \"other\" cannot be attached: slot 3 is taken by rng";
    assert_eq!((error.to_string(), error_chain(&error)), (text.to_owned(), text.to_owned()));
}
