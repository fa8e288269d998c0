//! Machines on this machine's KVM that start again: reset in place a hundred times, with everything fresh; and vCPUs
//! whose state is saved and restored wherever they are.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod board;
mod taken;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use board::{CODE, DEVICES, Part, SECOND, START_SECOND, alone, guest, number, until};
use ossature_bus::{
    Access, BusFault, Effect, EventLoop, InterruptRequest, Mmio, RegistersRequest, Requires, VmRequest,
};
use ossature_core::Kvm;
use ossature_core::machine::{LifecycleState, Machine, MachineEvent, OnReset, Outcome};
use ossature_legacy::{AcpiPower, I8042};
use taken::{given_back, taken};

/// The lives of a guest as its ledger sees them.
#[derive(Default)]
struct Ledger {
    /// The register that the guest finds 0 at the start of each life.
    register: AtomicU32,
    lives: AtomicU32,
    wrong: Mutex<Vec<(u64, u64)>>,
}

/// Registers of a device: 0 is what the guest leaves behind, 4 gets what it has found in memory at its start, 8 the
/// vCPU that begins a life, 0xc powers the machine off.
struct LedgerPort(Arc<Ledger>);

impl Mmio for LedgerPort {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(self.0.register.load(Ordering::SeqCst).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        match at.offset {
            0 => self.0.register.store(value as u32, Ordering::SeqCst),
            8 => _ = self.0.lives.fetch_add(1, Ordering::SeqCst),
            0xc => return Ok(Effect::Vm(VmRequest::Shutdown)),
            offset if value != 0 => self.0.wrong.lock().unwrap().push((offset, value)),
            _ => {}
        }
        Ok(Effect::None)
    }
}

fn ledger(ledger: &Arc<Ledger>) -> Part {
    let requires = Requires::new()
        .registers(RegistersRequest::memory("registers", 0x1000).fixed(DEVICES))
        .interrupt(InterruptRequest::edge("edge"))
        .interrupt(InterruptRequest::level("level"));
    let (port, reset) = (Arc::clone(ledger), Arc::clone(ledger));
    let part = Part::new("ledger", requires, move |_| LedgerPort(Arc::clone(&port)));
    part.on_reset(move || reset.register.store(0, Ordering::SeqCst))
}

/// Tells the ledger what it finds, leaves something behind everywhere, starts the second vCPU if there is one and waits
/// for it, and asks for a reset by `ask`.
fn life(second: bool, ask: &[u8]) -> Vec<u8> {
    let begin: &[u8] = &[
        0x64, 0x66, 0xa1, 0x00, 0x00, // mov eax, fs:[0]: the device's register
        0x64, 0x66, 0xa3, 0x04, 0x00, // mov fs:[4], eax
        0x66, 0xa1, 0x00, 0x50, // mov eax, [0x5000]: memory
        0x64, 0x66, 0xa3, 0x04, 0x00, // mov fs:[4], eax
        0x66, 0x64, 0x89, 0x3e, 0x04, 0x00, // mov fs:[4], edi: a register of the vCPU
        0xe4, 0x21, 0xf6, 0xd0, // in al, 0x21; not al: the lines of the PIC that are not masked
        0x66, 0x0f, 0xb6, 0xc0, // movzx eax, al
        0x64, 0x66, 0xa3, 0x04, 0x00, // mov fs:[4], eax
        0x26, 0x66, 0xa1, 0x80, 0x00, // mov eax, es:[0x80]: the local APIC's task priority
        0x64, 0x66, 0xa3, 0x04, 0x00, // mov fs:[4], eax
        0x65, 0x66, 0xa1, 0x00, 0x00, // mov eax, gs:[0]: the I/O APIC's index
        0x64, 0x66, 0xa3, 0x04, 0x00, // mov fs:[4], eax
        0x64, 0x66, 0xc7, 0x06, 0x08, 0x00, 0x01, 0x00, 0x00, 0x00, // mov dword fs:[8], 1: a life
        // What the next life must not find:
        0x66, 0xbf, 0x05, 0x00, 0x00, 0x00, // mov edi, 5
        0x66, 0x89, 0x3e, 0x00, 0x50, // mov [0x5000], edi
        0x64, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, // mov dword fs:[0], 7
        0xb0, 0xa5, 0xe6, 0x21, // out 0x21, 0xa5
        0x26, 0x66, 0xc7, 0x06, 0x80, 0x00, 0x30, 0x00, 0x00, 0x00, // mov dword es:[0x80], 0x30
        0x65, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x12, 0x00, 0x00, 0x00, // mov dword gs:[0], 0x12
    ];
    let wait: &[u8] = &[0x80, 0x3e, 0x00, 0x40, 0x00, 0x74, 0xf9]; // cmp byte [0x4000], 0; je back
    let start = if second { [START_SECOND, wait].concat() } else { Vec::new() };
    [begin, &start, ask, &[0xeb, 0xfe]].concat()
}

/// Says that it runs, and counts for ever.
const COUNT_SECOND: &[u8] = &[0xfe, 0x06, 0x00, 0x40, 0xff, 0x06, 0x02, 0x40, 0xeb, 0xfa]; // inc byte [0x4000]; inc word [0x4002]; jmp

const BY_I8042: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
const BY_ACPI: &[u8] = &[0xba, 0x02, 0x06, 0xb0, 0x01, 0xee]; // mov dx, 0x602; mov al, 1; out dx, al

fn restarting(cpus: u32, ask: &[u8], part: Part) -> Machine {
    let code = life(cpus > 1, ask);
    let machine = guest("reset", &[(CODE.into(), &code), (SECOND, COUNT_SECOND)])
        .cpus(cpus)
        .device(part)
        .device(I8042::new("keyboard"))
        .device(AcpiPower::new("power"))
        .on_reset(OnReset::Restart)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    machine
}

/// A hundred lives, each like the first one. `serve` does what the machine's owner does until it has ended.
fn a_hundred_lives(cpus: u32, ask: &[u8], serve: impl FnOnce(&Machine) -> Outcome) {
    const LIVES: u32 = 100;
    let _alone = alone();
    let book: Arc<Ledger> = Arc::default();
    let part = ledger(&book);
    let machine = restarting(cpus, ask, part.clone());
    let handle = machine.handle();
    let lives = Arc::clone(&book);
    let (mut events, mut start) = (machine.events(), None);
    let watcher = std::thread::spawn(move || {
        let mut resets = 0;
        while resets < LIVES {
            match events.next_timeout(Duration::from_secs(120)).unwrap() {
                MachineEvent::Reset => resets += 1,
                MachineEvent::Ended(outcome) => panic!("{outcome}"),
                _ => continue,
            }
            // After the first one: it makes what the others use again.
            if resets == 1 {
                start = Some(taken());
            }
        }
        given_back(start.unwrap());
        handle.stop();
        lives.lives.load(Ordering::SeqCst)
    });
    assert_eq!(serve(&machine), Outcome::Stopped);
    let lives = watcher.join().unwrap();
    assert_eq!(*book.wrong.lock().unwrap(), [], "left of an earlier life");
    assert!(lives >= LIVES, "{lives} lives");
    assert!(part.resets.load(Ordering::SeqCst) >= LIVES);
}

#[test]
fn a_guest_resets_a_hundred_times_by_the_keyboard_controller() {
    a_hundred_lives(1, BY_I8042, |machine| machine.wait().unwrap());
}

#[test]
fn a_guest_resets_a_hundred_times_by_acpi_while_its_owner_runs_a_loop() {
    a_hundred_lives(1, BY_ACPI, |machine| machine.wait_on(&EventLoop::new().unwrap()).unwrap());
}

#[test]
fn a_guest_with_two_vcpus_resets_a_hundred_times() {
    a_hundred_lives(2, BY_I8042, |machine| machine.wait().unwrap());
}

#[test]
fn a_guest_with_two_vcpus_resets_a_hundred_times_while_its_owner_runs_a_loop() {
    a_hundred_lives(2, BY_ACPI, |machine| machine.wait_on(&EventLoop::new().unwrap()).unwrap());
}

#[test]
fn the_owner_resets_a_running_and_a_paused_machine_a_hundred_times() {
    let _alone = alone();
    let book: Arc<Ledger> = Arc::default();
    let machine = restarting(2, &[], ledger(&book));
    let lives = || book.lives.load(Ordering::SeqCst);
    let mut start = None;
    for life in 1..=100 {
        until(&machine, "a life", || lives() == life);
        if life % 2 == 0 {
            // Both vCPUs run.
            until(&machine, "the second vCPU", || number(&machine, 0x4000) & 0xff != 0);
        }
        if life % 3 == 0 {
            let paused = machine.pause().unwrap();
            paused.reset().unwrap();
            assert_eq!(paused.state(), LifecycleState::Paused);
            assert_eq!((number(&machine, 0x4000), number(&machine, 0x5000), lives()), (0, 0, life));
            assert_eq!(paused.vcpus().registers(0).unwrap(), board::registers(CODE, 0));
            paused.resume().unwrap();
        } else {
            machine.reset().unwrap();
        }
        start = start.or_else(|| Some(taken()));
    }
    given_back(start.unwrap());
    assert_eq!(*book.wrong.lock().unwrap(), [], "left of an earlier life");
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

/// Counts ECX down from 0x800 and up in SI and, on the stack, by calls; then adds 1 to what is in memory, for ever. If
/// any of the registers is not what it was, the two counters at the end differ, and it says so.
const COUNT: &[u8] = &[
    0x66, 0xb9, 0x00, 0x08, 0x00, 0x00, // mov ecx, 0x800
    0x31, 0xf6, // xor si, si
    0x31, 0xff, // xor di, di
    0xe8, 0x16, 0x00, // call to the inc di
    0x46, // inc si
    0x66, 0x49, // dec ecx
    0x75, 0xf8, // jnz to the call
    0x81, 0xfe, 0x00, 0x08, // cmp si, 0x800
    0x75, 0x0d, // jne to the complaint
    0x39, 0xfe, // cmp si, di
    0x75, 0x09, // jne to the complaint
    0x66, 0xff, 0x06, 0x00, 0x50, // inc dword [0x5000]
    0xeb, 0xdd, // jmp to the start
    0x47, // inc di
    0xc3, // ret
    0x66, 0xff, 0x06, 0x04, 0x50, // inc dword [0x5004]
    0xeb, 0xd4, // jmp to the start
];

#[test]
fn a_counting_vcpu_goes_on_from_every_state_that_was_saved() {
    let _alone = alone();
    let machine = guest("saved", &[(CODE.into(), COUNT)]).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let dma = machine.ram().dma();
    let at = ossature_memory::vm_memory::GuestAddress(0);
    let (mut moments, mut random) = (Vec::new(), 1_u32);
    for _ in 0..200 {
        // A multiplicative generator: a moment of its own each time.
        random = random.wrapping_mul(48_271) % 0x7fff_ffff;
        let before = number(&machine, 0x5000);
        until(&machine, "it counts", || number(&machine, 0x5000) > before);
        std::thread::sleep(Duration::from_micros((random % 1_000).into()));
        let paused = machine.pause().unwrap();
        let state = paused.vcpus().state(0).unwrap();
        let registers = paused.vcpus().registers(0).unwrap();
        let mut memory = vec![0; 0x8000];
        dma.read(at, &mut memory).unwrap();
        // It runs on, and is then taken back to where it was.
        paused.resume().unwrap();
        let paused = machine.pause().unwrap();
        dma.write(at, &memory).unwrap();
        paused.vcpus().set_state(0, state).unwrap();
        assert_eq!(paused.vcpus().registers(0).unwrap(), registers);
        moments.push((registers.rip, registers.rcx));
        paused.resume().unwrap();
    }
    let before = number(&machine, 0x5000);
    until(&machine, "it counts", || number(&machine, 0x5000) > before + 2);
    assert_eq!(number(&machine, 0x5004), 0, "a register was not what it had been");
    moments.sort_unstable();
    moments.dedup();
    assert!(moments.len() > 20, "{} moments", moments.len());
}

#[test]
fn a_machine_is_saved_reset_and_restored_at_fifty_moments() {
    let _alone = alone();
    let machine = guest("saved", &[(CODE.into(), COUNT)]).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let dma = machine.ram().dma();
    let at = ossature_memory::vm_memory::GuestAddress(0);
    let mut memory = vec![0; 0x8_0000];
    for round in 1..=50 {
        let before = number(&machine, 0x5000);
        until(&machine, "it counts", || number(&machine, 0x5000) > before);
        let paused = machine.pause().unwrap();
        let state = paused.save().unwrap();
        let registers = paused.vcpus().registers(0).unwrap();
        dma.read(at, &mut memory).unwrap();
        paused.reset().unwrap();
        assert_eq!((number(&machine, 0x5000), paused.vcpus().registers(0).unwrap().rip), (0, CODE.into()));
        dma.write(at, &memory).unwrap();
        paused.restore(state).unwrap();
        assert_eq!(paused.vcpus().registers(0).unwrap(), registers, "round {round}");
        paused.resume().unwrap();
    }
    let before = number(&machine, 0x5000);
    until(&machine, "it counts", || number(&machine, 0x5000) > before + 2);
    assert_eq!(number(&machine, 0x5004), 0, "a register was not what it had been");
}
