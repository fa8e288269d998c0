//! The example `appliance`: the least that boots Linux as a product would.

mod support;

use std::process::{Command, Output};

use support::{Answers, Guest, Tap, hash_of, kernel};
use xtask::vmm;

const DISK: u64 = 1 << 20;

/// Runs the guest to its end on a disk and a tap.
fn run(guest: &Guest, disk: &str, tap: &str, words: &[&str]) -> Output {
    let images = [kernel().vmlinux(), guest.initrd()];
    Command::new(vmm::example("appliance")).args(images).args([disk, tap]).args(words).output().unwrap()
}

#[test]
fn an_appliance_has_a_disk_a_network_card_entropy_and_a_console() {
    let folder = tempfile::tempdir().unwrap();
    let tap = Tap::new();
    let disk = support::sparse(folder.path(), "disk", DISK);
    let guest = Guest::new()
        .run("disk", "seq 1 100000 | head -c 65536 | dd of=/dev/vda bs=64k conv=fsync 2>/dev/null")
        .run("ping", &format!("ping -c 3 -s 1400 {}", tap.host))
        .run("rng", "cat /sys/class/misc/hw_random/rng_current; head -c 32 /dev/hwrng | wc -c")
        .run("log", "dmesg | grep -e BUG: -e Oops -e 'I/O error' || true");
    let address = format!("ossature.ip={}/24", tap.guest);
    let ended = run(&guest, disk.to_str().unwrap(), &tap.name, &[&address]);
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!((ended.status.code(), &*err), (Some(0), ""), "{out}");
    let names = ["disk", "ping", "rng", "log"].map(str::to_owned);
    let answers = Answers::parse(&out, &names).unwrap_or_else(|what| panic!("{what}: {out}"));
    assert!(answers["ping"].contains("3 packets transmitted, 3 packets received"), "{out}");
    assert!(answers["rng"].starts_with("virtio_rng") && answers["rng"].ends_with("\n32"), "{out}");
    assert_eq!(&answers["log"], "");
    let written = hash_of(&format!("head -c 65536 {}", disk.display()));
    assert_eq!(written, hash_of("seq 1 100000 | head -c 65536"));
}

#[test]
fn it_ends_with_3_when_its_guest_reboots_and_says_what_it_cannot_have() {
    let folder = tempfile::tempdir().unwrap();
    let tap = Tap::new();
    let disk = support::sparse(folder.path(), "disk", DISK);
    let disk = disk.to_str().unwrap();
    let guest = Guest::new().run("reset", "reboot -f & sleep 60");
    assert_eq!(run(&guest, disk, &tap.name, &[]).status.code(), Some(3));

    let ended = run(&guest, "/no/disk", &tap.name, &[]);
    let err = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1));
    assert!(err.contains("\"/no/disk\" does not exist"), "{err}");
    let usage = Command::new(vmm::example("appliance")).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(usage.stderr.starts_with(b"appliance: usage: "));
}
