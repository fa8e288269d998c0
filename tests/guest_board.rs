//! What a machine does with its devices while a guest uses them, and what it does not let the guest notice: many devices
//! share a few lines, the machine pauses.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ossature::bus::Device;
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::{Blk, MmioInterrupt, SharedLoop, VirtioMmio};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use support::{Guest, LIMIT, found_none, log_of};

fn disk(id: &str, image: &Path, io: &Arc<SharedLoop>) -> VirtioMmio {
    let file = RawFile::open(image, OpenMode::ReadWrite).unwrap();
    VirtioMmio::new(id, Box::new(Blk::new(file, id.parse::<DiskId>().unwrap())), io.clone())
}

/// More than there are lines.
const DISKS: usize = 64;

#[test]
fn sixty_four_disks_share_a_few_level_lines() {
    let folder = tempfile::tempdir().unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let devices: Vec<Box<dyn Device>> = (0..DISKS)
        .map(|index| {
            let id = format!("disk{index}");
            let image = folder.path().join(&id);
            fs::write(&image, format!("this is {id}\n")).unwrap();
            File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
            Box::new(disk(&id, &image, &io).with_interrupt(MmioInterrupt::SharedLine)) as Box<dyn Device>
        })
        .collect();
    let guest = Guest::new()
        .run(
            "disks",
            "for disk in /sys/block/vd*; do echo $(cat $disk/serial): $(head -n 1 /dev/${disk##*/}); done",
        )
        .run("side by side", "for disk in /sys/block/vd*; do cat /dev/${disk##*/} >/dev/null & done; wait")
        .run(
            "write",
            "for disk in /dev/vd*; do printf 'written\n' | dd of=$disk seek=1 conv=fsync 2>&1; done",
        )
        .run("interrupts", "grep virtio /proc/interrupts")
        .run("log", &log_of(&["nobody cared"]));
    let (builder, terminal) = guest.machine("lines", devices);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    let answers = terminal.answers(&guest);
    let mut found: Vec<&str> = answers["disks"].lines().collect();
    found.sort_unstable();
    let mut expected: Vec<String> =
        (0..DISKS).map(|index| format!("disk{index}: this is disk{index}")).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    for index in 0..DISKS {
        let mut sector = [0; 8];
        let image = File::open(folder.path().join(format!("disk{index}"))).unwrap();
        image.read_exact_at(&mut sector, 512).unwrap();
        assert_eq!(&sector, b"written\n", "disk{index}");
    }
    let lines = &answers["interrupts"];
    assert!(lines.lines().count() < DISKS && lines.contains("fasteoi"), "level lines are shared: {lines}");
    found_none(&answers["log"]);
}

#[test]
fn t9_a_pause_is_no_lockup() {
    // The watchdog reports a processor that has not scheduled for twice as long.
    let watch = r#"echo 4 >/proc/sys/kernel/watchdog_thresh
        while :; do :; done &
        sleep 2
        printf 'busy\n'
        read -r line </dev/console
        sleep 1
        kill $!"#;
    let guest = Guest::new().run("watch", watch).run("log", &log_of(&["soft lockup"]));
    let (builder, mut terminal) = guest.machine("pause", []);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    terminal.wait_for("busy\n");
    for _ in 0..2 {
        let paused = machine.pause().unwrap();
        thread::sleep(Duration::from_secs(12));
        paused.resume().unwrap();
        // For the watchdog's timer to look at the clock.
        thread::sleep(Duration::from_secs(2));
    }
    terminal.type_in("\n");
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    found_none(&terminal.answers(&guest)["log"]);
}
