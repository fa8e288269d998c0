//! In-place reset on the host's KVM: a guest that writes pages at random goes back a thousand times.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod board;
mod taken;

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};

use ossature_boot::Platform;
use ossature_bus::{Access, BusFault, Effect, Mmio, RegistersRequest, Requires};
use ossature_core::machine::{Checkpoint, LifecycleState, Machine, MachineBuilder, Paused, Snapshot};
use ossature_core::{Kvm, Registers, SegmentRegister, VmConfig};
use ossature_legacy::Rtc;
use ossature_memory::vm_memory::{Bytes, GuestAddress};
use ossature_memory::{GuestMmap, RamConfig};
use taken::{given_back, taken};

const CODE: u16 = 0x1000;
const SEED: u64 = 0x3000;
const RAM: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// Adds random numbers to random pages of the upper half of memory, says so, and goes on from there.
const GUEST: &[u8] = &[
    0x66, 0xa1, 0x00, 0x30, // mov eax, [0x3000]
    0xb9, 0x30, 0x00, // mov cx, 48
    0x66, 0x69, 0xc0, 0x6d, 0x4e, 0xc6, 0x41, // L: imul eax, eax, 1103515245
    0x66, 0x05, 0x39, 0x30, 0x00, 0x00, // add eax, 12345
    0x66, 0x89, 0xc3, // mov ebx, eax
    0x66, 0x81, 0xe3, 0x00, 0xf0, 0x1f, 0x00, // and ebx, 0x1ff000
    0x64, 0x67, 0x66, 0x01, 0x03, // add fs:[ebx], eax
    0xe2, 0xe2, // loop L
    0xe6, 0x70, // out 0x70, al
    0xe6, 0x80, // out 0x80, al
    0xeb, 0xd5, // jmp to the beginning
];

/// Tells that the guest is through.
struct Done(Mutex<Sender<()>>);

impl Mmio for Done {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(0)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        // Also after the last round.
        let _ = self.0.lock().unwrap().send(());
        Ok(Effect::None)
    }
}

fn devices(builder: MachineBuilder) -> (MachineBuilder, Receiver<()>) {
    let (sender, done) = channel();
    let mut requires = Requires::default();
    requires.registers.push(RegistersRequest::ports("port", 1).fixed(0x80));
    let sender = Mutex::new(sender);
    let part = board::Part::new("done", requires, move |_| Done(Mutex::new(sender.lock().unwrap().clone())));
    (builder.device(part).device(Rtc::with_clock("rtc", || UNIX_EPOCH)), done)
}

fn machine(config: VmConfig) -> (MachineBuilder, Receiver<()>) {
    let builder = Machine::builder("checkpoint").memory(RamConfig::new(RAM)).vm(|_| config);
    let builder = builder.payload(|memory: &GuestMmap, _: &Platform| {
        memory.write_slice(GUEST, GuestAddress(CODE.into()))?;
        // Some of what it adds to is not zero.
        for page in 0..100 {
            memory.write_obj(page + 1, GuestAddress(RAM / 2 + page * 5 * 4096))?;
        }
        let real = Registers::real_mode(CODE);
        let fs = SegmentRegister { base: RAM / 2, limit: u32::MAX, access: 0x8093, ..real.fs };
        Ok(Registers { fs, ..real })
    });
    devices(builder)
}

/// A bitmap, and a ring where KVM has it.
fn both_kinds() -> Vec<VmConfig> {
    let bitmap = VmConfig::default();
    let rings = Kvm::open().unwrap().capabilities().dirty_ring != 0;
    let ring = rings.then(|| bitmap.clone().dirty_ring(1024));
    [bitmap].into_iter().chain(ring).collect()
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    machine.ram().dma().read(GuestAddress(0), &mut bytes).unwrap();
    bytes
}

/// The registers, and the devices' states.
fn rest(paused: &Paused) -> (Registers, String) {
    let state = paused.save().unwrap();
    (paused.vcpus().registers(0).unwrap(), format!("{:?}", state.devices().collect::<Vec<_>>()))
}

/// Runs a machine so many times from its checkpoint, each time with another seed. Returns its memory there.
fn rounds(machine: &Machine, checkpoint: &mut Checkpoint, done: &Receiver<()>, rounds: u32) -> Vec<u8> {
    let mut paused = machine.pause().unwrap();
    machine.reset_to(checkpoint).unwrap();
    let (before, first) = (memory(machine), rest(&paused));
    let mut own = taken();
    for round in 0..rounds {
        if round == 10 {
            // With what the kernel has started for a vCPU that runs.
            own = taken();
        }
        while done.try_recv().is_ok() {}
        machine.ram().dma().write_obj(GuestAddress(SEED), round).unwrap();
        paused.resume().unwrap();
        // The rest of what it was in, and one with the new seed.
        (0..2).for_each(|_| done.recv_timeout(LIMIT).unwrap());
        paused = machine.pause().unwrap();
        if round % 50 == 0 {
            let pages = memory(machine)
                .chunks(4096)
                .zip(before.chunks(4096))
                .filter(|(one, other)| one != other)
                .count();
            assert!(pages > 30, "it has written {pages} pages");
            assert_ne!(rest(&paused), first);
        }
        machine.reset_to(checkpoint).unwrap();
        assert_eq!(machine.state(), LifecycleState::Paused);
        assert!(memory(machine) == before, "round {round}");
        assert_eq!(rest(&paused), first, "round {round}");
    }
    given_back(own);
    before
}

#[test]
fn a_guest_that_writes_at_random_goes_back_a_thousand_times() {
    let _alone = board::alone();
    let nothing = taken();
    for config in both_kinds() {
        let (builder, done) = machine(config);
        let machine = builder.build(&Kvm::open().unwrap()).unwrap();
        machine.start().unwrap();
        done.recv_timeout(LIMIT).unwrap();
        // In the middle of it.
        let mut checkpoint = machine.checkpoint().unwrap();
        rounds(&machine, &mut checkpoint, &done, 1000);
    }
    given_back(nothing);
}

#[test]
fn a_guest_that_was_restored_goes_back_to_the_snapshot() {
    let _alone = board::alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let (builder, done) = machine(VmConfig::default());
    let saved = builder.build(&Kvm::open().unwrap()).unwrap();
    saved.start().unwrap();
    done.recv_timeout(LIMIT).unwrap();
    saved.snapshot(&path).unwrap();
    saved.stop().unwrap();
    for config in both_kinds() {
        let builder = Machine::builder("restored").vm(|_| config).restore(Snapshot::open(&path).unwrap());
        let (builder, done) = devices(builder);
        let (machine, mut checkpoint) = builder.build_with_checkpoint(&Kvm::open().unwrap()).unwrap();
        let before = memory(&machine);
        machine.start().unwrap();
        assert!(rounds(&machine, &mut checkpoint, &done, 100) == before);
    }
}

#[test]
fn a_chain_of_diffs_is_what_full_snapshots_are() {
    let _alone = board::alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for config in both_kinds() {
        let (builder, done) = machine(config);
        let machine = builder.build(&Kvm::open().unwrap()).unwrap();
        machine.start().unwrap();
        done.recv_timeout(LIMIT).unwrap();
        let mut chain = vec![path("base")];
        let mut checkpoint = machine.checkpoint_at(&chain[0]).unwrap();
        for number in 1..=5_u32 {
            while done.try_recv().is_ok() {}
            // The guest writes, and so does this process.
            machine.ram().dma().write_obj(GuestAddress(SEED), number).unwrap();
            machine.ram().dma().write(GuestAddress(0x8000 * u64::from(number)), b"device").unwrap();
            (0..2).for_each(|_| done.recv_timeout(LIMIT).unwrap());
            let paused = machine.pause().unwrap();
            chain.push(path(&format!("{number}")));
            machine.snapshot_diff(&mut checkpoint, &chain[number as usize]).unwrap();
            let (now, full) = (memory(&machine), path("full"));
            machine.snapshot(&full).unwrap();
            let registers = paused.vcpus().registers(0).unwrap();
            paused.resume().unwrap();
            let open = || Snapshot::open_chain(&chain).unwrap();
            open().verify_memory().unwrap();
            assert!(open().memory_in_file() < RAM / 2, "a diff");
            open().merge(path("merged")).unwrap();
            for snapshot in [open(), Snapshot::open(path("merged")).unwrap(), Snapshot::open(full).unwrap()] {
                let (builder, done) = devices(Machine::builder("restored").restore(snapshot));
                let restored = builder.build(&Kvm::open().unwrap()).unwrap();
                assert!(memory(&restored) == now, "diff {number}");
                restored.start().unwrap();
                done.recv_timeout(LIMIT).unwrap();
                let fs = restored.pause().unwrap().vcpus().registers(0).unwrap().fs;
                assert_eq!(fs, registers.fs, "it goes on in the same loop");
            }
        }
    }
}
