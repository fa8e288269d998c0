//! In steady state neither a request of the guest nor its completion costs an exit to user space, by KVM's own
//! counters: doorbells are ioeventfds, interrupts are irqfds, and their status is in memory that the guest reads.

mod support;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ossature::bus::Device;
use ossature::core::Kvm;
use ossature::core::machine::{Linux, Machine, Outcome};
use ossature::legacy::{AcpiPower, Rtc, Serial, SerialPort, backend};
use ossature::memory::RamConfig;
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::{Blk, SharedLoop, VirtioMmio};
use support::{Guest, LIMIT, Log, kernel};

/// Requests of a disk in the measured part.
const REQUESTS: u64 = 4000;

#[test]
fn requests_and_interrupts_do_not_reach_user_space() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    // The first part warms up; what is counted is between the marks.
    let load = format!(
        "dd if=/dev/vda of=/dev/null bs=4k iflag=direct count=100
        printf 'warm\\n'
        read -r line </dev/console
        dd if=/dev/vda of=/dev/null bs=4k iflag=direct count={}
        dd if=/dev/zero of=/dev/vda bs=4k oflag=direct count={}
        printf 'done\\n'
        read -r line </dev/console",
        REQUESTS / 2,
        REQUESTS / 2
    );
    let guest = Guest::new().run("load", &load);
    let (mut keyboard, ours) = UnixStream::pair().unwrap();
    let log = Log::follow(keyboard.try_clone().unwrap());
    let mut machine = machine(&guest, &image, ours);
    machine.start().unwrap();
    let mut at = |mark: &str| {
        assert!(log.wait_for(mark, LIMIT), "no {mark:?}: {}", log.text());
        let counters = counters(&machine);
        keyboard.write_all(b"\n").unwrap();
        counters
    };
    let before = at("warm\n");
    let after = at("done\n");
    assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown), "{}", log.text());

    let of_disk = |name: &str| after[&("disk", name)] - before[&("disk", name)];
    let requests = of_disk("read_requests") + of_disk("write_requests");
    assert!(requests >= REQUESTS, "{requests} requests: {}", log.text());
    let grown = |name: &str| -> u64 {
        let sum =
            |counters: &Counters| ["vcpu0", "vcpu1"].iter().map(|vcpu| counters[&(*vcpu, name)]).sum::<u64>();
        sum(&after) - sum(&before)
    };
    assert!(grown("exits") > requests, "each request makes the guest exit to the kernel at least");
    // The guest's clock and its console may go to user space, at their own pace.
    for exits in ["mmio_exits", "io_exits"] {
        let count = grown(exits);
        assert!(count * 20 <= requests, "{count} {exits} for {requests} requests: {before:?} {after:?}");
    }
}

type Counters = HashMap<(&'static str, &'static str), u64>;

/// The counters that are compared, by scope and name.
fn counters(machine: &Machine) -> Counters {
    let mut counters = HashMap::new();
    machine.metrics(&mut |scope, name, value| {
        for known in ["disk", "vcpu0", "vcpu1"] {
            for counter in ["read_requests", "write_requests", "exits", "mmio_exits", "io_exits"] {
                if (scope, name) == (known, counter) {
                    counters.insert((known, counter), value);
                }
            }
        }
    });
    counters
}

fn machine(guest: &Guest, image: &std::path::Path, console: UnixStream) -> Machine {
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let disk =
        Blk::new(RawFile::open(image, OpenMode::ReadWrite).unwrap(), "disk".parse::<DiskId>().unwrap());
    let line = backend::fds(Some(console.try_clone().unwrap().into()), Some(console.into())).unwrap();
    let devices: Vec<Box<dyn Device>> = vec![
        Box::new(Rtc::new("rtc")),
        Box::new(AcpiPower::new("power")),
        Box::new(Serial::new("com1", SerialPort::COM1, line).unwrap()),
        Box::new(VirtioMmio::new("disk", Box::new(disk), io)),
    ];
    Machine::builder("exits")
        .cpus(2)
        .memory(RamConfig::new(256 << 20))
        .payload(Linux::new(kernel().vmlinux()).initrd(guest.initrd()).cmdline(guest.command_line()))
        .devices(devices)
        .statistics()
        .build(&Kvm::open().unwrap())
        .unwrap()
}
