//! Three machines in one process, used as a library: started, paused, resumed, stopped.
//!
//! `cargo run --release --example embed`: each guest, a few bytes of real-mode code, counts in its memory.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ossature::boot::Platform;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Outcome};
use ossature::vmm::{Failure, Kvm, Registers};

const COUNTER: GuestAddress = GuestAddress(0x2000);
const CODE: GuestAddress = GuestAddress(0x1000);
/// inc word [0x2000]; jmp to itself
const GUEST: &[u8] = &[0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa];

fn count(machine: &Machine) -> Result<u16, Failure> {
    Ok(machine.ram().dma().read_obj(COUNTER)?)
}

fn build(kvm: &Kvm, name: &str) -> Result<Machine, Failure> {
    let machine = Machine::builder(name)
        .memory(RamConfig::new(2 << 20))
        .payload(|memory: &GuestMmap, _: &Platform| {
            memory.write_slice(GUEST, CODE)?;
            Ok(Registers::real_mode(CODE.0 as u16))
        })
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
