//! Three machines in one process, used as a library: started, paused, resumed, stopped.
//!
//! `cargo run --release --example embed`: each guest, a few instructions, counts in its memory.

#[cfg(target_arch = "aarch64")]
#[path = "counting/aarch64.rs"]
mod guest;
#[cfg(target_arch = "x86_64")]
#[path = "counting/x86_64.rs"]
mod guest;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ossature::boot::Platform;
use ossature::memory::vm_memory::GuestAddress;
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Outcome};
use ossature::vmm::{Failure, Kvm};

/// Where it counts.
const COUNTER: GuestAddress = GuestAddress(0x2000);

fn count(machine: &Machine) -> Result<u32, Failure> {
    Ok(machine.ram().dma().read_obj(COUNTER)?)
}

fn build(kvm: &Kvm, name: &str) -> Result<Machine, Failure> {
    let machine = Machine::builder(name)
        .memory(RamConfig::new(2 << 20))
        .payload(|memory: &GuestMmap, _: &Platform| Ok(guest::load(memory)?))
        .build(kvm)?;
    Ok(machine)
}

fn main() -> Result<(), Failure> {
    let mut out = io::stdout();
    let kvm = Kvm::open()?;
    let machines =
        ["one", "two", "three"].map(|name| build(&kvm, name)).into_iter().collect::<Result<Vec<_>, _>>()?;

    for machine in &machines {
        machine.start()?;
    }
    for machine in &machines {
        while count(machine)? == 0 {
            thread::yield_now();
        }
        writeln!(out, "{machine:?} counts")?;
    }

    if let [first, second, _] = &machines[..] {
        let paused = first.pause()?;
        let before = count(first)?;
        thread::sleep(Duration::from_millis(50));
        assert_eq!(before, count(first)?, "a paused guest is paused");
        writeln!(out, "{:?} is paused at {before}; {second:?} does not mind", first)?;
        paused.resume()?;
        while count(first)? == before {
            thread::yield_now();
        }
        writeln!(out, "{first:?} counts again")?;
    }

    for machine in machines {
        let outcome = machine.stop()?;
        assert!(matches!(outcome, Outcome::Stopped));
    }
    writeln!(out, "all stopped, all given back")?;
    Ok(())
}
