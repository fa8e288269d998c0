//! PCI: an unmodified kernel finds everything, and complains of nothing.

mod support;

use std::fs::File;

use support::Guest;

#[test]
fn g8_a_kernel_finds_everything_and_logs_no_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let answers = Guest::new()
        .args(["--transport", "pci", "--cpus", "2"])
        .disk(&image, "")
        .run("functions", "cd /sys/bus/pci/devices; for f in *; do echo $f $(cat $f/vendor $f/device $f/class); done")
        .run("disk", "dd if=/dev/vda of=/dev/null bs=1M; cat /sys/block/vda/size")
        .run("interrupts", "grep virtio /proc/interrupts")
        .run("iomem", "cat /proc/iomem; cat /proc/cmdline")
        .run("complaints", "dmesg -r | grep '^<[0-4]>' || true")
        .run("all", "dmesg")
        .boot();
    for name in ["functions", "disk", "interrupts", "iomem", "complaints", "all"] {
        eprintln!("{name}: {}", &answers[name]);
    }
    panic!();
}
