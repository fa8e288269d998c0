//! Disks: a guest lives on one, writes to it, finds several in order, and cannot write to one that is read-only.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::{Guest, Transport, hash_in_ext4, hash_of, kernel};
use xtask::{guest, process};

const MIB: usize = 1 << 20;

#[test]
fn a_root_file_system_keeps_what_the_guest_writes() {
    a_root_file_system(Transport::Mmio);
}

#[test]
fn a_root_file_system_keeps_what_the_guest_writes_on_pci() {
    a_root_file_system(Transport::Pci);
}

fn a_root_file_system(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("root.img");
    guest::tree(&kernel()).unwrap().write_ext4(&image, 160).unwrap();
    let answers = Guest::new()
        .transport(transport)
        .disk(&image, "")
        .args(["--memory", "512M"])
        .cmdline("root=/dev/vda")
        .run("root", "grep ' / ext4 ' /proc/mounts")
        .run("write", "dd if=/dev/urandom of=/random bs=1M count=64; sync; echo 3 >/proc/sys/vm/drop_caches")
        .run("hash", "sha256sum </random")
        .boot();
    assert!(answers["root"].starts_with("/dev/vda / ext4 rw,"), "{}", &answers["root"]);

    let stat = process::text(process::command("debugfs").args(["-R", "stat /random"]).arg(&image)).unwrap();
    assert!(stat.contains(&format!("Size: {}", 64 * MIB)), "{stat}");
    assert_eq!(hash_in_ext4(&image, "/random"), answers["hash"], "the guest and the host read the same");
}

#[test]
fn disks_come_in_order_and_a_read_only_one_stays_as_it_is() {
    two_disks(Transport::Mmio);
}

#[test]
fn disks_come_in_order_and_a_read_only_one_stays_as_it_is_on_pci() {
    two_disks(Transport::Pci);
}

fn two_disks(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    File::create(&first).unwrap().set_len(8 * MIB as u64).unwrap();
    let pattern: Vec<u8> = (0..4 * MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
    fs::write(&second, &pattern).unwrap();
    let answers = Guest::new()
        .transport(transport)
        .disk(&first, "")
        .disk(&second, ",readonly,id=archive")
        .run("ids", "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial")
        .run("sectors", "cat /sys/block/vda/size /sys/block/vdb/size")
        .run("readonly", "blockdev --getro /dev/vda; blockdev --getro /dev/vdb; cat /sys/block/vdb/ro")
        .run("write", "printf 'from the guest' | dd of=/dev/vda bs=512 seek=2048 conv=notrunc,fsync")
        .run("refused", "! printf x | dd of=/dev/vdb conv=notrunc,fsync")
        .run("read", "sha256sum </dev/vdb")
        .boot();
    let words = |name: &str| answers[name].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words("ids"), ["disk0", "archive"]);
    assert_eq!(words("sectors"), ["16384", "8192"]);
    assert_eq!(words("readonly"), ["0", "1", "1"]);
    assert!(answers["refused"].contains("Operation not permitted"), "{}", &answers["refused"]);
    assert_eq!(answers["read"], hash_of(&format!("cat {}", process::quote_path(&second))));

    assert!(fs::read(&second).unwrap() == pattern, "the read-only disk has changed");
    assert_eq!(written(&first), b"from the guest");
    assert_eq!(fs::metadata(&first).unwrap().len(), 8 * MIB as u64);
}

/// What the guest has written behind the first MiB.
fn written(image: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    File::open(image).unwrap().read_exact_at(&mut bytes, MIB as u64).unwrap();
    bytes
}
