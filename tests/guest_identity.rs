//! How a guest learns which of several it is: Linux's drivers for the VM generation ID and for files of the VMM's.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ossature::boot::x86_64::smbios::Uuid;
use ossature::bus::Device;
use ossature::legacy::{FwCfg, GenerationId, VmGenId};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use support::{Answers, Guest, LIMIT, Transport, generic_kernel, hash_of, kernel, log_of};
use xtask::process::quote_path;

const FIRST: &str = "00112233-4455-6677-8899-aabbccddeeff";
/// Where Linux shows the files.
const FILES: &str = "/sys/firmware/qemu_fw_cfg";

/// Functions of the guest's shell: how many events there were, and a wait for the kernel's word on a new generation, so
/// many in all. It says so only if it has found another ID than before.
const HELPERS: &str = r"
events() { awk '/ACPI:Ged/ { n += $2 } END { print n + 0 }' /proc/interrupts; }
reseeded() { until [ $(dmesg | grep -c 'crng reseeded due to virtual machine fork') = $1 ]; do sleep 0.05; done; }
";

fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let answer = answer.strip_prefix("ok").unwrap_or_else(|| panic!("{request}: {answer}"));
    answer.trim().to_owned()
}

#[test]
fn a_guest_draws_new_random_numbers_with_each_new_generation() {
    draws_new_random_numbers(Transport::Mmio);
}

#[test]
fn a_guest_on_pci_draws_new_random_numbers_with_each_new_generation() {
    draws_new_random_numbers(Transport::Pci);
}

fn draws_new_random_numbers(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let (control, blob) = (folder.path().join("control"), folder.path().join("blob"));
    fs::write(&blob, (0..9000u32).map(|n| ((n * n) >> 3) as u8).collect::<Vec<_>>()).unwrap();
    let blob_flag = format!("name=opt/org.example/blob,file={}", blob.display());
    let driver = "/sys/bus/acpi/devices/OSSA0001:00";
    let guest = Guest::on(generic_kernel())
        .transport(transport)
        .args(["--control".as_ref(), control.as_os_str()])
        .args(["--generation-id", FIRST, "--fw-cfg", &blob_flag])
        .args(["--fw-cfg", "name=opt/org.example/hostname,string=clone,,1"])
        .modules(&["qemu_fw_cfg"])
        .run("bound", &format!("basename $(readlink {driver}/driver); cat {driver}/path"))
        .run("files", &format!("cd {FILES}\ncat rev by_name/opt/org.example/hostname/raw"))
        .run("blob", &format!("sha256sum <{FILES}/by_name/opt/org.example/blob/raw"))
        // Random numbers are there.
        .run("first", &format!("{HELPERS}\nhead -c 1 /dev/random >/dev/null\nevents\necho told never"))
        .run("second", &format!("{HELPERS}\nreseeded 1\nevents\necho told once"))
        .run("third", &format!("{HELPERS}\nreseeded 2\nevents"))
        .run("log", &log());
    let guest = guest.start();
    guest.wait_for("told never");
    let second = ask(&control, "new-generation");
    guest.wait_for("told once");
    // A guest that is paused is told when it goes on.
    ask(&control, "pause");
    let third = ask(&control, "new-generation");
    ask(&control, "resume");
    assert!(second != third && [FIRST, &second, &third].iter().all(|id| id.parse::<Uuid>().is_ok()));
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    let answers = ended.answers();
    assert_eq!(&answers["bound"], "vmgenid\n\\_SB_.VGEN");
    assert_eq!(&answers["files"], "3\nclone,1");
    assert_eq!(answers["blob"], hash_of(&format!("cat {}", quote_path(&blob))));
    assert_eq!(
        [&answers["first"], &answers["second"], &answers["third"]],
        ["0\ntold never", "1\ntold once", "2"]
    );
    // Beside the configuration space of PCI, it is one range with that.
    let reserved = |line: &str| line.contains(&format!("{RANGE}0x00000000d0")) && line.ends_with("reserved");
    assert!(answers["log"].lines().any(reserved), "{}", &answers["log"]);
    calm(&answers);
}

/// What a kernel says of memory that the machine has or has reserved.
const RANGE: &str = "BIOS-e820: [mem ";
/// What it says against what it was given.
const COMPLAINTS: [&str; 7] = [
    "BUG:",
    "Oops",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "ioremap error",
    "expected mapping type",
];

fn log() -> String {
    log_of(&[&[RANGE], &COMPLAINTS[..]].concat())
}

/// The guest's kernel has nothing to say against what it was given. It may warn of an emulated processor.
fn calm(answers: &Answers) {
    for word in COMPLAINTS {
        assert!(!answers["log"].contains(word), "{word}: {}", &answers["log"]);
    }
}

#[test]
fn a_restored_guest_has_a_generation_and_files_of_its_own() {
    let first = GenerationId(FIRST.parse::<Uuid>().unwrap().0);
    let read = format!("cat {FILES}/by_name/opt/org.example/hostname/raw; echo");
    let guest = Guest::on(generic_kernel())
        .modules(&["qemu_fw_cfg"])
        .run("before", &format!("{HELPERS}\nhead -c 1 /dev/random >/dev/null\n{read}"))
        .hold()
        .run("restored", &format!("{HELPERS}\nreseeded 1\n{read}"))
        .run("log", &log());
    let device = VmGenId::new("generation", first);
    let generation = device.generation();
    let fw_cfg = FwCfg::new("fw-cfg").file("opt/org.example/hostname", "clone-1").unwrap();
    let files = fw_cfg.files();
    let devices: [Box<dyn Device>; 2] = [Box::new(device), Box::new(fw_cfg)];
    let (builder, mut terminal) = guest.machine("clone", devices);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    terminal.wait_for("ready\n");
    let paused = machine.pause().unwrap();
    let state = paused.save().unwrap();
    paused.restore(state).unwrap();
    // Nobody had to think of the first.
    assert_ne!(generation.get(), first);
    files.set("opt/org.example/hostname", "clone-2").unwrap();
    paused.resume().unwrap();
    terminal.type_in("\n");
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    let answers = terminal.answers(&guest);
    assert_eq!([&answers["before"], &answers["restored"]], ["clone-1", "clone-2"]);
    calm(&answers);
}

#[test]
fn the_cloud_kernel_reads_files_and_does_without_the_generation() {
    let guest = Guest::on(kernel())
        .args(["--generation-id", "auto", "--fw-cfg", "name=opt/org.example/token,string=secret"])
        .modules(&["qemu_fw_cfg"])
        .run("file", &format!("cat {FILES}/by_name/opt/org.example/token/raw"))
        .run("log", &log());
    let answers = guest.boot();
    assert_eq!(&answers["file"], "secret");
    calm(&answers);
}
