//! What a request costs beyond its instructions when a guest keeps 32 in flight, with a disk that does nothing: exits to
//! user space, interrupts, and system calls of the I/O thread, by the counters of KVM, the guest and the host.

mod support;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use ossature::bus::Device;
use ossature::virtio::blk::{DiskId, NullDisk};
use ossature::virtio::{Blk, MmioInterrupt, SharedLoop, VirtioMmio};
use ossature::vmm::Kvm;
use ossature::vmm::machine::{Machine, Outcome};
use support::Guest;

const DEPTH: u64 = 32;
const ROUNDS: u64 = 500;
/// How the I/O thread is called.
const THREAD: &str = "depth-io";

#[test]
fn a_batch_of_requests_costs_one_kick_and_one_interrupt() {
    let load = format!(
        "interrupts() {{ awk '/virtio/ {{ print \"interrupts:\", $2 }}' /proc/interrupts; }}
        /depth /dev/vda {DEPTH} 20
        interrupts
        printf 'warm\\n'
        read -r line </dev/console
        /depth /dev/vda {DEPTH} {ROUNDS}
        interrupts
        printf 'done\\n'
        read -r line </dev/console"
    );
    let guest = Guest::new().example("depth").run("load", &load);
    let disk = Blk::new(NullDisk::new(1 << 16), "disk".parse::<DiskId>().unwrap());
    let disk = VirtioMmio::new("disk", Box::new(disk), Arc::new(SharedLoop::new(THREAD).unwrap()))
        .with_interrupt(MmioInterrupt::AlwaysSet);
    let (builder, mut terminal) = guest.machine("depth", [Box::new(disk) as Box<dyn Device>]);
    let machine = builder.statistics().build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let mut at = |mark: &str| {
        terminal.wait_for(mark);
        let counters = counters(&machine);
        terminal.type_in("\n");
        counters
    };
    let before = at("warm\n");
    let after = at("done\n");
    let outcome = machine.wait().unwrap();
    let text = terminal.log.text();
    assert!(matches!(outcome, Outcome::Shutdown), "{text}");

    let grown = |name: &str| (after[name] - before[name]) as f64;
    let requests = grown("read_requests");
    assert!(requests >= (DEPTH * ROUNDS) as f64, "{requests} requests: {text}");
    let interrupts: Vec<u64> =
        text.lines().filter_map(|line| line.split_once("interrupts: ")?.1.trim().parse().ok()).collect();
    let [first, last] = interrupts[..] else { panic!("{interrupts:?}: {text}") };
    let interrupts = (last - first) as f64;
    let exits = grown("mmio_exits") + grown("io_exits");
    // Each wake-up is one wait; the I/O thread reads and writes nothing but interrupts.
    let calls = grown("waits") + grown("writes") + grown("reads");
    let per = |count: f64| count / requests;
    println!(
        "per request, {DEPTH} in flight: {:.3} exits to user space, {:.3} interrupts, {:.3} system calls; {:.3} exits \
         of all kinds, {:.3} injected interrupts of all kinds",
        per(exits),
        per(interrupts),
        per(calls),
        per(grown("exits")),
        per(grown("irq_injections")),
    );
    assert!(per(exits) <= 0.05, "{exits} exits to user space for {requests} requests");
    assert!(per(interrupts) <= 0.1, "{interrupts} interrupts for {requests} requests");
    assert!(per(calls) <= 0.1, "{calls} system calls for {requests} requests");
}

/// Counters of the disk, of the vCPU, and of the I/O thread.
fn counters(machine: &Machine) -> HashMap<String, u64> {
    let mut counters = HashMap::new();
    machine.metrics(&mut |scope, metric, value| {
        if ["disk", "vcpu0"].contains(&scope) {
            counters.insert(metric.name.to_owned(), value);
        }
    });
    let thread = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == THREAD))
        .unwrap();
    let fields =
        [("io", "syscr", "reads"), ("io", "syscw", "writes"), ("status", "voluntary_ctxt_switches", "waits")];
    for (file, field, name) in fields {
        let text = fs::read_to_string(thread.join(file)).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        counters.insert(name.to_owned(), value.trim().parse().unwrap());
    }
    counters
}
