//! How many system calls `microvm` makes before its guest runs, counted by strace (Debian's `strace`). In the nested
//! machine, because on a host whose processor has neither VMX nor SVM it tries out first whether its KVM emulates guests.

mod support;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use support::{Tap, kernel};
use xtask::measure::strace::{Calls, before_first_run};
use xtask::vmm;

/// What a program of Rust's standard library makes before `main` when it is linked statically with glibc: the limit is for
/// that one, and how a program is linked makes no difference after that.
const BEFORE_MAIN: u32 = 32;
const LIMIT: u32 = 120;
/// The first call of `main`: see `block_io_signals`.
const MAIN: &str = "rt_sigprocmask(SIG_BLOCK, [PIPE XFSZ]";

/// The calls from the beginning of `main` to the first `KVM_RUN`, and what strace wrote.
fn start(args: &[&str]) -> (Calls, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o"]).arg(log.path()).arg(vmm::program()).args(args);
    let mut child = strace
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("strace does not start: on Debian it is the package `strace`");
    let text = || fs::read_to_string(log.path()).unwrap();
    // What the guest does is not looked at. If there is no run, the VMM ends by itself.
    while !text().contains("KVM_RUN") && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    if child.try_wait().unwrap().is_none() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().unwrap();
    let log = text();
    let main = log.lines().position(|line| line.contains(MAIN));
    let main = main.unwrap_or_else(|| panic!("{MAIN}: not in the log, {status}: {log}"));
    let log: Vec<&str> = log.lines().skip(main).collect();
    let log = log.join("\n");
    let calls = before_first_run(&log).unwrap_or_else(|| panic!("no KVM_RUN, {status}: {log}"));
    (calls, log)
}

/// The least of three starts with a disk and a network card: where two threads meet at a lock, one more call waits for it.
fn least(transport: &str) -> (Calls, String) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let (tap, disk, vmlinux) = (Tap::new(), format!("path={}", image.display()), kernel().vmlinux());
    let net = format!("tap={}", tap.name);
    let kernel = vmlinux.to_str().unwrap();
    let devices = ["--disk", &disk, "--net", &net, "--transport", transport];
    let args = [&["--kernel", kernel, "--memory", "128M"], &devices[..]].concat();
    let (calls, log) = (0..3).map(|_| start(&args)).min_by_key(|(calls, _)| calls.all).unwrap();
    println!("{transport}: {} system calls from main to KVM_RUN, {} of them ioctls", calls.all, calls.ioctls);
    (calls, log)
}

#[test]
fn microvm_with_a_disk_and_a_network_card_starts_its_guest_with_few_system_calls() {
    let (calls, log) = least("mmio");
    assert!(calls.all <= LIMIT - BEFORE_MAIN, "{} calls: {log}", calls.all);
}

/// What a guest connects when it programs the vectors of its functions, it is not asked for before.
#[test]
fn functions_of_a_pci_bus_start_with_no_more() {
    let (calls, log) = least("pci");
    assert!(calls.all <= LIMIT - BEFORE_MAIN, "{} calls: {log}", calls.all);
}
