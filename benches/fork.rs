//! Forks of a template and the floor, by turns: how long one takes while so many are there, with a disk, a network card,
//! vsock, a serial port and a generation ID. What the devices are on the host is opened before.
//!
//! `cargo bench --bench fork` takes up to 1,000, if the process may have as many descriptors as that takes; as a test it
//! takes 10.

#[path = "floors/fork.rs"]
mod floor;
#[path = "support/guest.rs"]
mod guest;

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ossature::boot::Platform;
use ossature::bus::Device;
use ossature::legacy::AcpiPower;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::virtio::SharedLoop;
use ossature::vmm::machine::{ForkPlan, GuestClock, Machine, PayloadError};
use ossature::vmm::program::raise_descriptor_limit;
use ossature::vmm::{Kvm, Registers};

const RAM: usize = 128 << 20;
/// What a child takes, at most.
const DESCRIPTORS: u64 = 19;
/// mov dx, 0x600; mov al, 0x34; out dx, al: powers the machine off.
const POWER_OFF: [u8; 6] = [0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];

fn devices(number: u64, io: &Arc<SharedLoop>) -> (Vec<Box<dyn Device>>, UnixStream) {
    let (mut devices, cable) = guest::devices(number, io);
    devices.push(Box::new(AcpiPower::new("power")));
    (devices, cable)
}

fn payload(memory: &GuestMmap, _: &Platform) -> Result<Registers, PayloadError> {
    memory.write_slice(&POWER_OFF, GuestAddress(0x1000))?;
    Ok(Registers::real_mode(0x1000))
}

fn timed<T>(times: &mut Vec<Duration>, make: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let made = make();
    times.push(start.elapsed());
    made
}

/// The time that so many hundredths take no longer than.
fn quantile(times: &[Duration], hundredths: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * hundredths / 100).min(sorted.len() - 1)]
}

fn main() {
    let descriptors = raise_descriptor_limit().unwrap();
    let full = std::env::args().any(|argument| argument == "--bench");
    let kvm = Kvm::open().unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let (own, _cable) = devices(0, &io);
    let parent = Machine::builder("parent").memory(RamConfig::new(RAM as u64)).payload(payload).devices(own);
    let parent = parent.build(&kvm).unwrap();
    let template = parent.template().unwrap();
    let floor = floor::Template::new(RAM, &POWER_OFF);
    let mut number = 0;
    println!(
        "{:<14} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "children", "p50", "p99", "floor p50", "floor p99", "p50/p50"
    );
    let rounds: &[(u64, u64)] =
        if full { &[(1, 400), (10, 40), (100, 8), (1000, 2)] } else { &[(1, 2), (8, 1)] };
    for &(children, rounds) in rounds {
        let children = children.min(descriptors / DESCRIPTORS);
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        // By turns. Each guest has run before the next one is made.
        for _ in 0..rounds {
            let ready: Vec<_> = (0..children).map(|child| devices(number + child + 1, &io)).collect();
            number += children;
            let (ready, _cables): (VecDeque<_>, Vec<_>) = ready.into_iter().unzip();
            let ready = Mutex::new(ready);
            let plan =
                ForkPlan::new(1, GuestClock::Continue, |_| Ok(ready.lock().unwrap().pop_front().unwrap()));
            let mut alive = Vec::new();
            for _ in 0..children {
                let machines = timed(&mut ours, || template.fork(&kvm, &plan).unwrap());
                machines.iter().for_each(|machine| drop(machine.wait().unwrap()));
                alive.push(machines);
            }
            drop(alive);
            let mut alive = Vec::new();
            for _ in 0..children {
                let mut machine = timed(&mut floors, || floor.fork());
                machine.wait();
                alive.push(machine);
            }
        }
        let [p50, p99, floor50, floor99] =
            [(&ours, 50), (&ours, 99), (&floors, 50), (&floors, 99)].map(|(times, q)| quantile(times, q));
        let ratio = p50.as_secs_f64() / floor50.as_secs_f64();
        println!("{children:<14} {p50:>10.1?} {p99:>10.1?} {floor50:>10.1?} {floor99:>10.1?} {ratio:>7.2}");
    }
}
