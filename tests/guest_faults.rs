//! What fails on the host while a guest runs: the guest sees an error, the VMM says so in one line and goes on. And
//! more disks than there are interrupt lines.

mod support;

use std::fs::{self, File};
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::{Ended, Guest, Running, Tap};
use xtask::process;

const MIB: u64 = 1 << 20;

/// Writes 16 MiB to the disk twice: neither gets there, and what is there can still be read.
const FILL: &str = "! dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync
    ! dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync
    dd if=/dev/vda of=/dev/null bs=1M count=1";

fn sparse(image: &Path) {
    File::create(image).unwrap().set_len(64 * MIB).unwrap();
}

/// Checks that the VMM went on to the guest's own end, and that it has said one thing, which has all these parts.
fn said_once(ended: &Ended, parts: &[&str]) {
    ended.expect(0);
    ended.answers();
    assert_eq!(ended.err.lines().count(), 1, "{ended}");
    for part in parts {
        assert!(ended.err.contains(part), "no {part:?}: {ended}");
    }
}

/// The VMM may have files of 8 MiB.
fn limit(guest: &Running) {
    let pid = Pid::from_raw(guest.pid() as i32);
    let limit = Rlimit { current: Some(8 * MIB), maximum: Some(8 * MIB) };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

#[test]
fn e4_e5_a_disk_beyond_the_limit_on_file_sizes_is_an_error_to_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    sparse(&image);
    let mut guest = Guest::new().disk(&image, "").hold().run("fill", FILL).start();
    guest.while_held(limit);
    said_once(&guest.wait(), &["microvm: device \"disk0\": cannot write", "File too large"]);
}

#[test]
fn e4_a_full_file_system_of_the_host_is_an_error_to_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("small");
    fs::create_dir(&place).unwrap();
    process::output(process::command("mount").args(["-t", "tmpfs", "-o", "size=4M", "small"]).arg(&place))
        .unwrap();
    let image = place.join("disk");
    sparse(&image);
    let ended = Guest::new().disk(&image, "").run("fill", FILL).start().wait();
    process::output(process::command("umount").arg(&place)).unwrap();
    said_once(&ended, &["microvm: device \"disk0\": cannot write", "No space left on device"]);
}

#[test]
fn e4_a_tap_that_is_deleted_is_told_and_the_guest_goes_on() {
    let tap = Tap::new();
    let mut guest = Guest::new()
        .args(["--net", &format!("tap={}", tap.name)])
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .hold()
        .run("ping", &format!("! ping -c 3 -W 1 {}", tap.host))
        .start();
    guest.while_held(|_| process::output(process::command("ip").args(["link", "del", &tap.name])).unwrap());
    let ended = guest.wait();
    ended.expect(0);
    ended.answers();
    // A tap goes down (EIO), and is gone (EBADFD): each is told once of sending, the second of receiving too.
    let told = [
        "send a packet: Input/output error (os error 5)",
        "send a packet: File descriptor in bad state (os error 77)",
        "receive a packet: File descriptor in bad state (os error 77)",
    ]
    .map(|what| format!("microvm: device \"net0\": cannot {what}"));
    let mut lines: Vec<&str> = ended.err.lines().collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| told.iter().any(|one| one == line)), "{ended}");
    lines.sort_unstable();
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "nothing is told twice: {ended}");
}

#[test]
fn c2_sixty_four_disks_share_interrupt_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new();
    for number in 0..64 {
        let image = folder.path().join(format!("disk{number}"));
        fs::write(&image, format!("{number:03}\n").repeat(1024)).unwrap();
        guest = guest.disk(&image, "");
    }
    let answers = guest
        .run("count", "ls /sys/block | grep -c vd")
        .run(
            "numbers",
            "for disk in $(ls -v /sys/block | grep vd); do head -c 3 /dev/$disk; printf ' '; done",
        )
        .run("lines", "grep -c virtio /proc/interrupts")
        .boot();
    assert_eq!(&answers["count"], "64");
    let mut numbers: Vec<&str> = answers["numbers"].split_whitespace().collect();
    numbers.sort_unstable();
    let expected: Vec<String> = (0..64).map(|number| format!("{number:03}")).collect();
    assert_eq!(numbers, expected, "each disk answers");
    let lines: usize = answers["lines"].parse().unwrap();
    assert!(lines < 24, "{lines} lines");
}
