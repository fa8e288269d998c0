//! What a machine does with its devices while a guest uses them, and what it does not let the guest notice: devices are
//! replaced, many of them share a few lines, the machine pauses.

mod support;

use std::fs::{self, File};
use std::io::Read;
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
use support::{Guest, LIMIT, hash_in_ext4};
use xtask::tree::Tree;

fn disk(id: &str, image: &Path, io: &Arc<SharedLoop>) -> VirtioMmio {
    let file = RawFile::open(image, OpenMode::ReadWrite).unwrap();
    VirtioMmio::new(id, Box::new(Blk::new(file, id.parse::<DiskId>().unwrap())), io.clone())
}

const REPLACEMENTS: usize = 20;

#[test]
fn a_disk_is_replaced_while_the_guest_writes_to_it_and_reads() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    Tree::new().write_ext4(&image, 64).unwrap();
    let mut data = vec![0; 256 << 10];
    File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let traffic = r#"sum=$(sha256sum </data)
        mount -t ext4 /dev/vda /mnt
        (read -r line </dev/console; touch /run/stop) &
        printf 'traffic\n'
        n=0
        until [ -e /run/stop ]; do
            n=$((n + 1))
            dd if=/data of=/mnt/$((n % 8)) bs=16k conv=fsync 2>/dev/null
            echo 3 >/proc/sys/vm/drop_caches
            [ "$(sha256sum </mnt/$((n % 8)))" = "$sum" ]
        done
        cp /data /mnt/last
        umount /mnt
        echo "rounds: $n""#;
    let guest = Guest::new()
        .program("/data", data)
        .run("traffic", traffic)
        .run("hash", "sha256sum </data")
        .run("log", "dmesg");
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let (builder, mut terminal) =
        guest.machine("replace", [Box::new(disk("disk", &image, &io)) as Box<dyn Device>]);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    terminal.wait_for("traffic\n");
    let mut busy = 0;
    for round in 1..=REPLACEMENTS {
        thread::sleep(Duration::from_millis(100));
        // The counters begin anew with each device.
        machine.metrics(&mut |scope, metric, value| {
            busy += usize::from((scope, metric.name) == ("disk", "written_bytes") && value > 0);
        });
        let old = machine.replace_device(disk("disk", &image, &io));
        assert!(old.is_ok(), "round {round}: {:?}: {}", old.err(), terminal.log.text());
    }
    terminal.type_in("\n");
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    let answers = terminal.answers(&guest);
    println!("{busy} devices were written to; {}", &answers["traffic"]);
    assert!(busy > REPLACEMENTS / 4, "{busy} devices were written to");
    assert!(!answers["log"].contains("I/O error"), "{}", &answers["log"]);
    assert_eq!(hash_in_ext4(&image, "/last"), answers["hash"], "the guest and the host read the same");
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
        .run("log", "dmesg");
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
    assert!(!answers["log"].contains("nobody cared"), "{}", &answers["log"]);
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
    let guest = Guest::new().run("watch", watch).run("log", "dmesg");
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
    let answers = terminal.answers(&guest);
    assert!(!answers["log"].contains("soft lockup"), "{}", &answers["log"]);
}
