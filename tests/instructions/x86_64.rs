//! Counted under callgrind (Debian's `valgrind`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Instructions per operation, as recorded. Baselines and floors are others' ways to the same end, for comparison.
pub const BOUNDS: &[(&str, f64)] = &[
    ("nothing", 6.1),
    ("bus read, hot, 1 devices", 33.3),
    ("bus read, another device each time, 1 devices", 45.3),
    ("bus read, hot, 8 devices", 33.3),
    ("bus read, another device each time, 8 devices", 137.3),
    ("bus read, hot, 64 devices", 33.3),
    ("bus read, another device each time, 64 devices", 164.3),
    ("baseline: bus read, hot, 64 devices, IoManager in a mutex", 264.2),
    ("baseline: bus read, hot, 64 devices, map in a read-write lock", 304.2),
    ("queue pop and complete, direct, 1", 150.8),
    ("queue pop and complete, direct, 3", 208.8),
    ("queue pop and complete, direct, 16", 630.0),
    ("queue pop and complete, indirect, 1", 180.5),
    ("queue pop and complete, indirect, 3", 238.5),
    ("queue pop and complete, indirect, 16", 661.9),
    ("block read, direct, batch of 32", 291.8),
    ("block read, indirect, batch of 32", 321.5),
    ("floor: block read, direct, batch of 32", 106.7),
    ("packet sent, batch of 32", 278.0),
    ("packet received, batch of 32", 417.4),
    ("socket stream, sent by the guest, KiB", 21.2),
    ("socket stream, received in buffers of 4 KiB, KiB", 126.4),
    ("floor: stream through a pair of Unix sockets, KiB", 1.6),
    ("PCI configuration read, ECAM", 162.2),
    ("PCI configuration read, address and data port", 215.2),
    ("virtio-pci register read", 153.2),
    ("MSI-X vector unmasked and masked", 439.2),
    ("guest memory: range check", 22.1),
    ("guest memory: read of 8 bytes", 19.2),
    ("guest memory: read of 4096 bytes", 463.2),
    ("device state: encode", 4372.2),
    ("device state: decode", 6103.1),
    ("baseline: device state, copy of the file", 96.2),
    ("boot: ACPI tables", 61104.3),
    ("boot: memory map", 360.3),
    ("boot: kernel parsed", 5323.3),
    ("serial port, byte sent", 570.2),
    ("adapter: serial port with vm-superio's registers, byte sent", 560.2),
    ("baseline: vm-superio's serial port in a mutex, byte sent", 67.2),
    ("adapter: vm-device's device on our bus, read", 60.2),
    ("adapter: our device on an IoManager, read", 159.2),
    ("baseline: vm-device's device on an IoManager, read", 104.2),
    ("event and its turn, our loop", 1088.2),
    ("adapter: event and its turn, event-manager's subscriber on our loop", 2181.2),
    ("adapter: event and its turn, our loop on an EventManager", 1034.2),
    ("baseline: event and its turn, EventManager", 574.2),
    ("adapter: virtio-queue's queue behind ours, direct, 1", 1156.5),
    ("baseline: virtio-queue's queue, direct, 1", 728.3),
    ("adapter: virtio-queue's queue behind ours, direct, 3", 2103.5),
    ("baseline: virtio-queue's queue, direct, 3", 1192.3),
    ("adapter: virtio-queue's queue behind ours, direct, 16", 6418.1),
    ("baseline: virtio-queue's queue, direct, 16", 4239.3),
    ("adapter: virtio-queue's queue behind ours, indirect, 1", 1205.5),
    ("baseline: virtio-queue's queue, indirect, 1", 953.3),
    ("adapter: virtio-queue's queue behind ours, indirect, 3", 2152.5),
    ("baseline: virtio-queue's queue, indirect, 3", 1417.3),
    ("adapter: virtio-queue's queue behind ours, indirect, 16", 6467.1),
    ("baseline: virtio-queue's queue, indirect, 16", 4464.3),
    ("boot: kernel loaded", 87753.6),
    ("adapter: kernel loaded by linux-loader", 88053.8),
];

/// Runs the program under callgrind; what each path's operations cost.
pub fn count(program: &Path) -> BTreeMap<String, f64> {
    let dir = tempfile::tempdir().unwrap();
    let sums = dir.path().join("sums");
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--toggle-collect=instructions::measured",
            "--dump-after=instructions::measured",
        ])
        .arg(format!("--callgrind-out-file={}", sums.display()))
        .arg(program)
        .output()
        .expect("valgrind does not start: on Debian it is the package `valgrind`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).unwrap();
    let cost = |(index, line): (usize, &str)| {
        let (name, operations) = line.split_once('\t').unwrap();
        // callgrind appends each sum's number to the name, beginning with 1.
        let text = fs::read_to_string(dir.path().join(format!("sums.{}", index + 1))).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
        let (total, operations): (f64, f64) = (total.parse().unwrap(), operations.parse().unwrap());
        (name.to_owned(), total / operations)
    };
    paths.lines().enumerate().map(cost).collect()
}
