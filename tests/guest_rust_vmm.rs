//! A VMM of rust-vmm's parts on our core (`examples/rust_vmm.rs`) boots Debian to its shell.

mod support;

use support::{BY_LOADER, Guest, LAMP, hash_of};
use xtask::vmm;

#[test]
fn a_vmm_of_rust_vmms_parts_boots_debian_to_its_shell() {
    let mut guest = Guest::new()
        .vmm(vmm::example("rust_vmm"))
        .run("kernel", "uname -s; cat /proc/cmdline")
        // virtio-queue's queue under Linux' driver.
        .run("rng", "cat /sys/class/misc/hw_random/rng_current; for i in 1 2; do head -c 32 /dev/hwrng | sha256sum; done")
        .run("much", "head -c 200000 /dev/hwrng | wc -c")
        // vm-device's device.
        .run("lamp", LAMP)
        // vm-superio's serial port on x86_64, both ways.
        .run("echo", "exec </proc/self/fd/1; printf 'type\\n'; head -n 100 | tr a-z A-Z")
        .run("sum", "seq 1 20000 | sha256sum; seq 1 3000")
        .start();
    guest.wait_for("type\n");
    let lines: String = (1..=100).map(|number| format!("line {number}\n")).collect();
    guest.type_in(&lines);
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    let answers = ended.answers();
    assert!(answers["kernel"].starts_with("Linux\n"), "{ended}");
    assert!(answers["kernel"].ends_with(BY_LOADER), "{ended}");
    let [device, first, second] = answers["rng"].lines().collect::<Vec<_>>()[..] else { panic!("{ended}") };
    assert!(device.starts_with("virtio_rng"), "{device}");
    assert_ne!(first, second, "entropy does not repeat");
    assert_eq!(answers["much"].trim(), "200000");
    assert_eq!(&answers["lamp"], "L");
    let echo = answers["echo"].split_once("type\n").unwrap().1;
    assert!(echo == lines.to_uppercase().trim_end(), "the echo is not what was typed; {ended}");
    let numbers: Vec<_> = (1..=3000).map(|number| number.to_string()).collect();
    let expected = format!("{}\n{}", hash_of("seq 1 20000"), numbers.join("\n"));
    assert!(answers["sum"] == expected, "{ended}");
}

#[test]
fn a_bzimage_is_loaded_too_and_a_reset_ends_the_vmm_with_an_exit_code_of_its_own() {
    let guest = Guest::new().vmm(vmm::example("rust_vmm")).kernel(support::kernel().vmlinuz());
    let mut guest = guest.run("reset", "reboot -f & sleep 60").start();
    guest.take_names();
    guest.wait().expect(3);
}

#[test]
fn what_it_cannot_open_is_named() {
    let ended = Guest::new().vmm(vmm::example("rust_vmm")).kernel("/no/kernel".into()).start().wait();
    ended.expect(1);
    assert!(ended.err.starts_with("rust_vmm: /no/kernel: No such file"), "{ended}");
    let ended = Guest::new().vmm(vmm::example("rust_vmm")).args(["--memory", "1"]).start().wait();
    ended.expect(2);
}
