//! From a snapshot in a file to the guest's first instruction, for memory of any size, beside the floor and in turns with
//! it; and what a key costs: bytes of the tree, time to save, to restore, and for each 2 MiB on demand.
//!
//! What the devices are on the host is opened before. A quarter of memory has something in it, a page in each 2 MiB.
//! `cargo bench --bench restore` takes up to 16 GiB of guest memory, which takes 100 MiB of the host's; as a test it takes
//! little.

#[path = "floors/fork.rs"]
mod floor;
#[path = "support/guest.rs"]
mod guest;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ossature::boot::Platform;
use ossature::legacy::DebugPort;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{Backing, GuestMmap, RamConfig, Userfault, UserfaultMode};
use ossature::virtio::SharedLoop;
use ossature::vmm::machine::{Machine, MachineBuilder, PayloadError, Snapshot, SnapshotKey};
use ossature::vmm::{Kvm, Registers};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 2 * MIB;
/// mov dx, 0x600; mov al, 0x34; out dx, al; hlt
const GUEST: [u8; 7] = [0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
/// The states of such a machine, about.
const STATE: usize = 16 << 10;

/// Fills a quarter of memory, a page in each 2 MiB.
fn fill(size: u64, mut write: impl FnMut(u64)) {
    (CHUNK..size / 4).step_by(CHUNK as usize).for_each(&mut write);
}

fn payload(memory: &GuestMmap, _: &Platform) -> Result<Registers, PayloadError> {
    memory.write_slice(&GUEST, GuestAddress(0x1000))?;
    Ok(Registers::real_mode(0x1000))
}

fn saved(size: u64, path: &Path, io: &Arc<SharedLoop>) {
    let (devices, _cable) = guest::devices(1, io);
    let port = DebugPort::with_callback("port", Instant::now(), 0x600, |_| ());
    // Zeros are read from a memfd without becoming memory.
    let ram = RamConfig::new(size).backing(Backing::Memfd);
    let builder = Machine::builder("saved").devices(devices).device(port);
    let machine = builder.memory(ram).payload(payload);
    let machine = machine.build(&Kvm::open().unwrap()).unwrap();
    let dma = machine.ram().dma();
    fill(size.min(3 << 30), |addr| dma.write(GuestAddress(addr), &[7; 4096]).unwrap());
    machine.snapshot(path).unwrap();
}

/// From the file to the guest's first exit.
fn restored(kvm: &Kvm, io: &Arc<SharedLoop>, path: &Path) -> Duration {
    let (ran, has_run) = channel();
    // Devices that the host has ready.
    let (ready, _cable) = guest::devices(1, io);
    let start = Instant::now();
    let port =
        DebugPort::with_callback("port", start, 0x600, move |stamp| ran.send(stamp.at).unwrap_or_default());
    let builder = Machine::builder("restore").devices(ready).device(port);
    let machine = builder.restore(Snapshot::open(path).unwrap()).build(kvm).unwrap();
    machine.start().unwrap();
    has_run.recv().unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn to_first_instruction(kvm: &Kvm, io: &Arc<SharedLoop>, sizes: &[u64], rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, size: u64| folder.path().join(format!("{name}-{}", size / MIB));
    println!(
        "{:<12} {:>12} {:>12} {:>12} {:>12} {:>7}",
        "restore", "p50", "p90", "floor p50", "floor p90", "ratio"
    );
    let all: Vec<_> = sizes
        .iter()
        .map(|&size| {
            saved(size, &path("snapshot", size), io);
            let file =
                File::options().read(true).write(true).create_new(true).open(path("floor", size)).unwrap();
            let floor = floor::Template::in_file(file.try_clone().unwrap(), size as usize, &GUEST);
            use std::os::unix::fs::FileExt;
            fill(size, |at| file.write_all_at(&[7; 4096], at).unwrap());
            (size, floor)
        })
        .collect();
    let mut times = vec![(Vec::new(), Vec::new()); all.len()];
    // Sizes in turns, too: what else the host does is the same for all.
    for _ in 0..rounds {
        for ((size, floor), (ours, floors)) in all.iter().zip(&mut times) {
            ours.push(restored(kvm, io, &path("snapshot", *size)));
            let start = Instant::now();
            let mut child = floor.restore(&path("floor", *size), STATE);
            floors.push(child.wait().unwrap() - start);
        }
    }
    for ((size, _), (ours, floors)) in all.iter().zip(&mut times) {
        let (p50, floor50) = (median(ours), median(floors));
        let at = |times: &[Duration]| times[times.len() * 9 / 10];
        let ratio = p50.as_secs_f64() / floor50.as_secs_f64();
        let size = format!("{} MiB", size / MIB);
        println!(
            "{size:<12} {p50:>12.1?} {:>12.1?} {floor50:>12.1?} {:>12.1?} {ratio:>7.2}",
            at(ours),
            at(floors)
        );
    }
}

/// What a tree costs, of memory that is all there.
fn with_a_key(kvm: &Kvm, size: u64, rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let key = SnapshotKey::new([7; 32]);
    let machine = |builder: MachineBuilder| {
        let builder = builder.memory(RamConfig::new(size)).payload(|memory: &GuestMmap, _: &Platform| {
            // Halts.
            memory.write_slice(&GUEST[6..], GuestAddress(0x1000))?;
            Ok(Registers::real_mode(0x1000))
        });
        let machine = builder.build(kvm).unwrap();
        let chunk: Vec<u8> =
            (0..CHUNK as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
        let dma = machine.ram().dma();
        (CHUNK..size).step_by(CHUNK as usize).for_each(|at| dma.write(GuestAddress(at), &chunk).unwrap());
        machine.start().unwrap();
        machine
    };
    let (plain, keyed) = (folder.path().join("plain"), folder.path().join("keyed"));
    let machines = [
        (machine(Machine::builder("plain")), &plain),
        (machine(Machine::builder("keyed").snapshot_key(key.clone())), &keyed),
    ];
    // Into the page cache: what a disk takes is no part of it.
    let timed = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let open = |has_key: bool| {
        if has_key { key.open(&keyed).unwrap() } else { Snapshot::open(&plain).unwrap() }
    };
    let build = |snapshot: Snapshot| Machine::builder("again").restore(snapshot).build(kvm).unwrap();
    let on_demand = Userfault::open(UserfaultMode::Missing).is_ok();
    let mut times: [[Vec<Duration>; 2]; 4] = Default::default();
    for _ in 0..rounds {
        for (which, (machine, path)) in machines.iter().enumerate() {
            let paused = machine.pause().unwrap();
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
            times[0][which].push(timed(&mut || paused.snapshot_to(&file).unwrap()));
            times[1][which].push(timed(&mut || open(which == 1).verify_memory().unwrap()));
            times[2][which].push(timed(&mut || drop(build(open(which == 1)))));
            if !on_demand {
                continue;
            }
            let machine = build(open(which == 1).on_demand());
            let dma = machine.ram().dma();
            times[3][which].push(timed(&mut || {
                for at in (0..size).step_by(CHUNK as usize) {
                    dma.read_obj::<u8>(GuestAddress(at + CHUNK - 1)).unwrap();
                }
                while machine.memory_progress().unwrap().is_some_and(|progress| progress.missing > 0) {
                    thread::yield_now();
                }
            }));
        }
    }
    let bytes =
        open(true).sections().find(|section| section.id == "ossature.tree").map_or(0, |section| section.len);
    println!("{} MiB with a key: {} bytes of tree", size / MIB, bytes + 48);
    let names = ["save", "verify_memory", "open and build", "on demand, all"];
    for (name, [plain, keyed]) in names.iter().zip(&mut times).filter(|(_, [plain, _])| !plain.is_empty()) {
        let [plain, keyed] = [median(plain), median(keyed)];
        let speed = |time: Duration| size as f64 / 1e6 / time.as_secs_f64();
        let chunk = |time: Duration| time.as_secs_f64() * 1e6 / (size / CHUNK) as f64;
        println!(
            "{name:<16} {plain:>10.1?} ({:.0} MB/s, {:.0} us for 2 MiB), with a key {keyed:>10.1?} ({:.0} MB/s, {:.0} us)",
            speed(plain),
            chunk(plain),
            speed(keyed),
            chunk(keyed),
        );
    }
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    let kvm = Kvm::open().unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let sizes: &[u64] =
        if full { &[128 * MIB, 1024 * MIB, 4096 * MIB, 16_384 * MIB] } else { &[16 * MIB, 4096 * MIB] };
    to_first_instruction(&kvm, &io, sizes, if full { 101 } else { 1 });
    with_a_key(&kvm, if full { 256 * MIB } else { 8 * MIB }, if full { 9 } else { 1 });
}
