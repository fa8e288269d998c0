//! Disks in qcow2 images: a guest lives on a clone, reads what QEMU has made, and QEMU's tools find nothing wrong.

mod support;

use std::fs;
use std::process::Command;

use ossature::block::NewQcow2;
use support::qemu::{is_clean, to_raw};
use support::{Guest, hash_in_ext4, hash_of, kernel};
use xtask::{guest, process};

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_lives_on_a_clone_of_a_base_that_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let [base, clone, raw, data] =
        ["base.img", "clone.qcow2", "raw", "data.qcow2"].map(|name| folder.path().join(name));
    guest::tree(&kernel()).unwrap().write_ext4(&base, 160).unwrap();
    let before = hash_of(&format!("cat {}", process::quote_path(&base)));
    NewQcow2::new(64 * MIB).create(&data).unwrap();
    let answers = Guest::new()
        .disk(&base, &format!(",overlay={}", clone.display()))
        .disk(&data, ",format=qcow2,queues=2")
        .args(["--memory", "512M"])
        .cmdline("root=/dev/vda")
        .run("root", "grep ' / ext4 ' /proc/mounts")
        .run("write", "dd if=/dev/urandom of=/random bs=1M count=40; sync; echo 3 >/proc/sys/vm/drop_caches")
        .run("hash", "sha256sum </random")
        .run("fill", "dd if=/dev/urandom of=/dev/vdb bs=1M count=64 conv=fsync")
        .run(
            "discard",
            "blkdiscard -o 8388608 -l 33554432 /dev/vdb; \
             dd if=/dev/zero of=/dev/vdb bs=1M seek=48 count=1 conv=notrunc,fsync",
        )
        .run("data", "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vdb")
        .boot();
    assert!(answers["root"].starts_with("/dev/vda / ext4 rw,"), "{}", &answers["root"]);
    is_clean(&clone);
    is_clean(&data);
    to_raw(&clone, &raw);
    assert_eq!(hash_in_ext4(&raw, "/random"), answers["hash"]);
    assert_eq!(hash_of(&format!("cat {}", process::quote_path(&base))), before, "the base has changed");
    to_raw(&data, &raw);
    assert_eq!(hash_of(&format!("cat {}", process::quote_path(&raw))), answers["data"]);
    let used = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&data).unwrap()) * 512;
    assert!(used < 36 * MIB, "{used} bytes are left");
}

#[test]
fn a_guest_reads_a_compressed_chain_that_qemu_has_made() {
    let folder = tempfile::tempdir().unwrap();
    let [raw, base, top] = ["raw", "base.qcow2", "top.qcow2"].map(|name| folder.path().join(name));
    let bytes: Vec<u8> = (0..4 * MIB as u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&raw, bytes).unwrap();
    let convert = |args: &[&str]| {
        process::output(Command::new("qemu-img").args(args).current_dir(folder.path())).unwrap()
    };
    convert(&["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "base.qcow2"]);
    convert(&["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    let answers = Guest::new()
        .disk(&top, &format!(",format=qcow2,backing={}", folder.path().display()))
        .run("read", "sha256sum </dev/vda")
        .run("write", "printf 'from the guest' | dd of=/dev/vda bs=512 seek=2049 conv=notrunc,fsync")
        .boot();
    assert_eq!(answers["read"], hash_of(&format!("cat {}", process::quote_path(&raw))));
    is_clean(&top);
    is_clean(&base);
    let after = folder.path().join("after");
    to_raw(&top, &after);
    assert_eq!(fs::read(&after).unwrap()[2049 * 512..][..14], *b"from the guest");
}
