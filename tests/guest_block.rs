//! Disks with several queues, engines, and sizes that change: what Debian's kernel makes of them.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ossature::block::{EngineKind, OpenMode, RawFile, RawOptions};
use ossature::bus::Device;
use ossature::virtio::{Blk, SharedLoop, VirtioMmio};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use support::{Guest, hash_of};
use xtask::process;

const MIB: u64 = 1 << 20;

fn image(folder: &Path, name: &str, len: u64) -> std::path::PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

#[test]
fn every_engine_and_queue_keeps_what_the_guest_writes() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = ["engine=sync,queues=2", "engine=uring,queues=2", "engine=uring,cache=writethrough"];
    let images: Vec<_> = (0..3).map(|n| image(folder.path(), &format!("disk{n}"), 32 * MIB)).collect();
    let mut guest = Guest::new().args(["--cpus", "2", "--memory", "512M"]);
    for (image, kind) in images.iter().zip(kinds) {
        guest = guest.disk(image, &format!(",{kind}"));
    }
    let answers = guest
        .run("queues", "for d in a b c; do ls /sys/block/vd$d/mq | wc -l; cat /sys/block/vd$d/queue/write_cache; done")
        .run(
            "write",
            // Eight writers to a disk, of requests of many sizes, in places of their own.
            "for d in a b c; do for job in 0 1 2 3 4 5 6 7; do
                (for size in 512 4096 65536 1048576; do
                    dd if=/dev/urandom of=/dev/vd$d bs=$size seek=$((job * 4194304 / size)) count=$((1048576 / size)) \
                        conv=notrunc 2>/dev/null
                 done) &
             done; done; wait; sync; echo 3 >/proc/sys/vm/drop_caches",
        )
        .run("hashes", "for d in a b c; do sha256sum </dev/vd$d; done")
        .boot();
    let queues: Vec<_> = answers["queues"].lines().collect();
    assert_eq!(queues, ["2", "write back", "2", "write back", "1", "write through"]);
    let hashes = images.iter().map(|image| hash_of(&format!("cat {}", process::quote_path(image))));
    assert_eq!(answers["hashes"].lines().map(str::to_owned).collect::<Vec<_>>(), hashes.collect::<Vec<_>>());
}

#[test]
fn blkdiscard_gives_the_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..2).map(|n| image(folder.path(), &format!("disk{n}"), 16 * MIB)).collect();
    for image in &images {
        fs::write(image, vec![7; 16 * MIB as usize]).unwrap();
    }
    let answers = Guest::new()
        .disk(&images[0], ",engine=sync")
        .disk(&images[1], ",engine=uring")
        .run(
            "limits",
            "cat /sys/block/vda/queue/discard_max_bytes /sys/block/vda/queue/write_zeroes_max_bytes",
        )
        .run("discard", "for d in a b; do blkdiscard -o 4194304 -l 8388608 /dev/vd$d; done")
        .boot();
    let limits: Vec<_> = answers["limits"].lines().collect();
    assert_eq!(limits, [(2048 * MIB).to_string(), (64 * MIB).to_string()]);
    for image in &images {
        let meta = fs::metadata(image).unwrap();
        assert_eq!(meta.len(), 16 * MIB);
        assert!(meta.blocks() * 512 <= 8 * MIB + MIB, "{} bytes are left", meta.blocks() * 512);
        let mut expected = vec![7; 16 * MIB as usize];
        expected[4 * MIB as usize..12 * MIB as usize].fill(0);
        assert!(fs::read(image).unwrap() == expected);
    }
}

#[test]
fn a_disk_that_grows_and_shrinks_is_seen_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path(), "disk", 8 * MIB);
    let load = "size() { printf 'size %d\\n' $(cat /sys/block/vda/size); }
        size
        for want in 32768 8192; do
            printf 'waits for %d\\n' $want
            for try in $(seq 600); do [ $(cat /sys/block/vda/size) = $want ] && break; sleep 0.1; done
            size
        done
        printf x | dd of=/dev/vda bs=512 seek=8191 conv=notrunc,fsync
        ! dd if=/dev/vda of=/dev/null bs=512 skip=8192 count=1 iflag=direct 2>&1 | grep -q '1+0 records in'";
    let guest = Guest::new().run("load", load);
    let options = RawOptions::new(OpenMode::ReadWrite).engine(EngineKind::Uring);
    let disk = Blk::new(RawFile::open(&image, options).unwrap(), "disk".parse().unwrap());
    let handle = disk.handle();
    let disk = VirtioMmio::new("disk", Box::new(disk), Arc::new(SharedLoop::new("io").unwrap()));
    let (builder, terminal) = guest.machine("resize", [Box::new(disk) as Box<dyn Device>]);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    for sectors in [32768, 8192] {
        terminal.wait_for(&format!("waits for {sectors}\n"));
        handle.resize(sectors * 512).unwrap();
    }
    let outcome = machine.wait().unwrap();
    assert!(matches!(outcome, Outcome::Shutdown), "{}", terminal.log.text());
    drop(machine);
    let answers = terminal.answers(&guest);
    let sizes: Vec<_> = answers["load"].lines().filter(|line| line.starts_with("size ")).collect();
    assert_eq!(sizes, ["size 16384", "size 32768", "size 8192"]);
    assert_eq!(fs::metadata(&image).unwrap().len(), 4 * MIB);
}
