//! Devices of a running machine on this machine's KVM: they come, go, take each other's place and move while vCPUs spin
//! on their registers; they share level lines, hear of acknowledgements and send messages.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests, too, may panic

mod board;
mod taken;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use board::{
    CODE, DEVICES, HANDLER, LAPIC, Part, SECOND, START_SECOND, alone, guest, number, registers, until,
};
use ossature_bus::{
    Access, Assigned, BusFault, DoorbellRequest, Effect, Interrupt, InterruptRequest, MessagesRequest, Mmio,
    MsiMessage, RegisterRange, RegistersRequest, Requires, Size, VmRequest,
};
use ossature_core::Kvm;
use ossature_core::machine::{Machine, Outcome};
use taken::{given_back, taken};

/// What the register page says.
const MAGIC: u32 = 0x7472_6976;

/// Reads of the counted register, and writes that reached the device though they ring its doorbell: the vCPU had left the
/// guest just before that was connected.
#[derive(Default)]
struct Counts {
    reads: AtomicU32,
    rung: AtomicU32,
}

struct Port(Arc<Counts>);

impl Mmio for Port {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        match at.offset {
            0 => Ok(MAGIC.into()),
            _ => Ok(u64::from(self.0.reads.fetch_add(1, Ordering::SeqCst)) & 0x7fff_ffff),
        }
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        self.0.rung.fetch_add(1, Ordering::SeqCst);
        Ok(Effect::None)
    }
}

/// A device with a page of registers, a doorbell in it, a register whose reads are counted, and two interrupts.
fn counter(counts: &Arc<Counts>) -> Part {
    let bell = DoorbellRequest::new("bell", 0x50, Size::B4).value(7);
    let requires = Requires::new()
        .registers(RegistersRequest::memory("page", 0x1000).fixed(DEVICES).with_page().doorbell(bell))
        .registers(RegistersRequest::memory("counted", 0x1000).fixed(DEVICES + 0x1000))
        .interrupt(InterruptRequest::edge("edge"))
        .interrupt(InterruptRequest::level("level"));
    let counts = Arc::clone(counts);
    Part::new("counter", requires, move |assigned| {
        assigned.registers("page").unwrap().page().unwrap().store(0, MAGIC);
        assigned.interrupt("edge").unwrap().signal().unwrap();
        assigned.interrupt("level").unwrap().assert().unwrap();
        Port(Arc::clone(&counts))
    })
}

/// Reads the counted register and the page, and rings, for ever. Counts at DS: answers of the device, reads that nobody
/// answered, and what the page has not been told to say.
const SPIN: &[u8] = &[
    0x64, 0x66, 0xa1, 0x20, 0x10, // mov eax, fs:[0x1020]
    0x66, 0x83, 0xf8, 0xff, // cmp eax, -1
    0x74, 0x07, // je to the second inc
    0x66, 0xff, 0x06, 0x00, 0x00, // inc dword [0]
    0xeb, 0x05, // jmp over the next inc
    0x66, 0xff, 0x06, 0x04, 0x00, // inc dword [4]
    0x64, 0x66, 0xa1, 0x00, 0x00, // mov eax, fs:[0]
    0x66, 0x83, 0xf8, 0xff, // cmp eax, -1
    0x74, 0x0d, // je to the bell
    0x66, 0x3d, 0x76, 0x69, 0x72, 0x74, // cmp eax, MAGIC
    0x74, 0x05, // je to the bell
    0x66, 0xff, 0x06, 0x08, 0x00, // inc dword [8]
    0x64, 0x66, 0xc7, 0x06, 0x50, 0x00, 0x07, 0x00, 0x00, 0x00, // mov dword fs:[0x50], 7
    0xeb, 0xc5, // jmp to the start
];

/// Where each vCPU counts.
const COUNTS: [u64; 2] = [0x5000, 0x6000];

/// A machine whose two vCPUs are in [`SPIN`].
fn spinning() -> Machine {
    let start = [START_SECOND, &[0xeb, 0xfe]].concat(); // jmp $
    let second = [0xfe, 0x06, 0x00, 0x40, 0xeb, 0xfe]; // inc byte [0x4000]; jmp $
    let spin = 0x1800;
    let machine = guest("spinning", &[(CODE.into(), &start), (SECOND, &second), (spin.into(), SPIN)])
        .cpus(2)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    until(&machine, "the start of the second vCPU", || number(&machine, 0x4000) == 1);
    let paused = machine.pause().unwrap();
    for (index, data) in (0..).zip(COUNTS) {
        paused.vcpus().set_registers(index, registers(spin, data)).unwrap();
    }
    paused.resume().unwrap();
    machine
}

/// What both vCPUs have counted at `offset`.
fn counted(machine: &Machine, offset: u64) -> u32 {
    COUNTS.iter().map(|counts| number(machine, counts + offset)).sum()
}

const ANSWERED: u64 = 0;
const NOBODY: u64 = 4;
const NONSENSE: u64 = 8;

/// Both vCPUs have gone once through the whole loop from now on.
fn turn(machine: &Machine) {
    let rounds = |counts: u64| number(machine, counts + ANSWERED) + number(machine, counts + NOBODY);
    let before = COUNTS.map(rounds);
    until(machine, "a turn of both vCPUs", || {
        COUNTS.iter().zip(before).all(|(counts, before)| rounds(*counts) >= before + 2)
    });
}

fn add_replace_and_remove(rounds: u32) {
    let machine = spinning();
    let counts: Arc<Counts> = Arc::default();
    let (mut bells, mut start) = (0, None);
    for round in 0..=rounds {
        let first = counter(&counts);
        machine.add_device(first.clone()).unwrap();
        let bell = Arc::clone(first.assigned().doorbell("bell").unwrap());
        let ports: Vec<Weak<dyn Mmio>> = first
            .assigned()
            .all_registers()
            .iter()
            .map(|registers| Arc::downgrade(&registers.port().unwrap()))
            .collect();
        let second = counter(&counts);
        let old = machine.replace_device(second.clone()).unwrap();
        drop((old, first));
        assert!(
            ports.iter().all(|port| port.upgrade().is_none()),
            "the bus reaches the one that was replaced"
        );
        if round % 50 == 0 {
            turn(&machine);
        }
        let registers = second.assigned().all_registers().to_vec();
        let ports: Vec<Weak<dyn Mmio>> =
            registers.iter().map(|registers| Arc::downgrade(&registers.port().unwrap())).collect();
        drop(machine.remove_device("counter").unwrap());
        let unreached = counts.reads.load(Ordering::SeqCst);
        drop((second, registers));
        assert!(
            ports.iter().all(|port| port.upgrade().is_none()),
            "the bus reaches the one that was removed"
        );
        if round % 50 == 0 {
            turn(&machine);
        }
        assert_eq!(counts.reads.load(Ordering::SeqCst), unreached, "a device that was removed is reached");
        bells += bell.take().unwrap();
        drop(bell);
        // After the first round: it leaves behind what is made once.
        start = start.or_else(|| Some(taken()));
    }
    given_back(start.unwrap());
    // What was read has been counted.
    turn(&machine);
    let paused = machine.pause().unwrap();
    assert_eq!(
        counted(&machine, ANSWERED),
        counts.reads.load(Ordering::SeqCst),
        "reads, seen from both sides"
    );
    assert!(counted(&machine, ANSWERED) > 0 && counted(&machine, NOBODY) > 0 && bells > 0);
    assert_eq!(counted(&machine, NONSENSE), 0, "neither the device's nor nobody's");
    paused.resume().unwrap();
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn a_device_is_added_replaced_and_removed_a_thousand_times_while_vcpus_spin_on_it() {
    let _alone = alone();
    add_replace_and_remove(1000);
}

#[test]
fn no_access_is_lost_while_a_device_is_replaced_a_thousand_times() {
    let _alone = alone();
    let machine = spinning();
    let counts: Arc<Counts> = Arc::default();
    machine.add_device(counter(&counts)).unwrap();
    turn(&machine);
    let rung = || counts.rung.load(Ordering::SeqCst);
    let (nobody, heard, start) = (counted(&machine, NOBODY), rung(), taken());
    for _ in 0..1000 {
        drop(machine.replace_device(counter(&counts)).unwrap());
    }
    turn(&machine);
    given_back(start);
    assert_eq!(counted(&machine, NOBODY), nobody, "a read that nobody answered");
    drop(machine.remove_device("counter").unwrap());
    // What was read has been counted.
    turn(&machine);
    assert_eq!(counted(&machine, ANSWERED), counts.reads.load(Ordering::SeqCst));
    assert_eq!(counted(&machine, NONSENSE), 0);
    assert_eq!(rung(), heard, "the doorbell has stayed where it was");
}

const STAGE: &str = "OSSATURE_TEST_SLOTS";

#[test]
fn a_register_page_takes_the_slot_that_another_one_gave_back() {
    if std::env::var_os(STAGE).is_some() {
        return add_replace_and_remove(20);
    }
    let _alone = alone();
    let log = tempfile::NamedTempFile::new().unwrap();
    let test = Command::new("strace")
        .args(["-f", "-qq", "-e", "signal=none", "-e", "trace=ioctl", "-o"])
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_register_page_takes_the_slot_that_another_one_gave_back"])
        .env(STAGE, "1")
        .output()
        .expect("strace does not start: on Debian it is the package `strace`");
    assert!(test.status.success(), "{test:?}");
    let log = std::fs::read_to_string(log.path()).unwrap();
    let slots: Vec<&str> = log.lines().filter(|line| line.contains("KVM_SET_USER_MEMORY_REGION")).collect();
    // RAM is slot 0; the page comes and goes in slot 1.
    assert_eq!(slots.len(), 1 + 2 * 21, "{slots:#?}");
    assert!(slots.iter().skip(1).all(|line| line.contains("{slot=1, ")), "{slots:#?}");
}

/// A device that has a cause for its interrupt until the guest acknowledges it by a write.
struct Caller {
    cause: Mutex<bool>,
    interrupt: Interrupt,
    served: Arc<AtomicU32>,
}

impl Caller {
    fn call(&self) {
        let mut cause = self.cause.lock().unwrap();
        *cause = true;
        self.interrupt.assert().unwrap();
    }
}

struct CallerPort(Arc<Caller>);

impl Mmio for CallerPort {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok((*self.0.cause.lock().unwrap()).into())
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        let mut cause = self.0.cause.lock().unwrap();
        *cause = false;
        self.0.interrupt.deassert().unwrap();
        self.0.served.fetch_add(1, Ordering::SeqCst);
        Ok(Effect::None)
    }
}

/// The device, and its inside once it is attached.
fn caller(
    id: &'static str,
    base: u64,
    interrupt: InterruptRequest,
) -> (Part, Arc<Mutex<Option<Arc<Caller>>>>) {
    let inside: Arc<Mutex<Option<Arc<Caller>>>> = Arc::default();
    let requires =
        Requires::new().registers(RegistersRequest::memory("cause", 0x1000).fixed(base)).interrupt(interrupt);
    let kept = Arc::clone(&inside);
    let part = Part::new(id, requires, move |assigned: &Assigned| {
        let interrupt = assigned.interrupt("irq").unwrap().clone();
        let caller = Arc::new(Caller { cause: Mutex::new(false), interrupt, served: Arc::default() });
        *kept.lock().unwrap() = Some(Arc::clone(&caller));
        CallerPort(caller)
    });
    (part, inside)
}

/// Where handlers count interrupts, and those without a cause.
const INTERRUPTS: u64 = 0x5008;
const SPURIOUS: u64 = 0x500c;
/// Not 0 when the guest waits for interrupts.
const READY: u64 = 0x5010;

/// The first PIC has line 5, level-triggered, at vector 0x25; the I/O APIC has none.
const PIC: &[u8] = &[
    0xb0, 0x11, 0xe6, 0x20, // initialize,
    0xb0, 0x20, 0xe6, 0x21, // vectors from 0x20,
    0xb0, 0x04, 0xe6, 0x21, // the second one on line 2,
    0xb0, 0x01, 0xe6, 0x21, // 8086 mode,
    0xb0, 0xdf, 0xe6, 0x21, // all masked but line 5
    0xba, 0xd0, 0x04, 0xb0, 0x20, 0xee, // ELCR: line 5 is level-triggered
];
const PIC_VECTOR: u64 = 0x25;
const PIC_END: &[u8] = &[0xb0, 0x20, 0xe6, 0x20]; // mov al, 0x20; out 0x20, al

/// The I/O APIC has pin 5, level-triggered, at vector 0x45 of this vCPU; the PICs have none.
const APIC: &[u8] = &[
    0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1, // all lines masked
    0x26, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00,
    0x00, // mov dword es:[0xf0], 0x1ff: local APIC on
    0x65, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x1b, 0x00, 0x00, 0x00, // mov dword gs:[0], 0x1b
    0x65, 0x66, 0xc7, 0x06, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword gs:[0x10], 0
    0x65, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x1a, 0x00, 0x00, 0x00, // mov dword gs:[0], 0x1a
    0x65, 0x66, 0xc7, 0x06, 0x10, 0x00, 0x45, 0x80, 0x00, 0x00, // mov dword gs:[0x10], 0x8045
];
const APIC_VECTOR: u64 = 0x45;
const APIC_END: &[u8] = &[0x26, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00]; // mov dword es:[0xb0], 0

/// A guest that sets up its interrupt controllers and then waits for interrupts at `vector`. Its handler asks both
/// devices, acknowledges to each that has a cause, counts, and ends with `end`.
fn serving(setup: &[u8], vector: u64, end: &[u8]) -> ossature_core::machine::MachineBuilder {
    // sti; nop; mov byte [READY], 1; hlt
    let start = [setup, &[0xfb, 0x90, 0xc6, 0x06, 0x10, 0x50, 0x01, 0xf4, 0xeb, 0xfd]].concat();
    let ask = |device: u8, served: u8| {
        [
            &[0x64, 0x66, 0xa1, 0x00, device][..], // mov eax, fs:[device]
            &[0x66, 0x85, 0xc0],                   // test eax, eax
            &[0x74, 0x0b],                         // jz over the rest
            &[0x66, 0xff, 0x06, served, 0x50],     // inc dword [0x5000 + served]
            &[0x64, 0x66, 0xa3, 0x00, device],     // mov fs:[device], eax
            &[0x43],                               // inc bx
        ]
        .concat()
    };
    let handler = [
        &[0x31, 0xdb][..], // xor bx, bx
        &ask(0x00, 0x00),
        &ask(0x10, 0x04),
        &[0x66, 0xff, 0x06, 0x08, 0x50], // inc dword [INTERRUPTS]
        &[0x85, 0xdb],                   // test bx, bx
        &[0x75, 0x05],                   // jnz over the next
        &[0x66, 0xff, 0x06, 0x0c, 0x50], // inc dword [SPURIOUS]
        end,
        &[0xcf], // iret
    ]
    .concat();
    let entry = u32::from(HANDLER).to_le_bytes();
    guest("serving", &[(CODE.into(), &start), (HANDLER.into(), &handler), (4 * vector, &entry)])
}

/// Two devices on line 5 call 200 times each, at the same time or one after the other. A controller that is `exact`
/// interrupts as long as the line is asserted and no longer; KVM in software acknowledges at the I/O APIC for the guest
/// when its handler begins, so that it runs once more.
fn two_callers(setup: &[u8], vector: u64, end: &[u8], exact: bool) {
    const ROUNDS: u32 = 200;
    let level = || InterruptRequest::level("irq").fixed(5);
    let (one, first) = caller("one", DEVICES, level());
    let (two, second) = caller("two", DEVICES + 0x1000, level());
    let machine = serving(setup, vector, end).device(one).device(two).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    until(&machine, "the guest is ready", || number(&machine, READY) != 0);
    let inside = |kept: &Mutex<Option<Arc<Caller>>>| kept.lock().unwrap().clone().unwrap();
    let callers = [inside(&first), inside(&second)];
    let served = |which: usize| callers[which].served.load(Ordering::SeqCst);
    for round in 1..=ROUNDS {
        callers[0].call();
        if round % 2 == 0 {
            until(&machine, "the first is served", || served(0) == round);
        }
        callers[1].call();
        until(&machine, "both are served", || (served(0), served(1)) == (round, round));
    }
    // The line is low: the guest halts, and nothing interrupts it any more.
    until(&machine, "the line is deasserted", || {
        let before = number(&machine, INTERRUPTS);
        (0..20).for_each(|_| machine.pause().unwrap().resume().unwrap());
        number(&machine, INTERRUPTS) == before
    });
    let seen = [0x5000, 0x5004].map(|served| number(&machine, served));
    assert_eq!(seen, [ROUNDS, ROUNDS], "what the guest saw");
    let interrupts = number(&machine, INTERRUPTS);
    let spurious = number(&machine, SPURIOUS);
    assert!(spurious == 0 || !exact, "{spurious} interrupts without a cause");
    // One for each round at least: a handler that is slow serves both causes of a round in one go.
    assert!((ROUNDS..=ROUNDS * 2).contains(&(interrupts - spurious)), "{interrupts} interrupts, {spurious}");
    // One that goes away takes its cause with it; the line is the other one's.
    callers[0].interrupt.assert().unwrap();
    drop(machine.remove_device("one").unwrap());
    callers[1].call();
    until(&machine, "the one that is left is served", || served(1) == ROUNDS + 1);
}

#[test]
fn a_level_line_of_the_pic_is_shared_by_two_devices() {
    let _alone = alone();
    two_callers(PIC, PIC_VECTOR, PIC_END, true);
}

#[test]
fn a_level_line_of_the_io_apic_is_shared_by_two_devices() {
    let _alone = alone();
    two_callers(APIC, APIC_VECTOR, APIC_END, false);
}

#[test]
fn an_interrupt_that_comes_before_the_guest_has_set_up_a_controller_is_no_exception() {
    let _alone = alone();
    // Line 5 of a PIC that nobody has set up would be vector 5, the exception of BOUND.
    let (part, inside) = caller("one", DEVICES, InterruptRequest::level("irq").fixed(5));
    let machine = serving(&[], 5, PIC_END).device(part).build(&Kvm::open().unwrap()).unwrap();
    inside.lock().unwrap().clone().unwrap().call();
    machine.start().unwrap();
    until(&machine, "the guest has its interrupts on", || number(&machine, READY) != 0);
    assert_eq!(number(&machine, INTERRUPTS), 0);
}

/// The guest's acknowledgement reaches a device that asked for it, which asserts its line again as long as it has a
/// cause.
fn resampled(setup: &[u8], vector: u64, end: &[u8]) {
    let (part, inside) = caller("one", DEVICES, InterruptRequest::level("irq").fixed(5).resampled());
    let machine = serving(setup, vector, end).device(part).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    until(&machine, "the guest is ready", || number(&machine, READY) != 0);
    let caller = inside.lock().unwrap().clone().unwrap();
    let acknowledged = caller.interrupt.resample().unwrap();
    let acknowledgement = || {
        until(&machine, "the acknowledgement", || acknowledged.take().unwrap() > 0);
    };
    for round in 1..=100 {
        caller.interrupt.assert().unwrap();
        acknowledgement();
        until(&machine, "the interrupt", || number(&machine, INTERRUPTS) == round);
    }
    // The acknowledgement has deasserted it.
    for _ in 0..20 {
        machine.pause().unwrap().resume().unwrap();
    }
    assert_eq!((number(&machine, INTERRUPTS), acknowledged.take().unwrap()), (100, 0));
}

#[test]
fn a_resampled_line_of_the_pic_says_when_it_is_acknowledged() {
    let _alone = alone();
    resampled(PIC, PIC_VECTOR, PIC_END);
}

#[test]
fn a_resampled_line_of_the_io_apic_says_when_it_is_acknowledged() {
    let _alone = alone();
    resampled(APIC, APIC_VECTOR, APIC_END);
}

struct Nothing;

impl Mmio for Nothing {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(0)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

fn messenger(count: u16) -> Part {
    Part::new("messenger", Requires::new().messages(MessagesRequest::new("messages", count)), |_| Nothing)
}

#[test]
fn a_message_that_is_signalled_while_masked_is_sent_once_when_unmasked() {
    let _alone = alone();
    let part = messenger(2);
    // A second handler, at vector 0x46, counts elsewhere.
    let other = [&[0x66, 0xff, 0x06, 0x14, 0x50][..], APIC_END, &[0xcf]].concat(); // inc dword [OTHER]
    const OTHER: u64 = 0x5014;
    let machine =
        serving(APIC, APIC_VECTOR, APIC_END).device(part.clone()).build(&Kvm::open().unwrap()).unwrap();
    let dma = machine.ram().dma();
    let write =
        |at: u64, bytes: &[u8]| dma.write(ossature_memory::vm_memory::GuestAddress(at), bytes).unwrap();
    machine.start().unwrap();
    until(&machine, "the guest is ready", || number(&machine, READY) != 0);
    write(0x3800, &other);
    write(4 * 0x46, &0x3800_u32.to_le_bytes());
    let assigned = part.assigned();
    let [message, second] = assigned.messages("messages").unwrap() else { panic!("two messages") };
    let to = |vector| MsiMessage::new(LAPIC, vector);
    let arrived = |at: u64, times: u32| {
        until(&machine, "the message", || number(&machine, at) == times);
        (0..5).for_each(|_| machine.pause().unwrap().resume().unwrap());
        assert_eq!(number(&machine, at), times);
    };
    message.set_message(to(0x45)).unwrap();
    for times in 1..=20 {
        (0..3).for_each(|_| message.interrupt().signal().unwrap());
        assert_eq!(number(&machine, INTERRUPTS), 2 * (times - 1), "it is masked");
        // Whether or not the guest looks at the pending bits meanwhile.
        if times % 2 == 0 {
            assert!(message.is_pending() && !second.is_pending());
        }
        message.unmask().unwrap();
        arrived(INTERRUPTS, 2 * times - 1);
        assert!(!message.is_pending());
        message.interrupt().signal().unwrap();
        arrived(INTERRUPTS, 2 * times);
        message.mask().unwrap();
    }
    // Unmasked without anything pending; then what it sends is changed while it is masked, and while it is not.
    message.unmask().unwrap();
    message.mask().unwrap();
    message.interrupt().signal().unwrap();
    message.set_message(to(0x46)).unwrap();
    message.unmask().unwrap();
    arrived(OTHER, 1);
    message.set_message(to(0x45)).unwrap();
    message.interrupt().signal().unwrap();
    arrived(INTERRUPTS, 41);
    // The second one is a message of its own.
    second.set_message(to(0x46)).unwrap();
    second.unmask().unwrap();
    second.interrupt().signal().unwrap();
    arrived(OTHER, 2);
    assert_eq!(number(&machine, INTERRUPTS), 41);
}

#[test]
fn messages_of_devices_that_go_are_given_back() {
    let _alone = alone();
    let machine = serving(APIC, APIC_VECTOR, APIC_END).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let mut start = None;
    // 9,600 in all, where KVM has 4,096 routes.
    for _ in 0..150 {
        let part = messenger(64);
        machine.add_device(part.clone()).unwrap();
        for message in part.assigned().messages("messages").unwrap() {
            message.set_message(MsiMessage::new(LAPIC, 0x45)).unwrap();
            message.unmask().unwrap();
        }
        // A handle that is kept does not keep the route.
        let kept = part.assigned();
        drop(machine.remove_device("messenger").unwrap());
        drop((part, kept));
        start = start.or_else(|| Some(taken()));
    }
    given_back(start.unwrap());
}

/// Moves to the page that is written to 0x8; powers the machine off by 0xc.
struct Mover(RegisterRange);

impl Mmio for Mover {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(MAGIC.into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        Ok(match at.offset {
            0x8 => self.0.move_to((value != 0).then_some(value << 12)),
            0xc => Effect::Vm(VmRequest::Shutdown),
            // The doorbell, where there is none.
            _ => return Err(BusFault::Unmapped),
        })
    }
}

fn mover(id: &'static str, base: u64) -> Part {
    let bell = DoorbellRequest::new("bell", 0x50, Size::B4).value(7);
    let registers =
        RegistersRequest::memory("registers", 0x1000).fixed(base).movable().with_page().doorbell(bell);
    Part::new(id, Requires::new().registers(registers), |assigned| {
        let registers = assigned.registers("registers").unwrap();
        registers.page().unwrap().store(0, MAGIC);
        Mover(registers.clone())
    })
}

#[test]
fn a_range_moves_with_its_page_and_its_doorbell_and_stays_where_it_cannot() {
    let _alone = alone();
    let store = |offset: u16, value: u32| {
        // mov dword fs:[offset], value
        let (offset, value) = (offset.to_le_bytes(), value.to_le_bytes());
        [&[0x64, 0x66, 0xc7, 0x06][..], &offset, &value].concat()
    };
    let look = |offset: u16, result: u16| {
        // mov eax, fs:[offset]; mov [result], eax
        [&[0x64, 0x66, 0xa1][..], &offset.to_le_bytes(), &[0x66, 0xa3], &result.to_le_bytes()].concat()
    };
    let page = |address: u64| (address >> 12) as u32;
    let code = [
        look(0, 0x5000),
        store(0x50, 7), // rings
        store(0x8, page(DEVICES + 0x5000)),
        look(0, 0x5004), // nobody
        store(0x50, 7),  // nobody
        look(0x5000, 0x5008),
        store(0x5050, 7),    // rings
        store(0x5008, 0x10), // RAM
        look(0x5000, 0x500c),
        store(0x5008, page(DEVICES + 0x9000)), // the other one's
        look(0x5000, 0x5010),
        store(0x5008, page(LAPIC)), // the platform's
        look(0x5000, 0x5014),
        store(0x5050, 7), // rings
        store(0x5008, 0),
        look(0x5000, 0x5018), // nobody
        store(0x5050, 7),     // nobody
        store(0x900c, 0),     // the other one powers the machine off
        vec![0xf4],
    ]
    .concat();
    let (part, other) = (mover("mover", DEVICES), mover("other", DEVICES + 0x9000));
    let machine = guest("moving", &[(CODE.into(), &code)])
        .device(part.clone())
        .device(other)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    let looks: Vec<u32> = (0..7).map(|nth| number(&machine, 0x5000 + 4 * nth)).collect();
    assert_eq!(looks, [MAGIC, u32::MAX, MAGIC, MAGIC, MAGIC, MAGIC, u32::MAX]);
    assert_eq!(part.assigned().doorbell("bell").unwrap().take().unwrap(), 3);
    assert_eq!(part.assigned().registers("registers").unwrap().base(), None);
    let mut refused = None;
    machine.metrics(&mut |scope, metric, value| {
        if (scope, metric.name) == ("machine", "refused_moves") {
            refused = Some(value);
        }
    });
    assert_eq!(refused, Some(3));
}

#[test]
fn a_range_moves_a_thousand_times_while_another_vcpu_reads_it() {
    let _alone = alone();
    // Moves between two pages 1,000 times; the second vCPU reads at both, and finds the device or nobody.
    let code = [
        START_SECOND,
        &[0x80, 0x3e, 0x00, 0x40, 0x00, 0x74, 0xf9], // cmp byte [0x4000], 0; je back
        &[0xb9, 0xf4, 0x01],                         // mov cx, 500
        &[0x64, 0x66, 0xc7, 0x06, 0x08, 0x00, 0x01, 0x80, 0x0d, 0x00], // mov dword fs:[8], 0xd8001
        &[0x64, 0x66, 0xc7, 0x06, 0x08, 0x10, 0x00, 0x80, 0x0d, 0x00], // mov dword fs:[0x1008], 0xd8000
        &[0xe2, 0xea],                               // loop
        &[0xfe, 0x06, 0x01, 0x40, 0xeb, 0xfe],       // inc byte [0x4001]; jmp $
    ]
    .concat();
    let second = [0xfe, 0x06, 0x00, 0x40, 0xeb, 0xfe]; // inc byte [0x4000]; jmp $
    let look = [
        0x64, 0x66, 0xa1, 0x00, 0x00, // mov eax, fs:[0]
        0xe8, 0x0a, 0x00, // call judge
        0x64, 0x66, 0xa1, 0x00, 0x10, // mov eax, fs:[0x1000]
        0xe8, 0x02, 0x00, // call judge
        0xeb, 0xee, // jmp to the start
    ];
    let judge = [
        0x66, 0xff, 0x06, 0x00, 0x00, // inc dword [0]
        0x66, 0x83, 0xf8, 0xff, // cmp eax, -1
        0x74, 0x0d, // je to the return
        0x66, 0x3d, 0x76, 0x69, 0x72, 0x74, // cmp eax, MAGIC
        0x74, 0x05, // je to the return
        0x66, 0xff, 0x06, 0x08, 0x00, // inc dword [8]
        0xc3, // ret
    ];
    let look = [&look[..], &judge].concat();
    let part = mover("mover", DEVICES);
    let machine = guest("moving", &[(CODE.into(), &code), (SECOND, &second), (0x1800, &look)])
        .cpus(2)
        .device(part.clone())
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    until(&machine, "the start of the second vCPU", || number(&machine, 0x4000) & 0xff == 1);
    let paused = machine.pause().unwrap();
    paused.vcpus().set_registers(1, registers(0x1800, COUNTS[1])).unwrap();
    let start = taken();
    paused.resume().unwrap();
    until(&machine, "the last move", || number(&machine, 0x4000) >> 8 & 0xff == 1);
    given_back(start);
    let _paused = machine.pause().unwrap();
    assert!(number(&machine, COUNTS[1]) > 0);
    assert_eq!(number(&machine, COUNTS[1] + NONSENSE), 0);
    assert_eq!(part.assigned().registers("registers").unwrap().base(), Some(DEVICES));
}
