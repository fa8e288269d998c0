//! In-place reset on this host's `/dev/kvm` beside its floor, and what a diff takes: time and bytes for each page that was
//! written. Times are the least of many rounds, ours and the floor's in turns.

#[path = "floors/machine.rs"]
mod floor_machine;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use floor_machine::Host;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use ossature::boot::Platform;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Snapshot};
use ossature::vmm::{Kvm, Registers};

const PAGE: usize = 4096;
const RAM: usize = 256 << 20;
/// Pages that are dirty, each between two that are not.
const COUNTS: [usize; 4] = [0, 100, 1000, 10_000];

/// What a raw program needs for it: a machine whose kernel logs, the original, and registers to go back to.
struct Floor {
    machine: floor_machine::Machine,
    original: Vec<u8>,
}

impl Floor {
    fn new() -> Self {
        let mut machine = Host::open().machine(RAM, &[], &[], &[]);
        machine.ram.write(0, &content());
        floor_machine::enter(&machine.vcpu, 0x1000, 0);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: machine.ram.base.as_ptr() as u64,
        };
        // SAFETY: the machine keeps the memory for as long as its vCPU lives.
        unsafe { machine.vm.set_user_memory_region(region) }.unwrap();
        Self { machine, original: content() }
    }

    fn reset(&mut self, pages: usize) -> f64 {
        for page in 0..pages {
            self.machine.ram.write(page * 2 * PAGE, &[9; 8]);
        }
        let start = Instant::now();
        // What vCPUs have written; the rest is known.
        self.machine.vm.get_dirty_log(0, RAM).unwrap();
        for page in 0..pages {
            let at = page * 2 * PAGE;
            self.machine.ram.write(at, &self.original[at..at + PAGE]);
        }
        floor_machine::enter(&self.machine.vcpu, 0x1000, 0);
        start.elapsed().as_secs_f64() * 1e9
    }
}

fn content() -> Vec<u8> {
    (0..RAM).map(|at| (at / PAGE + at) as u8).collect()
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    let rounds = if full { 40 } else { 1 };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let kvm = Kvm::open().unwrap();
    let machine = Machine::builder("reset")
        .memory(RamConfig::new(RAM as u64))
        .payload(|memory: &GuestMmap, _: &Platform| {
            memory.write_slice(&content(), GuestAddress(0))?;
            // hlt
            memory.write_slice(&[0xf4], GuestAddress(0x1000))?;
            Ok(Registers::real_mode(0x1000))
        })
        .build(&kvm)
        .unwrap();
    machine.start().unwrap();
    let paused = machine.pause().unwrap();
    let mut checkpoint = paused.checkpoint().unwrap();
    let dirty = |machine: &Machine, pages: usize, byte: u8| {
        let dma = machine.ram().dma();
        (0..pages).for_each(|page| dma.write(GuestAddress((page * 2 * PAGE) as u64), &[byte; 8]).unwrap());
    };
    let mut floor = Floor::new();
    let mut least = [[f64::MAX; 2]; COUNTS.len()];
    for _ in 0..rounds {
        for (count, least) in COUNTS.iter().zip(&mut least) {
            dirty(&machine, *count, 9);
            let start = Instant::now();
            machine.reset_to(&mut checkpoint).unwrap();
            least[0] = least[0].min(start.elapsed().as_secs_f64() * 1e9);
            least[1] = least[1].min(floor.reset(*count));
        }
    }
    println!("in-place reset, {} MiB", RAM >> 20);
    let [nothing, ..] = least;
    for (count, least) in COUNTS.iter().zip(least) {
        let page = |which: usize| (least[which] - nothing[which]) / *count as f64;
        let [ours, floor] = least.map(|time| time / 1000.0);
        print!("{count:>6} pages: {ours:>8.0} us, floor {floor:>8.0} us");
        match count {
            0 => println!(" (of which the floor sets 2 of the vCPU's states, and no device's)"),
            _ => println!("; a page {:.0} ns, floor {:.0} ns, {:.2} x", page(0), page(1), page(0) / page(1)),
        }
    }
    drop(checkpoint);

    println!("diffs of {} MiB, pages between others that were not written", RAM >> 20);
    let mut checkpoint = paused.checkpoint_at(path("base")).unwrap();
    let mut chain = vec![path("base")];
    for (byte, count) in (1..).zip(COUNTS) {
        dirty(&machine, count, byte);
        chain.push(path(&format!("{count}")));
        let start = Instant::now();
        machine.snapshot_diff(&mut checkpoint, &chain[chain.len() - 1]).unwrap();
        let took = start.elapsed();
        let about = fs::metadata(&chain[chain.len() - 1]).unwrap();
        let (bytes, pages) = (about.blocks() * 512, (count * PAGE) as u64);
        print!("{count:>6} pages: {bytes:>9} bytes in {took:?}, made to last included");
        if count > 0 { println!("; {:.3} x the pages", bytes as f64 / pages as f64) } else { println!() }
    }
    let restore = |files: &[std::path::PathBuf]| {
        let times = (0..rounds).map(|_| {
            let start = Instant::now();
            let snapshot = Snapshot::open_chain(files).unwrap();
            let machine = Machine::builder("again").restore(snapshot).build(&kvm).unwrap();
            let time = start.elapsed();
            drop(machine);
            time
        });
        times.min().unwrap()
    };
    println!(
        "built from the base: {:?}; from the base and 4 diffs: {:?}",
        restore(&chain[..1]),
        restore(&chain)
    );
    let start = Instant::now();
    Snapshot::open_chain(&chain).unwrap().merge(path("merged")).unwrap();
    println!("merged in {:?}; built from that: {:?}", start.elapsed(), restore(&[path("merged")]));
}
