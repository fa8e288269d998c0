//! Debian's kernel boots in every form that it comes in, with the processors and the memory that it was given.

mod support;

use std::fs;
use std::path::Path;

use support::{Answers, Guest, Running, complaints, kernel};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What /proc/sys/kernel/bootloader_type says of a kernel that was entered by PVH, and of one that a loader without
/// a number of its own has started.
const PVH: &str = "176";
const LINUX: &str = "255";

#[derive(Clone, Copy)]
enum Image {
    Elf,
    BzImage,
}

/// Boots with so many processors by this protocol, which the kernel has to confirm.
fn boots(image: Image, protocol: &str, entered: &str, cpus: usize) {
    let image = match image {
        Image::Elf => kernel().vmlinux(),
        Image::BzImage => kernel().vmlinuz(),
    };
    let mut guest = Guest::new()
        .kernel(image)
        .args(["--boot", protocol, "--cpus", &cpus.to_string()])
        .cmdline("found.by.the.guest")
        .run("entered", "cat /proc/sys/kernel/bootloader_type")
        .run("release", "uname -r")
        .run("cmdline", "cat /proc/cmdline")
        .run("processors", "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/possible")
        .run("cores", "cat /sys/devices/system/cpu/cpu*/topology/core_id")
        .run("clock", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
        .hold()
        .start();
    let threads = guest.while_held(vcpu_threads);
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    let answers = ended.answers();
    assert_eq!(&answers["entered"], entered);
    assert_eq!(&answers["release"], kernel().release);
    let cmdline = &answers["cmdline"];
    assert!(
        cmdline.ends_with(" console=ttyS0 cryptomgr.notests quiet panic=-1 found.by.the.guest"),
        "{cmdline}"
    );
    let possible = if cpus == 1 { "0".to_owned() } else { format!("0-{}", cpus - 1) };
    assert_eq!(answers["processors"], format!("{cpus}\n{cpus}\n{possible}"));
    let cores: Vec<String> = (0..cpus).map(|core| core.to_string()).collect();
    assert_eq!(answers["cores"], cores.join("\n"), "each processor is a core of its own");
    assert_eq!(&answers["clock"], "kvm-clock");
    let names: Vec<String> = (0..cpus).map(|index| format!("vcpu{index}:microvm")).collect();
    assert_eq!(threads, names);
}

#[test]
fn a5_and_g8_the_machine_says_what_linux_needs_and_linux_has_nothing_to_complain_of() {
    let id = |name: &str| format!("cat /sys/class/dmi/id/{name}");
    let uuid = "e5c1e7a4-6d0e-4a3c-8f0b-1f9f5d2b7c11";
    let answers = Guest::new()
        .args([
            "--uuid",
            uuid,
            "--serial-number",
            "ds=nocloud",
            "--oem-string",
            "first",
            "--oem-string",
            "2nd",
        ])
        .run("cmdline", "cat /proc/cmdline")
        .run("vendor", &id("sys_vendor"))
        .run("product", &id("product_name"))
        .run("uuid", &id("product_uuid"))
        .run("serial", &id("product_serial"))
        .run("strings", "strings -n 3 /sys/firmware/dmi/tables/DMI")
        .run("keyboard", "cat /sys/bus/serio/devices/*/description")
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .boot();
    let words = "pci=off 8250.nr_uarts=1 i8042.noaux console=ttyS0";
    assert!(answers["cmdline"].starts_with(words), "{}", &answers["cmdline"]);
    assert_eq!(&answers["vendor"], "Ossature");
    assert_eq!(&answers["product"], "Virtual Machine");
    assert_eq!(&answers["uuid"], uuid);
    assert_eq!(&answers["serial"], "ds=nocloud");
    for string in ["first", "2nd"] {
        assert!(answers["strings"].lines().any(|line| line == string), "{}", &answers["strings"]);
    }
    assert_eq!(&answers["keyboard"], "i8042 KBD port", "the keyboard is there, and no port for a mouse");
    const NO_PCI: [&str; 2] =
        ["PCI: Fatal: No config space access function found", "PCI: System does not support PCI"];
    assert_eq!(complaints(&answers["warnings"], &NO_PCI), [""; 0]);
}

/// What /proc/cpuinfo says of its first processor.
fn cpuinfo<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|found| found.trim() == name));
    line.and_then(|line| line.split_once(": ")).unwrap_or_else(|| panic!("no {name} in {text}")).1
}

#[test]
fn g7_the_guest_has_the_hosts_processor_and_its_caches() {
    let caches = "cd /sys/devices/system/cpu/cpu0/cache; for i in index*; do
        echo $i $(cat $i/level $i/type $i/size $i/coherency_line_size); done";
    let answers =
        Guest::new().args(["--cpus", "2"]).run("cpuinfo", "cat /proc/cpuinfo").run("caches", caches).boot();
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    for name in ["vendor_id", "model name", "cache size", "clflush size"] {
        assert_eq!(cpuinfo(&answers["cpuinfo"], name), cpuinfo(&host, name), "{name}");
    }
    let here = xtask::process::text(xtask::process::command("sh").args(["-c", caches])).unwrap();
    assert_eq!(&answers["caches"], here.trim_end());
    assert!(!here.trim().is_empty(), "the host has caches");
    assert!(
        cpuinfo(&answers["cpuinfo"], "siblings") == "2" && cpuinfo(&answers["cpuinfo"], "cpu cores") == "2"
    );
}

#[test]
fn a_mapped_kernel_is_in_the_page_cache_and_not_copied() {
    let image = kernel().vmlinux();
    let mut guest = Guest::new()
        .args(["--map-kernel"])
        .run("release", "uname -r")
        .run("code", "grep 'Kernel code' /proc/iomem")
        .hold()
        .start();
    let smaps = guest.while_held(|guest| guest.proc("smaps"));
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    let answers = ended.answers();
    assert_eq!(&answers["release"], kernel().release);
    assert!(answers["code"].trim_start().starts_with("01000000-"), "{}", &answers["code"]);

    let mapped = Mapped::of(&smaps, &image);
    let loaded: u64 = segments(&image).iter().map(|len| len.next_multiple_of(4096)).sum();
    assert_eq!(mapped.size, loaded, "all of the file that is loaded, and nothing else");
    assert!(mapped.shared > 0, "what the guest has only read is nobody's own");
    let of_initrd = Mapped::of(&smaps, "/initrd".as_ref());
    assert!(of_initrd.size > 0, "the initial RAM disk, too: {smaps}");
}

/// What a process has of a file, in bytes.
#[derive(Default)]
struct Mapped {
    size: u64,
    /// Pages of the page cache among it.
    shared: u64,
}

impl Mapped {
    /// Sums up all mappings of files whose path ends so.
    fn of(smaps: &str, file: &Path) -> Self {
        let file = file.to_str().unwrap();
        let (mut sum, mut inside) = (Self::default(), false);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap();
            let mut bytes = || words.next().unwrap().parse::<u64>().unwrap() << 10;
            match name {
                "Size:" if inside => sum.size += bytes(),
                "Rss:" if inside => sum.shared += bytes(),
                "Anonymous:" if inside => sum.shared -= bytes(),
                _ if name.ends_with(':') => {}
                _ => inside = line.ends_with(file),
            }
        }
        sum
    }
}

/// The length in the file of each of an ELF file's loadable segments.
fn segments(image: &Path) -> Vec<u64> {
    let bytes = fs::read(image).unwrap();
    let headers = bytes[64..].chunks(56).take(bytes[56].into());
    let loadable = headers.filter(|header| header[0] == 1);
    loadable.map(|header| u64::from_le_bytes(header[32..40].try_into().unwrap())).collect()
}

/// The names of the threads that run the guest.
fn vcpu_threads(guest: &Running) -> Vec<String> {
    let mut names: Vec<String> = guest.threads().into_values().collect();
    names.retain(|name| name.starts_with("vcpu"));
    names.sort();
    names
}

#[test]
fn an_elf_kernel_by_pvh_with_1_processor() {
    boots(Image::Elf, "pvh", PVH, 1);
}

#[test]
fn an_elf_kernel_by_pvh_with_2_processors() {
    boots(Image::Elf, "auto", PVH, 2);
}

#[test]
fn an_elf_kernel_by_pvh_with_4_processors() {
    boots(Image::Elf, "pvh", PVH, 4);
}

#[test]
fn an_elf_kernel_by_the_linux_protocol_with_1_processor() {
    boots(Image::Elf, "linux", LINUX, 1);
}

#[test]
fn an_elf_kernel_by_the_linux_protocol_with_2_processors() {
    boots(Image::Elf, "linux", LINUX, 2);
}

#[test]
fn an_elf_kernel_by_the_linux_protocol_with_4_processors() {
    boots(Image::Elf, "linux", LINUX, 4);
}

#[test]
fn a_bzimage_with_1_processor() {
    boots(Image::BzImage, "auto", PVH, 1);
}

#[test]
fn a_bzimage_with_2_processors() {
    boots(Image::BzImage, "pvh", PVH, 2);
}

#[test]
fn a_bzimage_with_4_processors() {
    boots(Image::BzImage, "auto", PVH, 4);
}

#[test]
fn a_bzimage_that_unpacks_itself() {
    boots(Image::BzImage, "linux", LINUX, 1);
}

/// Adds what [`check_memory`] reads.
fn asks_for_memory(guest: Guest) -> Guest {
    guest
        .run(
            "total",
            "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; free | awk '/^Mem/ { print $2 }'",
        )
        .run("e820", "dmesg | sed -n 's/.*BIOS-e820: .mem \\(.*\\)-\\(.*\\). usable/\\1 \\2/p'")
        .run("ram", "sed -n 's/^\\([0-9a-f]*\\)-\\([0-9a-f]*\\) : System RAM/\\1 \\2/p' /proc/iomem")
}

/// Checks that the guest has the memory that it was given, and returns what of it lies above 4 GiB.
fn check_memory(answers: &Answers, given: u64) -> u64 {
    let e820 = ranges(&answers["e820"]);
    let size: u64 = e820.iter().map(|(first, last)| last - first + 1).sum();
    // The legacy hole and the boot tables lie in the first MiB.
    assert!((given - MIB..=given).contains(&size), "{size:#x} of {given:#x} bytes in {e820:x?}");
    let above = |ranges: &[(u64, u64)]| -> u64 {
        ranges.iter().filter(|(first, _)| *first >= 4 * GIB).map(|(first, last)| last - first + 1).sum()
    };
    let ram = ranges(&answers["ram"]);
    assert_eq!(above(&ram), above(&e820), "System RAM {ram:x?}, e820 {e820:x?}");
    let totals: Vec<u64> = answers["total"].lines().map(|line| line.parse().unwrap()).collect();
    let [total, free] = totals[..] else { panic!("{totals:?}") };
    assert_eq!(total, free, "`free` and /proc/meminfo");
    // The kernel keeps its image, 64 bytes for each page of 4 KiB, and bounce buffers of 64 MiB if a device of 32
    // bits could not reach all memory.
    let bounce = if given > 3 * GIB { 64 * MIB } else { 0 };
    let reserved = 48 * MIB + given / 64 + bounce;
    assert!((given - reserved..given).contains(&(total << 10)), "{total} KiB of {given:#x} bytes");
    above(&ram)
}

/// Pairs of hexadecimal numbers: the first and the last byte of each range.
fn ranges(text: &str) -> Vec<(u64, u64)> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (number(a), number(b))).collect()
}

#[test]
fn memory_of_256m() {
    let answers = asks_for_memory(Guest::new().args(["--memory", "256M"])).boot();
    assert_eq!(check_memory(&answers, 256 * MIB), 0);
}

#[test]
fn memory_of_5g_on_both_sides_of_the_gap() {
    let guest = Guest::new().args(["--memory", "5G", "--cpus", "2"]);
    let answers = asks_for_memory(guest).boot();
    let above = check_memory(&answers, 5 * GIB);
    assert!((2 * GIB..5 * GIB).contains(&above), "{above:#x} bytes above 4 GiB");
}

#[test]
fn huge_pages_come_from_the_pool_and_a_short_one_is_an_error_with_numbers() {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let count =
        |name: &str| -> u64 { fs::read_to_string(format!("{POOL}/{name}")).unwrap().trim().parse().unwrap() };
    let resize = |pages: u64| {
        fs::write(format!("{POOL}/nr_hugepages"), pages.to_string()).unwrap();
        assert_eq!(count("nr_hugepages"), pages, "the host has no room for the pool");
    };
    let before = count("nr_hugepages");
    resize(100);
    let ended = Guest::new().args(["--hugepages", "--memory", "256M"]).start().wait();
    ended.expect(1);
    assert!(ended.err.contains("128") && ended.err.contains("100"), "both numbers: {ended}");
    assert_eq!(ended.out, "", "no guest has run");

    resize(130);
    let guest = asks_for_memory(Guest::new().args(["--hugepages", "2M", "--memory", "256M"]));
    let mut guest = guest.hold().start();
    let free = guest.while_held(|_| count("free_hugepages"));
    let ended = guest.wait();
    ended.expect(0);
    check_memory(&ended.answers(), 256 * MIB);
    assert!(free < 130 - 16, "the guest lives in huge pages: {free} are free");
    assert_eq!(count("free_hugepages"), 130, "all pages are back");
    resize(before);
}

#[test]
fn shared_memory_is_one_that_others_can_map() {
    let guest = asks_for_memory(Guest::new().args(["--shared-memory", "--memory", "256M"]));
    let mut guest = guest.hold().start();
    let maps = guest.while_held(|guest| guest.proc("maps"));
    let ended = guest.wait();
    ended.expect(0);
    check_memory(&ended.answers(), 256 * MIB);
    let of_memfd = |line: &&str| line.contains("/memfd:");
    let range = maps.lines().find(of_memfd).unwrap_or_else(|| panic!("no memfd: {maps}"));
    let mut words = range.split_whitespace();
    let (first, last) = words.next().unwrap().split_once('-').unwrap();
    let size = u64::from_str_radix(last, 16).unwrap() - u64::from_str_radix(first, 16).unwrap();
    assert_eq!(size, 256 * MIB, "{range}");
    assert_eq!(words.next(), Some("rw-s"), "{range}");
}
