//! Counts the instructions of each hot path: `tests/instructions.rs` runs it and holds the counts against their bounds.
//!
//! Each path is warmed up, then run [`ROUNDS`] times inside [`measured`], around which callgrind counts and after
//! which it writes its sum. On aarch64 the processor counts, where it can. Otherwise the program only checks that every path
//! works.

#[cfg_attr(target_arch = "x86_64", path = "instructions/callgrind.rs")]
#[cfg_attr(target_arch = "aarch64", path = "instructions/processor.rs")]
mod counter;
mod support;

use std::hint::black_box;

use ossature::bus::Size;
use ossature::memory::vm_memory::GuestAddress;
use support::bus::Dispatch;
use support::rings::{BATCH, DeviceRig, FloorRig, Layout, QueueRig};
use support::sockets::{BYTES, Pair, Sockets};
use support::{adapters, boot, bus, foreign, pci, rings, state};

/// KiB that a round of a socket's stream moves.
const KIB: u32 = (BYTES / 1024) as u32;
/// How often each path runs while it is counted.
const ROUNDS: u32 = 100;

/// What is counted.
#[inline(never)]
fn measured(rounds: u32, path: &mut dyn FnMut(u32)) {
    path(rounds);
}

/// Prints the path's name, the number of operations that are counted next, and how many instructions they took, if that is
/// known here. An argument selects the paths that have it in their name.
fn count<T>(name: &str, operations_per_round: u32, mut round: impl FnMut() -> T) {
    if std::env::args().nth(1).is_some_and(|wanted| !name.contains(&wanted)) {
        return;
    }
    let mut run = |rounds| {
        for _ in 0..rounds {
            black_box(round());
        }
    };
    run(ROUNDS);
    print!("{name}\t{}", ROUNDS * operations_per_round);
    println!("{}", counter::around(|| measured(ROUNDS, &mut run)));
}

/// What others' buses take for the read of the register that was read before.
fn baselines(devices: u64) {
    let addr = bus::Addresses::new(devices, 0).next();
    let mut manager = bus::managers(devices)();
    count("baseline: bus read, hot, 64 devices, IoManager in a mutex", 1, || manager.read(black_box(addr)));
    let mut map = bus::maps(devices)();
    count("baseline: bus read, hot, 64 devices, map in a read-write lock", 1, || map.read(black_box(addr)));
}

/// Through the adapters to rust-vmm's crates, and the same without them.
fn rust_vmm() {
    let (mut ours, mut theirs, superio) =
        (adapters::Port::ours(), adapters::Port::theirs(), adapters::Superio::new());
    count("serial port, byte sent", 1, || ours.send());
    count("adapter: serial port with vm-superio's registers, byte sent", 1, || theirs.send());
    count("baseline: vm-superio's serial port in a mutex, byte sent", 1, || superio.send());
    count("adapter: vm-device's device on our bus, read", 1, adapters::their_device());
    count("adapter: our device on an IoManager, read", 1, adapters::their_bus(true));
    count("baseline: vm-device's device on an IoManager, read", 1, adapters::their_bus(false));
    count("event and its turn, our loop", 1, adapters::our_loop());
    count(
        "adapter: event and its turn, event-manager's subscriber on our loop",
        1,
        adapters::their_subscriber(),
    );
    count("adapter: event and its turn, our loop on an EventManager", 1, adapters::our_loop_on_theirs());
    count("baseline: event and its turn, EventManager", 1, adapters::their_loop());
    for (layout, name) in [(Layout::Direct, "direct"), (Layout::Indirect, "indirect")] {
        for descriptors in [1, 3, 16] {
            let chains = QueueRig::new(descriptors, layout).chains().into();
            let mut behind = foreign::Behind::new(descriptors, layout);
            let path = format!("adapter: virtio-queue's queue behind ours, {name}, {descriptors}");
            count(&path, chains, || behind.batch());
            let mut alone = foreign::Alone::new(descriptors, layout);
            count(&format!("baseline: virtio-queue's queue, {name}, {descriptors}"), chains, || {
                alone.batch()
            });
        }
    }
}

fn main() {
    // What counting adds to each of the following.
    let addr = bus::Addresses::new(64, 0).next();
    count("nothing", 1, move || black_box(addr));
    for devices in [1, 8, 64] {
        let mut cursor = bus::ours(devices).cursor();
        let addr = bus::Addresses::new(devices, 0).next();
        count(&format!("bus read, hot, {devices} devices"), 1, move || {
            cursor.read(black_box(addr), Size::B4).unwrap_or(0)
        });
        let mut cursor = bus::ours(devices).cursor();
        let mut addresses = bus::Addresses::new(devices, 7);
        count(&format!("bus read, another device each time, {devices} devices"), 1, move || {
            cursor.read(addresses.next(), Size::B4).unwrap_or(0)
        });
    }
    baselines(64);
    for (layout, name) in [(Layout::Direct, "direct"), (Layout::Indirect, "indirect")] {
        for descriptors in [1, 3, 16] {
            let mut rig = QueueRig::new(descriptors, layout);
            count(&format!("queue pop and complete, {name}, {descriptors}"), rig.chains().into(), || {
                rig.batch()
            });
        }
    }
    for (layout, name) in [(Layout::Direct, "direct"), (Layout::Indirect, "indirect")] {
        let mut rig = DeviceRig::blk(layout);
        count(&format!("block read, {name}, batch of 32"), BATCH.into(), || rig.batch(0));
    }
    let mut floor = FloorRig::new();
    count("floor: block read, direct, batch of 32", BATCH.into(), || floor.batch());
    for (queue, name) in [(1, "sent"), (0, "received")] {
        let mut rig = DeviceRig::net();
        count(&format!("packet {name}, batch of 32"), BATCH.into(), || rig.batch(queue));
    }

    let (mut sends, mut receives, mut pair) = (Sockets::new(true), Sockets::new(false), Pair::new());
    count("socket stream, sent by the guest, KiB", KIB, || sends.send());
    count("socket stream, received in buffers of 4 KiB, KiB", KIB, || receives.receive());
    count("floor: stream through a pair of Unix sockets, KiB", KIB, || pair.batch());

    let slot = pci::Slot::new();
    count("PCI configuration read, ECAM", 1, || slot.ecam());
    count("PCI configuration read, address and data port", 1, || slot.ports());
    count("virtio-pci register read", 1, || slot.status());
    count("MSI-X vector unmasked and masked", 1, || slot.mask());

    let dma = rings::ram().dma();
    let mut page = [0; 4096];
    count("guest memory: range check", 1, || dma.check(black_box(GuestAddress(0x1234)), 100).unwrap());
    count("guest memory: read of 8 bytes", 1, || {
        dma.read_obj::<u64>(black_box(GuestAddress(0x1000))).unwrap()
    });
    count("guest memory: read of 4096 bytes", 1, || {
        dma.read(black_box(GuestAddress(0x2000)), black_box(&mut page)).unwrap();
    });

    let mut devices = state::Devices::new();
    count("device state: encode", 1, || devices.encode());
    count("device state: decode", 1, || devices.decode());
    count("baseline: device state, copy of the file", 1, || devices.copy());

    for (name, mut path) in boot::paths() {
        count(name, 1, &mut path);
    }
    rust_vmm();
}
