//! A host whose own disk is full, or has bad sectors: what the guest sees, what the VMM tells, and that nothing else is
//! touched.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ossature::block::NewQcow2;
use support::control::{answer, ask_until_done};
use support::devices::{BadDisk, LoopDevice, Mounted};
use support::{Guest, Transport, found_none, hash, hash_of, log_of, qemu, sparse};
use xtask::process;

const MIB: u64 = 1 << 20;

fn qcow2(folder: &Path, name: &str, len: u64) -> PathBuf {
    let path = folder.join(name);
    NewQcow2::new(len).create(&path).unwrap();
    path
}

/// Two raw disks and one in a qcow2 image hold what the guest has hashed, first in its file and then on each.
fn expect_same(hashes: &str, images: &[PathBuf; 3], contents: &Path) {
    let hashes: Vec<&str> = hashes.lines().collect();
    assert_eq!(hashes, [hashes[0]; 4]);
    assert_eq!([hash(&images[0]), hash(&images[1])], [hashes[0], hashes[0]]);
    qemu::is_clean(&images[2]);
    qemu::to_raw(&images[2], contents);
    assert_eq!(hash(contents), hashes[0]);
}

#[test]
fn a_full_host_fails_the_guests_writes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let small: Vec<Mounted> =
        (0..3).map(|n| Mounted::tmpfs(&folder.path().join(format!("small{n}")), 6)).collect();
    let images = [
        sparse(&small[0].0, "sync", 16 * MIB),
        sparse(&small[1].0, "uring", 16 * MIB),
        qcow2(&small[2].0, "image", 16 * MIB),
    ];
    let mut running = Guest::new()
        .disk(&images[0], "")
        .disk(&images[1], ",engine=uring")
        .disk(&images[2], ",format=qcow2")
        .run(
            "full",
            "dd if=/dev/urandom of=/random bs=64k count=256 2>/dev/null
            for d in a b c; do
                dd if=/random of=/dev/vd$d bs=64k count=32 oflag=direct conv=fsync 2>/dev/null
                ! dd if=/random of=/dev/vd$d bs=64k skip=32 seek=32 oflag=direct 2>&1 | grep -v records
                cmp -n 2097152 /random /dev/vd$d
            done",
        )
        .hold()
        .run("room", "for d in a b c; do dd if=/random of=/dev/vd$d bs=64k oflag=direct conv=fsync; done")
        .run("same", "echo 3 >/proc/sys/vm/drop_caches; sha256sum </random; for d in a b c; do sha256sum </dev/vd$d; done")
        .start();
    running.while_held(|_| {
        for small in &small {
            small.resize(32);
        }
    });
    let ended = running.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(answers["full"].matches("Input/output error").count(), 3, "{}", &answers["full"]);
    for disk in ["disk0", "disk1", "disk2"] {
        let told =
            ended.err.lines().any(|line| line.contains(disk) && line.contains("No space left on device"));
        assert!(told, "{disk}: {ended}");
    }
    expect_same(&answers["same"], &images, &folder.path().join("contents"));
}

#[test]
fn a_machine_pauses_while_the_hosts_disk_is_full_and_its_guest_sees_no_error() {
    pauses(Transport::Mmio);
}

#[test]
fn a_machine_pauses_while_the_hosts_disk_is_full_and_its_guest_sees_no_error_on_pci() {
    pauses(Transport::Pci);
}

fn pauses(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let small: Vec<Mounted> =
        (0..3).map(|n| Mounted::tmpfs(&folder.path().join(format!("small{n}")), 4)).collect();
    let images = [
        sparse(&small[0].0, "sync", 8 * MIB),
        sparse(&small[1].0, "uring", 8 * MIB),
        qcow2(&small[2].0, "image", 8 * MIB),
    ];
    let control = folder.path().join("control");
    let running = Guest::new()
        .transport(transport)
        .control(&control)
        .disk(&images[0], ",on-error=pause")
        .disk(&images[1], ",engine=uring,on-error=pause-if-full")
        .disk(&images[2], ",format=qcow2,on-error=pause-if-full")
        .run(
            "write",
            "dd if=/dev/urandom of=/random bs=64k count=128 2>/dev/null
            for d in a b c; do dd if=/random of=/dev/vd$d bs=64k oflag=direct conv=fsync; done",
        )
        .run("same", "echo 3 >/proc/sys/vm/drop_caches; sha256sum </random; for d in a b c; do sha256sum </dev/vd$d; done")
        .run("log", &log_of(&["I/O error"]))
        .start();
    for (number, small) in small.iter().enumerate() {
        let line = format!(
            "device \"disk{number}\": waits to try again when the machine is resumed: cannot write to the disk: No space"
        );
        assert!(running.err.wait_for(&line, support::LIMIT), "{}", running.err.text());
        // There is still no room: it pauses again, each time.
        ask_until_done(&control, "resume");
        ask_until_done(&control, "resume");
        // It may have paused by itself already.
        let _ = answer(&control, "pause");
        small.resize(16);
        ask_until_done(&control, "resume");
    }
    let ended = running.wait();
    ended.expect(0);
    let answers = ended.answers();
    found_none(&answers["log"]);
    expect_same(&answers["same"], &images, &folder.path().join("contents"));
}

#[test]
fn bad_sectors_of_the_host_are_errors_of_those_sectors_alone() {
    bad_sectors(Transport::Mmio);
}

#[test]
fn bad_sectors_of_the_host_are_errors_of_those_sectors_alone_on_pci() {
    bad_sectors(Transport::Pci);
}

/// Past the page cache and through it, where a bad sector is a bad page.
fn bad_sectors(transport: Transport) {
    const SECTORS: u64 = 4096;
    const BAD: std::ops::Range<u64> = 2048..2056;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let all = folder.join("all");
    process::output(
        process::command("sh").args([
            "-c",
            &format!("head -c {} /dev/urandom >{}", 4 * SECTORS * 512, process::quote_path(&all)),
        ]),
    )
    .unwrap();
    let below = LoopDevice::new(&all, 512);
    let disks: Vec<BadDisk> =
        (0..4).map(|n| BadDisk::new(&format!("bad{n}"), &below, n * SECTORS, SECTORS, BAD)).collect();
    let sound = |disk: u64| {
        let start = 512 * disk * SECTORS;
        let (first, rest) = (512 * BAD.start, 512 * (SECTORS - BAD.end));
        let all = process::quote_path(&all);
        hash_of(&format!(
            "(tail -c +{} {all} | head -c {first}; tail -c +{} {all} | head -c {rest})",
            start + 1,
            start + 512 * BAD.end + 1
        ))
    };
    let before: Vec<String> = (0..4).map(&sound).collect();
    let guest = ["sync,direct", "uring,direct", "sync", "uring"]
        .iter()
        .zip(&disks)
        .fold(Guest::new().transport(transport), |guest, (engine, disk)| {
            guest.disk(&disk.path, &format!(",engine={engine}"))
        });
    // busybox's dd skips what it has read, and reads past its own cache.
    let hashes = format!(
        "for d in a b c d; do
            (dd if=/dev/vd$d bs=64k count={} iflag=direct; dd if=/dev/vd$d bs=4k skip={} iflag=direct) 2>/dev/null | sha256sum
        done",
        BAD.start / 128,
        BAD.end / 8
    );
    let ended = guest
        .run("before", &hashes)
        .run(
            "read",
            "for d in a b c d; do
                for s in $(seq 2046 2057); do
                    dd if=/dev/vd$d of=/dev/null bs=512 skip=$s count=1 iflag=direct 2>&1 | grep -q 'Input/output error' && echo $d $s
                done
            done; true",
        )
        .run(
            "write",
            "dd if=/dev/zero bs=512 count=1 2>/dev/null | tr '\\0' x >/x
            for d in a b; do
                for s in $(seq 2046 2057); do
                    dd if=/x of=/dev/vd$d bs=512 seek=$s count=1 oflag=direct 2>&1 | grep -q 'Input/output error' && echo $d $s
                done
            done; true",
        )
        .run("after", "for d in a b c d; do dd if=/x of=/dev/vd$d bs=512 seek=4095 oflag=direct conv=fsync 2>/dev/null; done")
        .run("hashes", &hashes)
        .start()
        .wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(answers["before"].lines().collect::<Vec<_>>(), before);
    let failed = |disks: &[&str]| -> Vec<String> {
        disks.iter().flat_map(|disk| BAD.map(move |sector| format!("{disk} {sector}"))).collect()
    };
    assert_eq!(answers["read"].lines().collect::<Vec<_>>(), failed(&["a", "b", "c", "d"]));
    assert_eq!(answers["write"].lines().collect::<Vec<_>>(), failed(&["a", "b"]));
    // Each disk tells once that it cannot read, and once that it cannot write, however often that is.
    for (disk, action, times) in
        (0..4).flat_map(|disk| [(disk, "read from", 1), (disk, "write to", usize::from(disk < 2))])
    {
        let line = format!("device \"disk{disk}\": cannot {action} the disk: Input/output error");
        assert_eq!(ended.err.matches(&line).count(), times, "{line}: {ended}");
    }
    // All around is what was written there, and the rest what it was.
    let after: Vec<String> = (0..4).map(&sound).collect();
    assert_eq!(answers["hashes"].lines().collect::<Vec<_>>(), after);
    let file = File::open(&all).unwrap();
    for disk in 0..4 {
        for sector in (2046..2058).filter(|sector| disk < 2 && !BAD.contains(sector)).chain([4095]) {
            let mut bytes = [0; 512];
            file.read_exact_at(&mut bytes, 512 * (disk * SECTORS + sector)).unwrap();
            assert!(bytes == [b'x'; 512], "disk {disk}, sector {sector}");
        }
    }
    drop(disks);
}
