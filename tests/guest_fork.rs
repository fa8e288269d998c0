//! The example `fork`: a Debian guest is booted once and becomes many, while it writes to its disk and sends packets. None
//! of them has what is another one's.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use support::{FORKS as CHILDREN, Guest, generic_kernel};
use xtask::vmm;

/// What a guest does to its disk, as long as it is the parent. It sends packets besides.
const LOAD: &str = r#"
parent() { [ "$(cat /proc/sys/kernel/hostname)" = guest-00000 ]; }
ip link set eth0 up
ip addr add 10.0.0.1/24 dev eth0
echo guest-00000 >/proc/sys/kernel/hostname
(while parent; do
    dd if=/dev/urandom of=/dev/vda bs=4k seek=256 count=64 conv=fsync
    dd if=/dev/vda of=/dev/null bs=64k skip=16 count=32 iflag=direct
    sleep 0.1
done) >/dev/null 2>&1 &
"#;

/// `key=value` words of a line.
fn words(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

#[test]
fn forks_of_a_debian_guest_under_load_have_nothing_in_common() {
    nothing_in_common(&[]);
}

#[test]
fn forks_of_a_debian_guest_under_load_on_pci_have_nothing_in_common() {
    nothing_in_common(&["--pci"]);
}

fn nothing_in_common(transport: &[&str]) {
    let guest = Guest::on(generic_kernel()).modules(&["qemu_fw_cfg"]).example("clone");
    let guest = guest.run("clone", &format!("{LOAD}\nexec /clone 1000"));
    let run = Command::new(vmm::example("fork"))
        .arg("--kernel")
        .arg(generic_kernel().vmlinux())
        .arg("--initrd")
        .arg(guest.initrd())
        .args(["--memory", "192M", "--children", &CHILDREN.to_string()])
        .args(transport)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    // Random numbers are long.
    let cut = out.lines().map(|line| line.chars().take(220).collect::<String>() + "\n").collect::<String>();
    println!("{cut}");
    assert!(run.status.success(), "{cut}{err}");

    let lines = |what: &str| out.lines().filter(|line| line.starts_with(what)).collect::<Vec<_>>();
    let parent = words(lines("parent mac=")[0]);
    let children: Vec<_> =
        (0..CHILDREN).map(|child| words(lines(&format!("child {child} mac="))[0])).collect();
    assert_eq!(parent["hostname"], "guest-00000");
    for key in ["mac", "cid", "generation", "random", "hostname"] {
        let all: BTreeSet<_> = children.iter().chain([&parent]).map(|words| words[key]).collect();
        assert_eq!(all.len(), CHILDREN + 1, "{key}: {all:?}");
    }
    assert!(children.iter().all(|words| words["random"].len() == 2 * 1024));
    for (child, words) in children.iter().enumerate() {
        let number = child + 1;
        assert_eq!(words["mac"], format!("52:54:00:00:00:{number:02x}"));
        assert_eq!(words["cid"], (3 + number).to_string());
        assert_eq!(words["hostname"], format!("guest-{number:05}"));
        // It was the parent, and finds what that has written, and nobody else.
        assert_eq!((words["was"], words["disk"]), ("guest-00000", "guest-00000"));
        assert_eq!(words["reseeds"], "1", "the kernel has drawn new random numbers");
    }
    // When all have written to their disks, each has its own there, as has the parent.
    for (child, words) in children.iter().enumerate() {
        let again = self::words(lines(&format!("child {child} again "))[0]);
        assert_eq!((again["hostname"], again["disk"]), (words["hostname"], words["hostname"]), "{cut}");
    }
    let again = self::words(lines("parent again ")[0]);
    assert_eq!((again["hostname"], again["disk"]), ("guest-00000", "guest-00000"));
    assert!(out.ends_with("the parent runs\n"), "{out}");
}
