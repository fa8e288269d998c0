//! Disks under load, on every engine and in every format: what `fio` verifies, file systems that are made and checked,
//! limits, and transfers past the host's page cache.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ossature::block::NewQcow2;
use support::devices::{LoopDevice, Mounted};
use support::{Guest, Running, Transport, hash, qemu, sparse};
use xtask::process;

const MIB: u64 = 1 << 20;

fn qcow2(folder: &Path, name: &str, len: u64) -> PathBuf {
    let path = folder.join(name);
    NewQcow2::new(len).create(&path).unwrap();
    path
}

#[test]
fn fio_reads_what_it_has_written_on_every_engine_and_format() {
    fio(Transport::Mmio, "1");
}

#[test]
fn fio_reads_what_it_has_written_on_every_engine_and_format_on_pci() {
    fio(Transport::Pci, "2");
}

/// Four writers to each disk, with 32 requests each in flight and of any size; all disks at the same time.
fn fio(transport: Transport, queues: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [sync, thread, uring, base] =
        ["sync", "thread", "uring", "base"].map(|name| sparse(folder, name, 32 * MIB));
    let (image, overlay) = (qcow2(folder, "image", 32 * MIB), folder.join("overlay"));
    let [image_copy, overlay_copy] =
        ["image.copy", "overlay.copy"].map(|name| sparse(folder, name, 32 * MIB));
    // One writer's part of a disk is 8 MiB, of which it uses one half.
    let mut jobs = "[global]
thread
ioengine=libaio
direct=1
rw=randwrite
bsrange=512-128k
iodepth=32
numjobs=4
size=4m
offset_increment=8m
verify=crc32c
verify_backlog=16
verify_fatal=1
verify_state_save=0
group_reporting
"
    .to_owned();
    for disk in ["vdb", "vdc", "vdd", "vde", "vdf"] {
        jobs += &format!("[{disk}]\nfilename=/dev/{disk}\n");
    }
    let answers = Guest::new()
        .transport(transport)
        .args(["--memory", "512M", "--cpus", queues])
        .tools("/dev/vda", &["/usr/bin/fio"])
        .disk(&sync, &format!(",engine=sync,queues={queues}"))
        .disk(&thread, &format!(",engine=thread,queues={queues}"))
        .disk(&uring, &format!(",engine=uring,queues={queues}"))
        .disk(&image, &format!(",format=qcow2,queues={queues}"))
        .disk(&base, &format!(",overlay={},queues={queues}", overlay.display()))
        .disk(&image_copy, "")
        .disk(&overlay_copy, "")
        .run("fio", &format!("cat >/mnt/tmp/jobs <<'end'\n{jobs}end\nchroot /mnt /usr/bin/fio /tmp/jobs"))
        .run("hashes", "echo 3 >/proc/sys/vm/drop_caches; for d in b c d; do sha256sum </dev/vd$d; done")
        .run(
            "copies",
            "dd if=/dev/vde of=/dev/vdg bs=1M conv=fsync; dd if=/dev/vdf of=/dev/vdh bs=1M conv=fsync",
        )
        .boot();
    let said = &answers["fio"];
    assert!(said.contains(", jobs=20): err= 0: "), "{said}");
    // 20 writers have written their 4 MiB, and read them again.
    for what in ["read: ", "write: "] {
        assert!(said.lines().any(|line| line.contains(what) && line.contains("(80.0MiB/")), "{said}");
    }
    let hashes: Vec<_> = [&sync, &thread, &uring].map(|file| hash(file)).into();
    assert_eq!(answers["hashes"].lines().collect::<Vec<_>>(), hashes);
    let bytes = fs::read(&base).unwrap();
    assert!(bytes == vec![0; bytes.len()], "the base has changed");
    for (image, copy) in [(&image, &image_copy), (&overlay, &overlay_copy)] {
        qemu::is_clean(image);
        qemu::is_same(image, copy);
        qemu::is_same_over_nbd(image, copy);
    }
}

#[test]
fn file_systems_are_made_filled_and_found_in_order() {
    file_systems(Transport::Mmio);
}

#[test]
fn file_systems_are_made_filled_and_found_in_order_on_pci() {
    file_systems(Transport::Pci);
}

fn file_systems(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (image, uring, base) = (
        qcow2(folder, "image", 512 * MIB),
        sparse(folder, "uring", 512 * MIB),
        sparse(folder, "base", 512 * MIB),
    );
    let overlay = folder.join("overlay");
    let programs = [
        "/sbin/mkfs.ext4",
        "/sbin/e2fsck",
        "/sbin/mkfs.xfs",
        "/sbin/xfs_repair",
        "/sbin/mkfs.btrfs",
        "/bin/btrfs",
    ];
    let one = |disk: &str, make: &str, check: &str| {
        format!(
            "chroot /mnt {make} /dev/{disk}
            mkdir /tmp/{disk}
            type=$(echo {make} | sed 's/.*mkfs.\\([a-z0-9]*\\).*/\\1/')
            mount -t $type /dev/{disk} /tmp/{disk}
            cp -a /bin /etc /lib /tmp/{disk}
            dd if=/dev/urandom of=/tmp/{disk}/random bs=1M count=16
            for n in $(seq 100); do echo $n >/tmp/{disk}/small$n; done
            rm -r /tmp/{disk}/lib/*; sync; fstrim /tmp/{disk}
            before=$(cd /tmp/{disk}; find . -type f | sort | xargs sha256sum | sha256sum)
            umount /tmp/{disk}
            chroot /mnt {check} /dev/{disk}
            echo 3 >/proc/sys/vm/drop_caches
            mount -t $type -o ro /dev/{disk} /tmp/{disk}
            [ \"$before\" = \"$(cd /tmp/{disk}; find . -type f | sort | xargs sha256sum | sha256sum)\" ]
            umount /tmp/{disk}"
        )
    };
    Guest::new()
        .transport(transport)
        .args(["--memory", "512M"])
        .modules(&["xfs", "btrfs"])
        .tools("/dev/vda", &programs)
        .disk(&image, ",format=qcow2")
        .disk(&uring, ",engine=uring")
        .disk(&base, &format!(",overlay={}", overlay.display()))
        .run("ext4", &one("vdb", "/sbin/mkfs.ext4 -q", "/sbin/e2fsck -f -n"))
        .run("xfs", &one("vdc", "/sbin/mkfs.xfs -q", "/sbin/xfs_repair -n"))
        .run("btrfs", &one("vdd", "/sbin/mkfs.btrfs -q", "/bin/btrfs check --readonly"))
        .boot();
    qemu::is_clean(&image);
    qemu::is_clean(&overlay);
    let ext4 = folder.join("ext4");
    qemu::to_raw(&image, &ext4);
    process::output(process::command("e2fsck").args(["-f", "-n"]).arg(&ext4)).unwrap();
}

/// Bytes or requests and when, by the guest's clock.
type Sample = (f64, f64);

/// What part of a rate came in each window between two samples.
fn parts(rate: f64, samples: &[Sample]) -> Vec<f64> {
    samples.windows(2).map(|pair| (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0) / rate).collect()
}

/// All windows keep to the rate, and one of them reaches it: in the others, the guest may have had too little of the
/// processor to use all that it may.
#[test]
fn limits_hold_within_two_percent() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..4).map(|n| sparse(folder.path(), &format!("disk{n}"), 64 * MIB)).collect();
    let answers = Guest::new()
        .disk(&images[0], ",limit=1M/s")
        .disk(&images[1], ",engine=uring,ops=40/s")
        .disk(&images[2], ",engine=uring,limit=512K/s")
        .disk(&images[3], ",ops=20/s")
        .run(
            "samples",
            "for job in 1 2; do
                for d in a c; do (while true; do dd if=/dev/vd$d of=/dev/null bs=32k iflag=direct; done) & done
                for d in b d; do (while true; do dd if=/dev/zero of=/dev/vd$d bs=4k oflag=direct; done) & done
            done 2>/dev/null
            sleep 1
            for sample in 0 1 2 3 4; do
                awk 'NF == 2 { at = $1 } $3 ~ /^vd/ { print $3, at, $4 + $8, 512 * ($6 + $10) }' /proc/uptime /proc/diskstats
                sleep 4
            done",
        )
        .boot();
    let samples = |disk: &str, column: usize| -> Vec<Sample> {
        let lines = answers["samples"].lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let sample = |words: Vec<&str>| (words[1].parse().unwrap(), words[column].parse().unwrap());
        lines.filter(|words| words[0] == disk).map(sample).collect()
    };
    let disks = [("vda", 3, MIB as f64), ("vdb", 2, 40.0), ("vdc", 3, MIB as f64 / 2.0), ("vdd", 2, 20.0)];
    let seen = disks.map(|(disk, column, rate)| (disk, parts(rate, &samples(disk, column))));
    println!("parts of the rate: {seen:.4?}");
    for (disk, windows) in &seen {
        assert_eq!(windows.len(), 4, "{disk}");
        // What had not been used before, a tenth of a second's, may come in the next window, of four seconds.
        assert!(windows.iter().all(|part| *part <= 1.02 + 0.1 / 4.0), "{disk}: {windows:?}");
        assert!(windows.iter().any(|part| (0.98..=1.02).contains(part)), "{disk}: {windows:?}");
    }
}

/// The VMM has the file open past the page cache (`O_DIRECT`).
fn is_direct(running: &Running, path: &Path) -> bool {
    let wanted = fs::metadata(path).map(|file| (file.dev(), file.ino())).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap().flatten();
    let names: Vec<String> = open
        .filter(|fd| fs::metadata(fd.path()).is_ok_and(|file| (file.dev(), file.ino()) == wanted))
        .map(|fd| fd.file_name().into_string().unwrap())
        .collect();
    names.iter().any(|fd| {
        let info = running.proc(&format!("fdinfo/{fd}"));
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & 0o40000 != 0
    })
}

#[test]
fn transfers_past_the_page_cache_are_what_the_guest_wrote_on_files_and_block_devices() {
    direct(Transport::Mmio);
}

#[test]
fn transfers_past_the_page_cache_are_what_the_guest_wrote_on_files_and_block_devices_on_pci() {
    direct(Transport::Pci);
}

/// On a file of ext4, and on block devices with blocks of 512 bytes and of 4 KiB.
fn direct(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let below = LoopDevice::new(&sparse(folder, "below", 32 * MIB), 512);
    let mounted = Mounted::ext4(&below, &folder.join("ext4"));
    let files = ["sync", "thread", "uring"].map(|engine| (sparse(&mounted.0, engine, 2 * MIB), engine));
    let devices = [("sync", 512), ("uring", 512), ("uring", 4096)].map(|(engine, block)| {
        let file = sparse(folder, &format!("{engine}{block}"), 2 * MIB);
        (LoopDevice::new(&file, block), engine)
    });
    let devices_at = devices.iter().map(|(device, engine)| (device.0.clone(), *engine));
    let disks: Vec<(PathBuf, &str)> = files.into_iter().chain(devices_at).collect();
    let disk = |guest: Guest, (path, engine): &(PathBuf, &str)| {
        guest.disk(path, &format!(",direct,engine={engine},queues=2"))
    };
    let mut running = disks
        .iter()
        .fold(Guest::new().transport(transport).args(["--cpus", "2"]), disk)
        .run("blocks", "cat /sys/block/vd[a-f]/queue/logical_block_size")
        .hold()
        // Past the guest's cache and through it; what is no block of the host's disk, too.
        .run(
            "write",
            "dd if=/dev/urandom of=/random bs=64k count=32
            for d in a b c d e f; do
                dd if=/random of=/dev/vd$d bs=64k count=16 oflag=direct
                dd if=/random of=/dev/vd$d bs=8k skip=128 seek=128 count=64 conv=fsync
                dd if=/random of=/dev/vd$d bs=4096 skip=384 seek=384 oflag=direct conv=fsync
            done",
        )
        .run(
            "hashes",
            "echo 3 >/proc/sys/vm/drop_caches
            sha256sum </random
            for d in a b c d e f; do sha256sum </dev/vd$d; dd if=/dev/vd$d bs=64k iflag=direct 2>/dev/null | sha256sum; done",
        )
        .start();
    running.while_held(|running| {
        for (path, engine) in &disks {
            assert!(is_direct(running, path), "{} {engine}", path.display());
        }
    });
    let ended = running.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    let answers = ended.answers();
    // A file of ext4 takes blocks of the device below.
    assert_eq!(
        answers["blocks"].split_whitespace().collect::<Vec<_>>(),
        ["512", "512", "512", "512", "512", "4096"]
    );
    let hashes: Vec<&str> = answers["hashes"].lines().collect();
    assert_eq!(hashes, [hashes[0]; 13]);
    for (path, engine) in &disks {
        assert_eq!(hash(path), hashes[0], "{} {engine}", path.display());
    }
}
