//! What guests on aarch64 learn of their machine: by a device tree and by ACPI tables, the same.
#![cfg(target_arch = "aarch64")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use support::control::ask;
use support::{Guest, Tap, complaints, generic_kernel, hash, kernel};

/// What Linux says of a PPTT without caches (before 6.4).
const NO_CACHES: &str = "Early cacheinfo failed, ret = -2";

/// The VMM on a host with these caches, of which the nested machine itself knows no sizes.
fn on_a_host_with_caches(folder: &Path) -> PathBuf {
    let caches = [
        ["1", "Data", "64K", "64", "256", "0"],
        ["1", "Instruction", "48K", "64", "256", "0"],
        ["2", "Unified", "1024K", "64", "2048", "0"],
        ["3", "Unified", "32768K", "64", "32768", "0-63"],
    ];
    let names = ["level", "type", "size", "coherency_line_size", "number_of_sets", "shared_cpu_list"];
    let host = folder.join("cache");
    for (index, cache) in caches.iter().enumerate() {
        let index = host.join(format!("index{index}"));
        fs::create_dir_all(&index).unwrap();
        names.iter().zip(cache).for_each(|(name, value)| fs::write(index.join(name), value).unwrap());
    }
    let (vmm, program) = (folder.join("vmm"), xtask::vmm::program());
    let mount = format!("mount --bind {} /sys/devices/system/cpu/cpu0/cache", host.display());
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c '{mount} && exec {} \"$@\"' vmm \"$@\"\n",
        program.display()
    );
    fs::write(&vmm, script).unwrap();
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    vmm
}

/// Boots with so many processors, and has everything that a machine has.
fn boots(tables: &str, cpus: usize, image: PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, (0..1 << 20).map(|n: u32| (n.wrapping_mul(n) >> 7) as u8).collect::<Vec<_>>()).unwrap();
    let tap = Tap::new();
    let answers = Guest::new()
        .vmm(on_a_host_with_caches(folder.path()))
        .kernel(image)
        .args(["--tables", tables, "--cpus", &cpus.to_string(), "--net", &format!("tap={}", tap.name)])
        .disk(&disk, ",readonly")
        .args(["--fw-cfg", "name=opt/org.example/token,string=secret"])
        .modules(&["qemu_fw_cfg"])
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run("processors", "nproc; cat /sys/devices/system/cpu/possible")
        .run("cores", "cd /sys/devices/system/cpu; cat cpu*/topology/core_cpus_list; cat cpu0/topology/package_cpus_list")
        .run("caches", "cd /sys/devices/system/cpu; for cache in cpu*/cache/index*; do cd /sys/devices/system/cpu/$cache
            echo $cache $(cat level type size coherency_line_size number_of_sets ways_of_associativity shared_cpu_list); done")
        .run("tables", "ls /sys/firmware/acpi/tables 2>/dev/null | tr '\\n' ' '; ls -d /proc/device-tree/cpus || true")
        .run("disk", "sha256sum </dev/vda")
        .run("net", &format!("ping -c 1 -W 60 {} | grep ' 1 packets received'", tap.host))
        .run("file", "cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.example/token/raw")
        .run("psci", "dmesg | grep -o 'PSCIv1.[0-9] detected'")
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .boot();
    let range = if cpus == 1 { "0".to_owned() } else { format!("0-{}", cpus - 1) };
    assert_eq!(answers["processors"], format!("{cpus}\n{range}"));
    let cores: Vec<String> = (0..cpus).map(|core| core.to_string()).chain([range.clone()]).collect();
    assert_eq!(answers["cores"], cores.join("\n"), "cores of one package");
    let caches = (0..cpus).flat_map(|cpu| {
        [
            format!("cpu{cpu}/cache/index0 1 Data 64K 64 256 4 {cpu}"),
            format!("cpu{cpu}/cache/index1 1 Instruction 48K 64 256 3 {cpu}"),
            format!("cpu{cpu}/cache/index2 2 Unified 1024K 64 2048 8 {cpu}"),
            format!("cpu{cpu}/cache/index3 3 Unified 32768K 64 32768 16 {range}"),
        ]
    });
    assert_eq!(answers["caches"], caches.collect::<Vec<_>>().join("\n"));
    let described = match tables {
        "acpi" => "APIC DBG2 DSDT FACP GTDT PPTT SPCR data",
        _ => "/proc/device-tree/cpus",
    };
    assert!(answers["tables"].starts_with(described), "{}", &answers["tables"]);
    assert_eq!(answers["disk"], hash(&disk));
    assert_eq!(&answers["file"], "secret");
    assert_eq!(complaints(&answers["warnings"], &[]), [""; 0]);
}

fn boots_all(tables: &str, cpus: usize) {
    boots(tables, cpus, kernel().vmlinux());
}

#[test]
fn one_processor_and_a_device_tree() {
    boots_all("fdt", 1);
}

#[test]
fn two_processors_and_a_device_tree() {
    boots_all("fdt", 2);
}

#[test]
fn four_processors_and_a_device_tree() {
    boots_all("fdt", 4);
}

#[test]
fn eight_processors_and_a_device_tree() {
    boots_all("fdt", 8);
}

#[test]
fn one_processor_and_acpi() {
    boots_all("acpi", 1);
}

#[test]
fn two_processors_and_acpi() {
    boots_all("acpi", 2);
}

#[test]
fn four_processors_and_acpi() {
    boots_all("acpi", 4);
}

#[test]
fn eight_processors_and_acpi() {
    boots_all("acpi", 8);
}

#[test]
fn acpi_describes_pci_and_where_its_messages_go() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, (0..1 << 20).map(|n: u32| (n.wrapping_mul(n) >> 9) as u8).collect::<Vec<_>>()).unwrap();
    let answers = Guest::new()
        .args(["--tables", "acpi", "--transport", "pci", "--cpus", "2"])
        .disk(&disk, ",readonly")
        .run("tables", "ls /sys/firmware/acpi/tables | tr '\\n' ' '")
        .run("disk", "sha256sum </dev/vda")
        .run("messages", "grep -E 'ITS-MSI.*virtio[0-9]-req' /proc/interrupts | awk '$2 + $3 > 0' | wc -l")
        .run("hotplug", "ls /sys/bus/pci/slots | wc -l")
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .boot();
    assert!(answers["tables"].contains(" IORT MCFG "), "{}", &answers["tables"]);
    assert_eq!(answers["disk"], hash(&disk));
    assert_ne!(&answers["messages"], "0", "messages reach the guest");
    assert_eq!(&answers["hotplug"], "31");
    assert_eq!(complaints(&answers["warnings"], &[NO_CACHES]), [""; 0]);
}

#[test]
fn acpi_tells_of_disks_that_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, control) = (folder.path().join("disk"), folder.path().join("control"));
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let job = "for turn in 1 2 3; do
        until [ -b /dev/vda ]; do usleep 50000; done; echo \"turn $turn has come\"
        until [ ! -b /dev/vda ]; do usleep 50000; done; echo \"turn $turn has gone\"
        done";
    let guest = Guest::new().args(["--tables", "acpi", "--transport", "pci", "--cpus", "2"]);
    let running = guest.control(&control).run("begins", "echo the job begins").run("job", job).start();
    running.wait_for("the job begins");
    for turn in 1..=3 {
        ask(&control, &format!("add disk path={},id=plug", disk.display()));
        running.wait_for(&format!("turn {turn} has come"));
        ask(&control, "remove plug");
        running.wait_for(&format!("turn {turn} has gone"));
    }
    running.wait().expect(0);
}

#[test]
fn the_guest_has_the_processors_performance_monitors() {
    for tables in ["fdt", "acpi"] {
        let answers = Guest::new()
            .args(["--tables", tables])
            .run("driver", "ls -d /sys/bus/event_source/devices/armv8_pmuv3*")
            .run("interrupt", "grep arm-pmu /proc/interrupts")
            .boot();
        assert!(answers["interrupt"].contains(" 23 Level "), "{}", &answers["interrupt"]);
    }
}

/// With the kernel packed with gzip, as many distributions have it.
fn boots_packed(tables: &str, cpus: usize) {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("Image.gz");
    let image = Command::new("gzip").args(["-1", "-c"]).arg(kernel().vmlinux()).output().unwrap();
    assert!(image.status.success());
    fs::write(&packed, image.stdout).unwrap();
    boots(tables, cpus, packed);
}

#[test]
fn a_packed_kernel_one_processor_and_a_device_tree() {
    boots_packed("fdt", 1);
}

#[test]
fn a_packed_kernel_two_processors_and_a_device_tree() {
    boots_packed("fdt", 2);
}

#[test]
fn a_packed_kernel_four_processors_and_a_device_tree() {
    boots_packed("fdt", 4);
}

#[test]
fn a_packed_kernel_eight_processors_and_a_device_tree() {
    boots_packed("fdt", 8);
}

#[test]
fn a_packed_kernel_one_processor_and_acpi() {
    boots_packed("acpi", 1);
}

#[test]
fn a_packed_kernel_two_processors_and_acpi() {
    boots_packed("acpi", 2);
}

#[test]
fn a_packed_kernel_four_processors_and_acpi() {
    boots_packed("acpi", 4);
}

#[test]
fn a_packed_kernel_eight_processors_and_acpi() {
    boots_packed("acpi", 8);
}

/// The daemon for the button has to listen before.
const LISTENS: &str = "until ls -l /proc/$(pidof acpid)/fd | grep /dev/input/event; do usleep 20000; done";

/// SIGTERM has the guest power off by itself.
fn powers_off(guest: Guest, tables: &str) {
    let guest = guest.args(["--tables", tables, "--cpus", "2"]).run("acpid", LISTENS).hold().start();
    guest.wait_for("ready\n");
    guest.signal(Signal::TERM);
    let ended = guest.wait();
    ended.expect(0);
    assert!(ended.out.contains("reboot: Power down"), "the guest turns itself off: {ended}");
}

#[test]
fn sigterm_presses_the_power_button_of_acpi() {
    powers_off(Guest::new(), "acpi");
}

#[test]
fn sigterm_presses_the_key_of_the_device_tree() {
    // The cloud kernel has no driver for it.
    powers_off(Guest::on(generic_kernel()).modules(&["gpio_keys"]), "fdt");
}

#[test]
fn the_clock_is_the_hosts_and_its_alarm_interrupts() {
    let alarms = "grep rtc-pl031 /proc/interrupts | awk '{ print $2 }'";
    let answers = Guest::new()
        .run("name", "cat /sys/class/rtc/rtc0/name")
        .run("system", "[ $(($(date +%s) - $(cat /sys/class/rtc/rtc0/since_epoch))) -lt 60 ]; date -u +%Y")
        .run("hwclock", "hwclock -r -u; hwclock -w -u")
        .run(
            "alarm",
            &format!(
                "[ $({alarms}) = 0 ]; echo +2 >/sys/class/rtc/rtc0/wakealarm
                until [ $({alarms}) = 1 ]; do usleep 50000; done; echo rung"
            ),
        )
        .run("line", "grep rtc-pl031 /proc/interrupts")
        .boot();
    assert!(answers["name"].starts_with("rtc-pl031 "), "{}", &answers["name"]);
    let year = xtask::process::text(xtask::process::command("date").args(["-u", "+%Y"])).unwrap();
    assert_eq!(&answers["system"], year.trim());
    assert_eq!(&answers["alarm"], "rung");
    assert!(answers["line"].contains("GICv") && answers["line"].contains("Edge"), "{}", &answers["line"]);
}

/// Suspends to RAM.
const SUSPEND: &str = "echo mem >/sys/power/state";

#[test]
fn a_guest_suspends_to_ram_and_its_clock_wakes_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, (0..1 << 20).map(|n: u32| (n.wrapping_mul(n) >> 7) as u8).collect::<Vec<_>>()).unwrap();
    let answers = Guest::new()
        .args(["--cpus", "2"])
        .disk(&disk, "")
        .run("kind", "cat /sys/power/mem_sleep")
        // Late enough for the guest to be suspended by then.
        .run("suspend", &format!("echo +10 >/sys/class/rtc/rtc0/wakealarm; {SUSPEND}; echo $?"))
        .run("log", "dmesg | grep -o 'PM: suspend .*'")
        .run("processors", "cat /sys/devices/system/cpu/online")
        .run("disk", "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda")
        .run("time", "echo $(($(date +%s) - $(cat /sys/class/rtc/rtc0/since_epoch)))")
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .boot();
    assert_eq!(&answers["kind"], "s2idle [deep]", "deep is PSCI's");
    assert_eq!(&answers["suspend"], "0");
    assert_eq!(&answers["log"], "PM: suspend entry (deep)\nPM: suspend exit");
    assert_eq!(&answers["processors"], "0-1");
    assert_eq!(answers["disk"], hash(&disk));
    assert!(answers["time"].parse::<i64>().unwrap().abs() <= 2, "{}", &answers["time"]);
    assert_eq!(complaints(&answers["warnings"], &[NO_CACHES]), [""; 0]);
}

#[test]
fn sigterm_wakes_a_suspended_guest_by_its_key() {
    let suspend = format!("echo 'about to suspend'; {SUSPEND}; echo 'awake again'; sleep 1000");
    // The cloud kernel has no driver for it.
    let guest = Guest::on(generic_kernel()).modules(&["gpio_keys"]).args(["--cpus", "2"]);
    let guest = guest.run("acpid", LISTENS).run("suspend", &suspend).start();
    guest.wait_for("about to suspend");
    // The console is silent: it is time enough.
    thread::sleep(Duration::from_secs(10));
    guest.signal(Signal::TERM);
    guest.wait_for("awake again");
    let ended = guest.wait();
    ended.expect(0);
    assert!(ended.out.contains("reboot: Power down"), "the guest turns itself off: {ended}");
}

/// The guest has so much memory, and uses that above 4 GiB.
fn has_memory(tables: &str, size: &str, bytes: u64) {
    let answers = Guest::new()
        .args(["--tables", tables, "--memory", size])
        .run("ram", "sed -n 's/^ *\\([0-9a-f]*\\)-\\([0-9a-f]*\\) : System RAM/\\1 \\2/p; s/^ *\\([0-9a-f]*\\)-\\([0-9a-f]*\\) : reserved/\\1 \\2/p' /proc/iomem")
        .run("total", "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .boot();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let ends = answers["ram"].lines().map(|line| number(line.split_once(' ').unwrap().1));
    let end = if bytes <= 3 << 30 { bytes } else { bytes + (1 << 30) };
    assert_eq!(ends.max().unwrap() + 1, end, "{}", &answers["ram"]);
    let total = answers["total"].parse::<u64>().unwrap() << 10;
    // The kernel keeps its image, 64 bytes for each page of 4 KiB, and bounce buffers of 64 MiB.
    assert!((bytes - bytes / 32 - (128 << 20)..bytes).contains(&total), "{total}");
}

#[test]
fn memory_of_256m_and_of_5g_by_a_device_tree() {
    has_memory("fdt", "256M", 256 << 20);
    has_memory("fdt", "5G", 5 << 30);
}

#[test]
fn memory_of_256m_and_of_5g_by_acpi() {
    has_memory("acpi", "256M", 256 << 20);
    has_memory("acpi", "5G", 5 << 30);
}
