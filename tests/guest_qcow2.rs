//! Disks in qcow2 images: a guest lives on a clone, QEMU's tools find nothing wrong, and a VMM that is killed loses
//! nothing that was flushed.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use ossature::block::{ImageFormat, NewQcow2};
use rustix::process::Signal;
use support::{Guest, hash_in_ext4, hash_of, kernel};
use xtask::{guest, process};

const MIB: u64 = 1 << 20;

/// What `qemu-img` says of an image that nobody uses, and whether it likes it.
fn check(image: &Path) -> (bool, String) {
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(image).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (text.contains("No errors were found") && output.status.success(), text)
}

#[track_caller]
fn is_clean(image: &Path) {
    let (clean, text) = check(image);
    assert!(clean, "{text}");
}

/// Its contents as a raw file, by QEMU.
fn to_raw(image: &Path, raw: &Path) {
    process::output(
        Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(image).arg(raw),
    )
    .unwrap();
}

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
            "blkdiscard -o 8388608 -l 33554432 /dev/vdb; blkdiscard -z -o 50331648 -l 1048576 /dev/vdb",
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

#[test]
fn nothing_that_was_flushed_is_lost_when_the_vmm_is_killed() {
    for kill_at in [2, 9, 23] {
        let folder = tempfile::tempdir().unwrap();
        let [base, image, raw] = ["base.img", "disk.qcow2", "raw"].map(|name| folder.path().join(name));
        File::create(&base).unwrap().set_len(256 * MIB).unwrap();
        // Small clusters: many tables.
        NewQcow2::over(&base, ImageFormat::Raw).unwrap().with_cluster_size(4096).create(&image).unwrap();
        let running = Guest::new()
            .disk(&image, &format!(",format=qcow2,queues=2,backing={}", folder.path().display()))
            .run(
                "load",
                "(while true; do
                    dd if=/dev/urandom of=/dev/vda bs=64k seek=2048 count=512 conv=notrunc,fsync 2>/dev/null
                    blkdiscard -o 134217728 -l 33554432 /dev/vda
                 done) &
                 number=1
                 while true; do
                    printf '%08d' $number | dd of=/dev/vda bs=4096 seek=$((number * 300)) conv=notrunc,fsync 2>/dev/null
                    printf 'flushed %d.\\n' $number
                    number=$((number + 1))
                 done",
            )
            .start();
        running.wait_for(&format!("flushed {kill_at}.\n"));
        running.signal(Signal::KILL);
        running.wait_for_exit();
        let said = running.out.text();
        let flushed = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("flushed ")?.strip_suffix('.')?.parse::<u64>().ok());
        // The area of the others begins at 128 MiB.
        let flushed: Vec<_> = flushed.filter(|number| number * 300 * 4096 < 128 * MIB).collect();
        assert!(flushed.len() >= kill_at.min(100), "{said}");
        let is_there = |raw: &Path| {
            let bytes = fs::read(raw).unwrap();
            for number in &flushed {
                let at = (number * 300 * 4096) as usize;
                assert_eq!(std::str::from_utf8(&bytes[at..at + 8]).unwrap(), format!("{number:08}"));
            }
        };
        // As it was left: all is there, and QEMU repairs what is wrong with the refcounts.
        to_raw(&image, &raw);
        is_there(&raw);
        let copy = folder.path().join("copy.qcow2");
        fs::copy(&image, &copy).unwrap();
        println!("killed after {kill_at}: {}", check(&copy).1);
        process::output(Command::new("qemu-img").args(["check", "-r", "all", "-f", "qcow2"]).arg(&copy))
            .unwrap();
        is_clean(&copy);
        // The next machine repairs it by itself.
        let options = format!(",format=qcow2,backing={}", folder.path().display());
        let answers = Guest::new()
            .disk(&image, &options)
            .run("first", "dd if=/dev/vda bs=4096 skip=300 count=1 2>/dev/null | head -c 8")
            .run("write", "printf x | dd of=/dev/vda bs=4096 seek=1 conv=notrunc,fsync 2>/dev/null")
            .boot();
        assert_eq!(&answers["first"], "00000001");
        is_clean(&image);
        to_raw(&image, &raw);
        is_there(&raw);
    }
}
