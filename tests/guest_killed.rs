//! A VMM that is killed in the middle of its guest's writes, again and again on the same image: nothing that was flushed is
//! lost, and the next one goes on with it.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ossature::block::{ImageFormat, NewQcow2};
use rustix::process::Signal;
use support::{Guest, Transport, qemu};

const MIB: u64 = 1 << 20;
/// The guest's flushed blocks are in the first half of the disk, so far from each other.
const STRIDE: u64 = 37 * 4096;
const SIZE: u64 = 8 * MIB;

/// What a block says of who wrote it.
fn read(disk: &File, number: u64) -> String {
    let mut block = [0; 8];
    disk.read_exact_at(&mut block, number * STRIDE).unwrap();
    String::from_utf8_lossy(&block).into_owned()
}

/// Kills the VMM this often, and has a last one end as it should.
fn killed(
    times: u64,
    transport: Transport,
    image: &Path,
    options: &str,
    contents: impl Fn(&Path) -> PathBuf,
) {
    let mut flushed: BTreeMap<u64, String> = BTreeMap::new();
    let is_there = |flushed: &BTreeMap<u64, String>, life: u64| {
        let file = File::open(contents(image)).unwrap();
        for (number, stamp) in flushed {
            assert_eq!(read(&file, *number), *stamp, "block {number} after life {life} on {options}");
        }
        file
    };
    let start = Instant::now();
    for life in 1..=times {
        println!("life {life} of {times} on {options} begins after {:.1} s", start.elapsed().as_secs_f32());
        let running = Guest::new()
            .transport(transport)
            .disk(image, options)
            .init(&format!(
                "(while true; do
                    dd if=/bin/busybox of=/dev/vda bs=64k seek=64 count=16 conv=notrunc,fsync 2>/dev/null
                    blkdiscard -o 4718592 -l 524288 /dev/vda
                done) &
                number=1
                while [ $number -le 24 ]; do
                    printf '%04d%04d' {life} $number |
                        dd of=/dev/vda bs=4096 seek=$((number * {})) conv=notrunc,fsync 2>/dev/null
                    printf 'flushed %d.\\n' $number
                    number=$((number + 1))
                done
                wait",
                STRIDE / 4096
            ))
            .start();
        // At another point of the load each time.
        let least = 1 + life * 7 % 6;
        running.wait_for(&format!("flushed {least}."));
        running.signal(Signal::KILL);
        running.wait_for_exit();
        let said = running.out.text();
        // What is cut off has no dot.
        let number = |text: &str| text.split_once('.')?.0.parse::<u64>().ok();
        let told: Vec<u64> = said.split("flushed ").filter_map(number).collect();
        assert!(told.len() as u64 >= least, "{said}");
        let stamp = |number: u64| format!("{life:04}{number:04}");
        let next = told.len() as u64 + 1;
        // The last one may have been written, or flushed, without a word.
        let before = flushed.remove(&next);
        flushed.extend(told.iter().map(|number| (*number, stamp(*number))));
        let file = is_there(&flushed, life);
        if let Some(before) = before {
            let is = read(&file, next);
            assert!(
                is == before || is == stamp(next),
                "block {next} is {is} after life {life}, not {before}"
            );
            flushed.insert(next, is);
        }
    }
    Guest::new()
        .transport(transport)
        .disk(image, options)
        .run("write", "printf x | dd of=/dev/vda bs=4096 seek=1 conv=notrunc,fsync 2>/dev/null")
        .boot();
    is_there(&flushed, times + 1);
}

fn killed_raw(times: u64, transport: Transport, options: &str) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    killed(times, transport, &image, options, Path::to_owned);
}

/// `image` is small in its clusters, so that there are many tables.
fn killed_qcow2(times: u64, transport: Transport, image: &Path, options: &str) {
    killed(times, transport, image, options, |image| {
        // As it was left, all is there, and QEMU repairs the rest.
        let [raw, copy] = ["raw", "copy"].map(|name| image.with_extension(name));
        qemu::to_raw(image, &raw);
        fs::copy(image, &copy).unwrap();
        qemu::repair(&copy);
        raw
    });
    qemu::is_clean(image);
}

#[test]
fn nothing_that_was_flushed_is_lost_of_a_raw_disk() {
    killed_raw(13, Transport::Mmio, ",engine=sync,queues=2");
}

#[test]
fn nothing_that_was_flushed_is_lost_of_a_raw_disk_on_uring_and_pci() {
    killed_raw(13, Transport::Pci, ",engine=uring,queues=2");
}

#[test]
fn nothing_that_was_flushed_is_lost_of_a_qcow2_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.qcow2");
    NewQcow2::new(SIZE).with_cluster_size(4096).create(&image).unwrap();
    killed_qcow2(12, Transport::Mmio, &image, ",format=qcow2,queues=2");
}

#[test]
fn nothing_that_was_flushed_is_lost_of_an_overlay_on_pci() {
    let folder = tempfile::tempdir().unwrap();
    let [base, image] = ["base.img", "disk.qcow2"].map(|name| folder.path().join(name));
    File::create(&base).unwrap().set_len(SIZE).unwrap();
    NewQcow2::over(&base, ImageFormat::Raw).unwrap().with_cluster_size(4096).create(&image).unwrap();
    let options = format!(",format=qcow2,queues=2,backing={}", folder.path().display());
    killed_qcow2(12, Transport::Pci, &image, &options);
}
