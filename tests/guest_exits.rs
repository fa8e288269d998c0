//! In steady state neither a request of the guest nor its completion costs an exit to user space, by KVM's own
//! counters: doorbells are ioeventfds, interrupts are irqfds, and on MMIO their status is in memory that the guest reads.

mod support;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::thread;

use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::net::{self, Mac};
use ossature::virtio::{Blk, MmioInterrupt, Net, SharedLoop};
use ossature::vmm::Kvm;
use ossature::vmm::machine::{Machine, Outcome};
use support::{Guest, Tap, Transport, Virtio, accept};

/// Requests of the disk, and bytes over the network, in the measured part.
const REQUESTS: u64 = 4000;
const BYTES: u64 = 8 << 20;

#[test]
fn requests_and_interrupts_do_not_reach_user_space() {
    stay_in_the_kernel(Transport::Mmio);
}

#[test]
fn requests_and_interrupts_do_not_reach_user_space_on_pci() {
    stay_in_the_kernel(Transport::Pci);
}

fn stay_in_the_kernel(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let tap = Tap::new();
    let listener = tap.listen();
    // The first part warms up; what is counted is between the marks.
    let load = format!(
        "dd if=/dev/vda of=/dev/null bs=4k iflag=direct count=100
        printf 'warm\\n'
        read -r line </dev/console
        dd if=/dev/vda of=/dev/null bs=4k iflag=direct count={}
        dd if=/dev/zero of=/dev/vda bs=4k oflag=direct count={}
        head -c {BYTES} /dev/zero | nc {} {}
        printf 'done\\n'
        read -r line </dev/console",
        REQUESTS / 2,
        REQUESTS / 2,
        tap.host,
        listener.local_addr().unwrap().port(),
    );
    let guest = Guest::new().cmdline(&format!("ossature.ip={}/24", tap.guest)).run("load", &load);
    let received = thread::spawn(move || {
        let (mut stream, _) = accept(&listener);
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let disk = RawFile::open(&image, OpenMode::ReadWrite).unwrap();
    let disk = Blk::new(disk, "disk".parse::<DiskId>().unwrap());
    let net = Net::new(net::Tap::open(&tap.name).unwrap(), Mac::derived(&tap.name));
    let virtio: [Virtio; 2] = [
        ("disk", Box::new(disk), MmioInterrupt::AlwaysSet),
        ("net", Box::new(net), MmioInterrupt::AlwaysSet),
    ];
    let devices = transport.plug(virtio, &io);
    let (builder, mut terminal) = guest.machine("exits", devices);
    let machine = builder.cpus(2).statistics().build(&Kvm::open().unwrap()).unwrap();
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

    assert_eq!(received.join().unwrap(), BYTES);
    let of = |scope, name| after[&(scope, name)] - before[&(scope, name)];
    let requests = of("disk", "read_requests") + of("disk", "write_requests");
    assert!(requests >= REQUESTS, "{requests} requests: {text}");
    let packets = of("net", "rx_packets") + of("net", "tx_packets");
    assert!(packets > 100, "{packets} packets: {text}");
    let requests = requests + packets;
    let sum = |counters: &Counters, name| counters[&("vcpu0", name)] + counters[&("vcpu1", name)];
    let grown = |name| sum(&after, name) - sum(&before, name);
    assert!(grown("exits") > requests, "each request makes the guest exit to the kernel at least");
    for exits in ["mmio_exits", "io_exits"] {
        assert!(sum(&before, exits) > 0, "drivers set up their devices by {exits}");
    }
    // The guest's clock and its console may go to user space, at their own pace.
    for exits in ["mmio_exits", "io_exits"] {
        let count = grown(exits);
        assert!(count * 20 <= requests, "{count} {exits} for {requests} requests: {before:?} {after:?}");
    }
}

const COUNTERS: [(&str, &str); 10] = [
    ("disk", "read_requests"),
    ("disk", "write_requests"),
    ("net", "rx_packets"),
    ("net", "tx_packets"),
    ("vcpu0", "exits"),
    ("vcpu0", "io_exits"),
    ("vcpu0", "mmio_exits"),
    ("vcpu1", "exits"),
    ("vcpu1", "io_exits"),
    ("vcpu1", "mmio_exits"),
];

type Counters = HashMap<(&'static str, &'static str), u64>;

/// The counters that are compared, by scope and name.
fn counters(machine: &Machine) -> Counters {
    let mut counters = HashMap::new();
    machine.metrics(&mut |scope, metric, value| {
        for known in COUNTERS {
            if known == (scope, metric.name) {
                counters.insert(known, value);
            }
        }
    });
    counters
}
