//! How long a guest that writes all the time is paused for a live snapshot and for a template, of little and of much memory,
//! beside the least that a pause can be: the same without memory.
//!
//! `cargo run --release --example live_snapshot`

use std::error::Error;
use std::time::{Duration, Instant};

use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::Machine;
use ossature::vmm::{Kvm, Registers};

const SIZES: [u64; 2] = [256 << 20, 4 << 30];
const ROUNDS: usize = 15;
const CODE: u16 = 0x1000;

/// Writes to 16 pages of each of DS, ES, FS and GS, for ever.
const GUEST: &[u8] = &[
    0x66, 0x43, 0x66, 0x89, 0x1d, // L: inc ebx; mov [di], ebx
    0x66, 0x43, 0x26, 0x66, 0x89, 0x1d, // inc ebx; mov es:[di], ebx
    0x66, 0x43, 0x64, 0x66, 0x89, 0x1d, // inc ebx; mov fs:[di], ebx
    0x66, 0x43, 0x65, 0x66, 0x89, 0x1d, // inc ebx; mov gs:[di], ebx
    0x81, 0xc7, 0x00, 0x10, // add di, 0x1000
    0xeb, 0xe3, // jmp L
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("guest.snap");
    let mut machines = Vec::new();
    for size in SIZES {
        // All of it is there: what has to be protected is as much as can be.
        let ram = RamConfig::new(size).prefault(true);
        let machine = Machine::builder("live").memory(ram).payload(
            move |memory: &GuestMmap, _: &ossature::boot::Platform| {
                memory.write_slice(GUEST, GuestAddress(CODE.into()))?;
                let mut registers = Registers::real_mode(CODE);
                let Registers { ds, es, fs, gs, .. } = &mut registers;
                let places = [size / 8, size / 4, size / 2, size / 8 * 5];
                [ds, es, fs, gs].into_iter().zip(places).for_each(|(segment, base)| segment.base = base);
                Ok(registers)
            },
        );
        let machine = machine.build(&Kvm::open()?)?;
        machine.start()?;
        machines.push((machine, Vec::new(), Vec::new(), Vec::new(), Vec::new()));
    }
    // By turns, so that what else the host does is the same for all.
    for _ in 0..ROUNDS {
        for (machine, floor, paused, protected, template) in &mut machines {
            let start = Instant::now();
            let pause = machine.pause()?;
            let _state = pause.save()?;
            pause.resume()?;
            floor.push(start.elapsed());
            let saved = machine.snapshot_live(&path)?;
            paused.push(saved.paused);
            protected.push(saved.protected);
            template.push(machine.template_live()?.1.paused);
        }
    }
    println!("{ROUNDS} live snapshots each, median and least:");
    for (size, (machine, floor, paused, protected, template)) in SIZES.iter().zip(&mut machines) {
        let start = Instant::now();
        machine.template()?;
        let copied = start.elapsed();
        let [floor, paused, protected, template] = [floor, paused, protected, template].map(|times| {
            times.sort();
            let at = |index: usize| times.get(index).copied().unwrap_or(Duration::ZERO);
            format!("{:?}, {:?}", at(ROUNDS / 2), at(0))
        });
        let size = size >> 20;
        println!(
            "{size} MiB: paused {paused}; pause, state and resume alone {floor}; written in {protected}"
        );
        println!("{size} MiB: paused {template} for a template; {copied:?} if it is paused meanwhile");
    }
    Ok(())
}
