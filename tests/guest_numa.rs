//! What guests learn of their NUMA nodes, and where what they have there is in their memory.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Answers, Guest, LIMIT, Running, complaints};

const MIB: u64 = 1 << 20;
/// Of the nodes, by number.
const MEMORY: [u64; 3] = [192 * MIB, 128 * MIB, 64 * MIB];
const PAGE: usize = 4096;
/// What is written to a file whose memory has to be on node 1.
const MARK: &str = "the memory of node 1";
const MARKED: u64 = 24 * MIB;

/// What Linux says of a PPTT without caches, as the nested machine has it (before 6.4).
const KNOWN: &[&str] = &["Early cacheinfo failed, ret = -2"];

/// Who belongs together, and whether a program on each processor runs there.
const PROCESSORS: &str = "cd /sys/devices/system; cat node/node*/cpulist
    for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'cut -d\" \" -f39 /proc/self/stat'; done
    cat cpu/cpu*/topology/package_cpus_list";

/// Two nodes with processors, and one of memory alone. It is held once it has told all.
fn guest(tables: &[&str]) -> Guest {
    Guest::new()
        .args(tables)
        .args(["--numa", "cpus=1,memory=192M", "--numa", "cpus=3,memory=128M", "--shared-memory"])
        .args(["--numa", "memory=64M,distances=40:30"])
        .run("nodes", "cd /sys/devices/system/node; cat online has_cpu has_memory; cat node*/distance")
        .run("memory", "sed -n 's/.*MemTotal: *\\([0-9]*\\) kB/\\1/p' /sys/devices/system/node/node*/meminfo")
        .run("caches", "cat /sys/devices/system/cpu/cpu*/cache/index3/shared_cpu_list 2>/dev/null || true")
        .run("processors", PROCESSORS)
        .run(
            "marks",
            &format!("mkdir /node1; mount -t tmpfs -o mpol=bind:1 node1 /node1; taskset -c 1 sh -c 'yes {MARK} | head -c {MARKED} >/node1/marks'"),
        )
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .hold()
}

/// What the guest has told.
fn check(answers: &Answers) {
    assert_eq!(&answers["nodes"], "0-2\n0-1\n0-2\n10 20 40\n20 10 30\n40 30 10");
    let found: Vec<u64> = answers["memory"].lines().map(|kib| kib.parse::<u64>().unwrap() << 10).collect();
    assert_eq!(found.len(), 3);
    // The kernel keeps something of each, and on some its image.
    assert!(found.iter().zip(MEMORY).all(|(found, all)| (all / 2..=all).contains(found)), "{found:?}");
    // On aarch64, the nested machine does not know its own.
    let caches = &answers["caches"];
    assert!(caches == "0\n1-3\n1-3\n1-3" || cfg!(target_arch = "aarch64") && caches.is_empty(), "{caches}");
    for name in ["processors", "again"] {
        assert_eq!(&answers[name], "0\n1-3\n\n0\n1\n2\n3\n0\n1-3\n1-3\n1-3");
    }
    assert_eq!(complaints(&answers["warnings"], KNOWN), [""; 0]);
}

/// How many pages of the guest's memory on each node have the mark.
fn marked(guest: &Running) -> [u64; 3] {
    let size = MEMORY.iter().sum::<u64>();
    let maps = guest.proc("maps");
    let start = maps.lines().filter(|line| line.contains("/memfd:")).find_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        (end - start == size).then_some(start)
    });
    let start = start.unwrap_or_else(|| panic!("no memory of {size} bytes: {maps}"));
    let file = File::open(format!("/proc/{}/mem", guest.pid())).unwrap();
    let mark = format!("\n{MARK}\n{MARK}\n");
    let mut place = start;
    // Piece by piece: all of it at once is as much memory again, which the nested machine has to find.
    let mut piece = vec![0; 1 << 20];
    MEMORY.map(|size| {
        // Most pages are empty; a marked one has text from its first byte on.
        let has_mark = |page: &&[u8]| {
            page[0] != 0 && page.windows(mark.len()).take(64).any(|found| found == mark.as_bytes())
        };
        (0..size / piece.len() as u64)
            .map(|_| {
                file.read_exact_at(&mut piece, place).unwrap();
                place += piece.len() as u64;
                piece.chunks(PAGE).filter(has_mark).count() as u64
            })
            .sum()
    })
}

/// The guest is told of its nodes, has the memory of node 1 where the host has it, and goes on from a snapshot as it was.
fn has_nodes(tables: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    let args = ["--snapshot-on".as_ref(), "USR1".as_ref(), "--snapshot-to".as_ref(), snapshot.as_os_str()];
    let mut first = guest(tables).args(args).run("again", PROCESSORS).start();
    first.wait_for("ready\n");
    let [zero, one, two] = marked(&first);
    let all = MARKED / PAGE as u64;
    assert!(
        one >= all && zero + two < all / 100,
        "{all} pages have the mark: {zero}, {one} and {two} are found"
    );
    first.signal(Signal::USR1);
    let since = Instant::now();
    while !snapshot.exists() {
        assert!(since.elapsed() < LIMIT, "there is no snapshot: {}", first.err.text());
        thread::sleep(Duration::from_millis(20));
    }
    let (told, names) = (first.out.text(), first.take_names());
    drop(first);

    let args = ["--restore".as_ref(), snapshot.as_os_str(), "--shared-memory".as_ref()];
    let mut second = Guest::new().args(tables).args(args).start();
    second.type_in("\n");
    let ended = second.wait();
    ended.expect(0);
    check(&Answers::parse(&(told + &ended.out), &names).unwrap_or_else(|what| panic!("{what}: {ended}")));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn acpi_tells_of_nodes() {
    has_nodes(&["--transport", "pci"]);
}

#[cfg(target_arch = "aarch64")]
#[test]
fn a_device_tree_tells_of_nodes() {
    has_nodes(&["--tables", "fdt", "--transport", "pci"]);
}

#[cfg(target_arch = "aarch64")]
#[test]
fn acpi_tells_of_nodes() {
    has_nodes(&["--tables", "acpi", "--transport", "pci"]);
}
