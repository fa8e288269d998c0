//! The checks that the workspace compiles for aarch64, and that Debian's kernel runs there.

use crate::arch::Arch;
use crate::demo::{self, Demo};
use crate::{Error, Result, cross, paths, process};

/// The packages whose tests and examples compile for it too. Those of core and of the facade run bare x86 guests.
const WITH_TESTS: &[&str] = &[
    "ossature-memory",
    "ossature-bus",
    "ossature-legacy",
    "ossature-pci",
    "ossature-block",
    "ossature-virtio",
    "ossature-boot",
    "xtask",
];

/// What a guest with two vCPUs, a disk and a network card finds.
const JOB: &str = "set -ex; test $(uname -m) = aarch64; test $(nproc) = 2; grep '^/dev/vda / ext4 rw' /proc/mounts; \
    ping -c 1 -W 60 10.77.0.1; dd if=/dev/zero of=/file bs=1M count=4; sync";

/// What it finds on PCI: a bridge and four functions, vectors that have interrupted it, and nothing to complain of.
const PCI_JOB: &str = "set -ex; test $(ls /sys/bus/pci/devices | wc -l) = 5; \
    ping -c 1 -W 60 10.77.0.1; dd if=/dev/zero of=/file bs=1M count=4; sync; \
    for queue in req.0 input.0 output.0; do grep -E \":.* [1-9][0-9]* .*ITS-MSI .*virtio.-$queue\" /proc/interrupts; done; \
    ! dmesg -r | grep '^<[0-4]>'";

/// Boots Debian's kernel in the nested machine, in the example VMM, with virtio devices in memory and on PCI.
pub fn guest() -> Result<()> {
    let command = |job| Demo::command(Arch::Aarch64, 2, job);
    for demo in [command(JOB), command(PCI_JOB).on_pci()] {
        match demo::run(&demo)? {
            0 => {}
            code => return Err(Error::new(format!("the guest's command ended with {code}"))),
        }
    }
    Ok(())
}

/// Checks the libraries and programs of the whole workspace, its example VMM, and the tests that are not x86's. Has a
/// target folder of its own, so that the other steps find theirs as they left it.
pub fn check() -> Result<()> {
    let check = |what: &[&str]| {
        let mut cargo = process::command("cargo");
        cargo.args(["check", "--target-dir"]).arg(paths::target().join("aarch64")).args(what);
        cross::set_up(&mut cargo, Arch::Aarch64, "-D warnings")?;
        process::run(cargo.current_dir(paths::root()))
    };
    check(&["--workspace"])?;
    check(&["--package", "ossature-examples", "--example", "microvm"])?;
    let tests = WITH_TESTS.iter().flat_map(|package| ["--package", package]);
    check(&tests.chain(["--all-targets"]).collect::<Vec<_>>())
}
