//! Counted by the processor's performance monitors: an emulated one has them where it counts its instructions
//! (`cargo xtask nested --arch aarch64 --icount`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Instructions per operation, as recorded. Baselines and floors are others' ways to the same end, for comparison.
pub const BOUNDS: &[(&str, f64)] = &[
    ("nothing", 6.3),
    ("bus read, hot, 1 devices", 33.4),
    ("bus read, another device each time, 1 devices", 38.4),
    ("bus read, hot, 8 devices", 33.4),
    ("bus read, another device each time, 8 devices", 113.4),
    ("bus read, hot, 64 devices", 33.4),
    ("bus read, another device each time, 64 devices", 137.4),
    ("baseline: bus read, hot, 64 devices, IoManager in a mutex", 266.4),
    ("baseline: bus read, hot, 64 devices, map in a read-write lock", 354.4),
    ("queue pop and complete, direct, 1", 131.8),
    ("queue pop and complete, direct, 3", 183.8),
    ("queue pop and complete, direct, 16", 563.1),
    ("queue pop and complete, indirect, 1", 154.6),
    ("queue pop and complete, indirect, 3", 206.6),
    ("queue pop and complete, indirect, 16", 588.1),
    ("block read, direct, batch of 32", 260.2),
    ("block read, indirect, batch of 32", 282.9),
    ("floor: block read, direct, batch of 32", 82.0),
    ("packet sent, batch of 32", 235.5),
    ("packet received, batch of 32", 394.4),
    ("socket stream, sent by the guest, KiB", 19.8),
    ("socket stream, received in buffers of 4 KiB, KiB", 119.0),
    ("floor: stream through a pair of Unix sockets, KiB", 1.7),
    ("PCI configuration read, ECAM", 194.4),
    ("PCI configuration read, address and data port", 235.4),
    ("virtio-pci register read", 139.4),
    ("MSI-X vector unmasked and masked", 465.4),
    ("guest memory: range check", 21.4),
    ("guest memory: read of 8 bytes", 17.5),
    ("guest memory: read of 4096 bytes", 571.4),
    ("device state: encode", 4962.4),
    ("device state: decode", 6173.3),
    ("baseline: device state, copy of the file", 93.4),
    ("boot: device tree", 112123.1),
    ("boot: ACPI tables", 73796.3),
    ("boot: kernel parsed", 2211.3),
    ("boot: kernel loaded", 115441.3),
    ("serial port, byte sent", 535.4),
    ("adapter: serial port with vm-superio's registers, byte sent", 560.4),
    ("baseline: vm-superio's serial port in a mutex, byte sent", 96.4),
    ("adapter: vm-device's device on our bus, read", 65.4),
    ("adapter: our device on an IoManager, read", 145.4),
    ("baseline: vm-device's device on an IoManager, read", 92.4),
    ("event and its turn, our loop", 1281.3),
    ("adapter: event and its turn, event-manager's subscriber on our loop", 2487.3),
    ("adapter: event and its turn, our loop on an EventManager", 1089.3),
    ("baseline: event and its turn, EventManager", 533.4),
    ("adapter: virtio-queue's queue behind ours, direct, 1", 1163.0),
    ("baseline: virtio-queue's queue, direct, 1", 764.4),
    ("adapter: virtio-queue's queue behind ours, direct, 3", 2050.0),
    ("baseline: virtio-queue's queue, direct, 3", 1246.4),
    ("adapter: virtio-queue's queue behind ours, direct, 16", 6110.7),
    ("baseline: virtio-queue's queue, direct, 16", 4410.6),
    ("adapter: virtio-queue's queue behind ours, indirect, 1", 1185.7),
    ("baseline: virtio-queue's queue, indirect, 1", 1000.4),
    ("adapter: virtio-queue's queue behind ours, indirect, 3", 2072.7),
    ("baseline: virtio-queue's queue, indirect, 3", 1482.4),
    ("adapter: virtio-queue's queue behind ours, indirect, 16", 6135.7),
    ("baseline: virtio-queue's queue, indirect, 16", 4646.6),
];

/// Runs the program; what each path's operations cost.
pub fn count(program: &Path) -> BTreeMap<String, f64> {
    let output = Command::new(program).output().expect("the program does not start");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).unwrap();
    let cost = |line: &str| {
        let columns: Vec<_> = line.split('\t').collect();
        let &[name, operations, total] = &columns[..] else {
            panic!("the processor does not count: {line:?}")
        };
        let (total, operations): (f64, f64) = (total.parse().unwrap(), operations.parse().unwrap());
        (name.to_owned(), total / operations)
    };
    paths.lines().map(cost).collect()
}
