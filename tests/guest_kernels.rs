//! Kernels that are not Linux, or that come packed: what boots, and what is refused with a reason.

mod support;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ossature::legacy::DebugPort;
use ossature::memory::RamConfig;
use ossature::vmm::Kvm;
use ossature::vmm::machine::{Linux, Machine};
use support::{Guest, Terminal, kernel};
use xtask::{foreign, process};

#[test]
fn g5_memtest86_starts_and_tests_the_memory() {
    let (terminal, com1) = Terminal::new();
    let kernel = File::open(foreign::memtest()).unwrap();
    let machine = Machine::builder("memtest")
        .memory(RamConfig::new(16 << 20))
        .payload(Linux::from_file(kernel).cmdline("console=ttyS0,115200 nosmp"))
        .device(com1)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    terminal.wait_for("Memtest86+");
    // Its first test is under way. A whole pass takes an emulated processor too long.
    terminal.wait_for("[Address test");
    terminal.wait_for("Errors: 0");
    machine.stop().unwrap();
    let said = terminal.log.text();
    assert!(!(1..=9).any(|digit| said.contains(&format!("Errors: {digit}"))), "{said}");
}

#[test]
fn g6_grub_is_entered_by_pvh_as_a_32_bit_elf_and_looks_for_xen() {
    let said = Arc::new(Mutex::new(String::new()));
    let log = said.clone();
    let builder = Machine::builder("grub");
    let handle = builder.handle();
    // Xen's debug console.
    let console = DebugPort::with_callback("xen", Instant::now(), 0xe9, move |stamp| {
        let mut log = log.lock().unwrap();
        log.push(stamp.value.into());
        if log.ends_with("System halted!\n") {
            handle.stop();
        }
    });
    let machine = builder
        .memory(RamConfig::new(64 << 20))
        .payload(Linux::new(foreign::grub_pvh()))
        .device(console)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    machine.wait().unwrap();
    assert_eq!(*said.lock().unwrap(), "Found no Xen signature!\nSystem halted!\n");
}

#[test]
fn g9_a_gzipped_vmlinux_boots() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("vmlinux.gz");
    let gzip = format!("gzip -1 <{} >{}", quoted(&kernel().vmlinux()), quoted(&packed));
    process::run(process::command("sh").args(["-c", &gzip])).unwrap();
    let answers = Guest::new().kernel(packed).run("release", "uname -r").boot();
    assert_eq!(&answers["release"], kernel().release);
}

#[test]
fn g9_ipxe_is_told_which_entry_is_missing() {
    let ended = Guest::new().kernel(foreign::ipxe()).start().wait();
    ended.expect(1);
    assert!(ended.err.contains("ipxe.lkrn"), "{ended}");
    assert!(ended.err.contains("needs the 16-bit entry, which this machine does not have"), "{ended}");
}

fn quoted(path: &Path) -> String {
    process::quote_path(path)
}
