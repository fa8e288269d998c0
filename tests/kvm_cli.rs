//! What `microvm` says to wrong usage and to a host that cannot: the text, the exit code, and nothing left behind.

mod cli;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{AARCH64, Files, X86_64, elf, example, microvm, refuses, run};
use ossature::block::{Disk, OpenMode, RawFile};

#[test]
fn flags_that_do_not_exist_or_make_no_sense_are_wrong_usage() {
    refuses(&[], 2, &["--kernel <FILE>"]);
    refuses(&["--kernel", "k", "--bogus"], 2, &["--bogus"]);
    refuses(&["--kernel", "k", "--memory", "0"], 2, &["--memory", "at least 1M"]);
    refuses(&["--kernel", "k", "--memory", "1T"], 2, &["--memory", "512M"]);
    refuses(&["--kernel", "k", "--cpus", "0"], 2, &["--cpus"]);
    refuses(&["--kernel", "k", "--boot", "efi"], 2, &["--boot", "pvh", "linux"]);
    refuses(&["--kernel", "k", "--hugepages", "4M"], 2, &["--hugepages", "2M", "1G"]);
    refuses(&["--kernel", "k", "--hugepages", "2M", "--shared-memory"], 2, &["--shared-memory"]);
    refuses(&["--kernel", "k", "--disk", "path=d,colour=red"], 2, &["colour", "readonly", "id=NAME"]);
    refuses(&["--kernel", "k", "--disk", "readonly"], 2, &["path=FILE is missing"]);
    let disk = |keys: &str, parts: &[&str]| {
        refuses(&["--kernel", "k", "--disk", &format!("path=d,{keys}")], 2, &[&["--disk"], parts].concat());
    };
    disk("format=vmdk", &["format", "give raw or qcow2", "vmdk"]);
    disk("format=qcow2,engine=uring", &["engine", "is sync for qcow2"]);
    disk("overlay=o,direct", &["direct", "without overlay"]);
    disk("overlay=o,readonly", &["overlay", "readonly"]);
    disk("backing=/b", &["backing", "is for format=qcow2"]);
    disk("engine=aio", &["engine", "give sync or thread or uring", "aio"]);
    disk("cache=none", &["cache", "give writeback or writethrough", "none"]);
    disk("on-error=stop", &["on-error", "give report or pause or pause-if-full", "stop"]);
    disk("on-error=pause", &["on-error=pause", "--control PATH"]);
    disk("queues=0", &["queues", "from 1 to 256"]);
    disk("queues=257", &["queues", "from 1 to 256"]);
    disk("limit=100M", &["limit", "100M/s"]);
    disk("ops=many", &["ops", "2000/s"]);
    disk("direct=perhaps", &["direct", "on, off, true or false"]);
    refuses(&["--kernel", "k", "--net", "tap=t,mac=52:54"], 2, &["mac", "52:54:00:12:34:56"]);
    for cid in ["0", "1", "2", "4294967295", "4294967296", "three", "-3"] {
        let vsock = format!("cid={cid},socket=s");
        refuses(&["--kernel", "k", "--vsock", &vsock], 2, &["--vsock", "cid: ", "from 3 to 4294967294"]);
    }
    refuses(&["--kernel", "k", "--vsock", "socket=s"], 2, &["--vsock", "cid=N is missing"]);
    refuses(&["--kernel", "k", "--vsock", "cid=3"], 2, &["--vsock", "socket=PATH is missing"]);
    refuses(&["--kernel", "k", "--vsock", "cid=3,socket="], 2, &["socket=PATH is missing its value"]);
    refuses(&["--kernel", "k", "--vsock", "cid=3,cid=4,socket=s"], 2, &["cid is there twice"]);
    refuses(&["--kernel", "k", "--net", "mac=52:54:00:12:34:56"], 2, &["one of tap=NAME", "is missing"]);
    let nic = |value: &str, parts: &[&str]| refuses(&["--kernel", "k", "--net", value], 2, parts);
    nic("tap=t,socket=s", &["--net", "give only one of", "fd=N"]);
    nic("tap=t,queues=0", &["--net", "queues", "1 to 16"]);
    nic("tap=t,queues=17", &["--net", "queues", "1 to 16"]);
    nic("socket=s,queues=2", &["--net", "queues", "only a tap"]);
    nic("tap=t,mtu=67", &["--net", "mtu", "68 to 65535"]);
    nic("tap=t,limit=fast", &["--net", "limit", "100M/s"]);
    nic("tap=t,packets=0/s", &["--net", "packets", "2000/s"]);
    nic("fd=three", &["--net", "fd"]);
    nic("tap=t,vhost=perhaps", &["--net", "vhost is on, off"]);
    nic("socket=s,vhost", &["--net", "vhost", "not on a socket"]);
    for key in ["limit=1M/s", "packets=100/s", "pcap=f"] {
        let name = key.split('=').next().unwrap();
        nic(&format!("tap=t,vhost,{key}"), &["--net", &format!("{name}: with vhost")]);
    }
    for key in ["socket", "seqpacket"] {
        let keys = format!("cid=3,vhost,{key}=s");
        refuses(&["--kernel", "k", "--vsock", &keys], 2, &["--vsock", &format!("{key}: with vhost")]);
    }
    refuses(&["--kernel", "k", "--vsock", "cid=3,vhost=off"], 2, &["--vsock", "socket=PATH is missing"]);
    refuses(&["--kernel", "k", "--serial", "tcp=1"], 2, &["--serial", "socket=PATH"]);
    refuses(&["--kernel", "k", "--serial", "stdio", "--console"], 2, &["--console", "--serial"]);
    refuses(&["--kernel", "k", "--on-reset", "again"], 2, &["--on-reset <restart|exit>", "again"]);
    refuses(&["--kernel", "k", "--on-reset"], 2, &["--on-reset", "restart", "exit"]);
    refuses(&["--kernel", "k", "--log", "loud"], 2, &["--log"]);
    refuses(&["--kernel", "k", "--rng", "limit=64K"], 2, &["--rng", "limit", "100M/s"]);
    refuses(&["--kernel", "k", "--rng", "limit=0/s"], 2, &["--rng", "limit", "100M/s"]);
    let fw_cfg = |value: &str, parts: &[&str]| {
        refuses(&["--kernel", "k", "--fw-cfg", value], 2, &[&["--fw-cfg"], parts].concat());
    };
    fw_cfg("string=a", &["name=opt/NAME is missing"]);
    fw_cfg("name=opt/a", &["string=VALUE or file=PATH is missing"]);
    fw_cfg("name=opt/a,string=a,file=f", &["string", "only one of"]);
    fw_cfg("name=opt/a,text=a", &["text", "string=VALUE", "file=PATH"]);
    fw_cfg("name=etc/a,string=a", &["name", "begins with opt/", "etc/a"]);
    fw_cfg("name=opt/,string=a", &["name", "opt/org.example/token"]);
    fw_cfg(&format!("name=opt/{},string=a", "n".repeat(52)), &["name", "1 to 55"]);
    refuses(&["--kernel", "k", "--generation-id", "1234"], 2, &["--generation-id", "8-4-4-4-12", "auto"]);
    refuses(&["--kernel", "k", "--port", "socket=s"], 2, &["name=NAME is missing"]);
    refuses(&["--kernel", "k", "--port", "name=a"], 2, &["socket=PATH is missing"]);
    for name in ["a b", "a/b", ".a"] {
        refuses(
            &["--kernel", "k", "--port", &format!("name={name},socket=s")],
            2,
            &["--port", name, "1 to 64"],
        );
    }
}

#[test]
fn ids_and_addresses_that_are_none_are_wrong_usage() {
    for id in ["a b", "more-than-twenty-characters", "é", "tab\t"] {
        refuses(&["--kernel", "k", "--disk", &format!("path=d,id={id}")], 2, &["--disk", "id", "up to 20"]);
    }
    for mac in ["52:54:00:12:34", "53:54:00:12:34:56", "00:00:00:00:00:00", "52-54-00-12-34-56"] {
        refuses(&["--kernel", "k", "--net", &format!("tap=t,mac={mac}")], 2, &["--net", "mac"]);
    }
    refuses(&["--kernel", "k", "--uuid", "1234"], 2, &["--uuid"]);
    let files = Files::new();
    let kernel = files.with("kernel", &elf(X86_64));
    let image = files.with("image", &[0; 512]);
    let args = ["--memory", "16M", "--kernel", &kernel];
    // One that another device has, those that the machine has itself, and two of a kind.
    for id in ["rng", "kvm", "vcpu0"] {
        let disk = format!("path={image},id={id}");
        refuses(&[&args[..], &["--disk", &disk]].concat(), 2, &[&format!("--disk id={id}")]);
    }
    let disk = format!("path={image},readonly,id=twice");
    refuses(&[&args[..], &["--disk", &disk, "--disk", &disk]].concat(), 2, &["--disk id=twice"]);
    let port = |socket: &str| format!("name=same,socket={}", files.0.path().join(socket).display());
    let ports = ["--port", &port("one"), "--port", &port("two")];
    refuses(&[&args[..], &ports].concat(), 2, &["--port", "same"]);
    assert!(!files.0.path().join("one").exists(), "nothing is left behind");
}

#[test]
fn numa_nodes_that_cannot_be_are_wrong_usage() {
    let files = Files::new();
    let kernel = files.with("kernel", &elf(X86_64));
    let args = ["--kernel", &kernel];
    let numa = |nodes: &[&str], more: &[&str], parts: &[&str]| {
        let flags = nodes.iter().flat_map(|node| ["--numa", node]).chain(more.iter().copied());
        refuses(&args.into_iter().chain(flags).collect::<Vec<_>>(), 2, &[&["--numa"], parts].concat());
    };
    numa(&["distances=20"], &[], &["cpus=N or memory=SIZE is missing"]);
    numa(&["cpus=two"], &[], &["cpus", "invalid digit"]);
    numa(&["cpus=2"], &[], &["one of them needs memory=SIZE"]);
    numa(&["memory=64M"], &[], &["one of them needs cpus=N"]);
    numa(&["cpus=1,memory=1000"], &[], &["memory", "at least 1M, in whole pages"]);
    numa(&["cpus=1,memory=64X"], &[], &["memory", "64X"]);
    numa(&["cpus=1,memory=64M", "memory=64M,distances=256"], &[], &["distances"]);
    numa(&["cpus=1,memory=64M", "memory=64M,distances=9"], &[], &["is 9; 11 to 254"]);
    numa(&["cpus=1,memory=64M", "memory=64M,distances=11:12"], &[], &["distances: 2 of node 1; there are 1"]);
    numa(&["cpus=1,memory=64M"], &["--cpus", "2"], &["1 processors, and the machine has 2"]);
    numa(&["cpus=1,memory=64M"], &["--memory", "65M"], &["0x4000000 bytes", "0x4100000"]);
    numa(&["cpus=100000,memory=64M"], &[], &["100000", "at most"]);
    let gaps = [&["cpus=17,memory=64M"][..], &["cpus=1"; 8]].concat();
    numa(&gaps, &[], &["vCPU 24", "APIC id 256"]);
}

#[test]
fn files_for_the_guest_that_cannot_be_are_named() {
    let files = Files::new();
    let kernel = files.with("kernel", &elf(X86_64));
    let args = ["--memory", "16M", "--kernel", &kernel];
    let with = |values: &[&str], code: i32, parts: &[&str]| {
        let flags = values.iter().flat_map(|value| ["--fw-cfg", value]);
        refuses(&args.into_iter().chain(flags).collect::<Vec<_>>(), code, &[&["--fw-cfg"], parts].concat());
    };
    with(&["name=opt/a,file=/no/such/file"], 1, &["file=/no/such/file", "No such file"]);
    with(&["name=opt/a,string=a", "name=opt/a,string=b"], 2, &["opt/a", "twice"]);
    with(&["name=opt/a,string=a", "name=opt/a/b,string=b"], 2, &["opt/a", "folder", "opt/a/b"]);
    // A file without an end is not read to its end.
    with(&["name=opt/zero,file=/dev/zero"], 2, &["opt/zero", "longer than 16777216 bytes"]);
}

#[test]
fn kernels_that_cannot_be_booted_are_named() {
    let files = Files::new();
    let folder = files.0.path().to_str().unwrap();
    // C3: the cause at once.
    refuses(&["--kernel", "/dev/null"], 1, &["kernel /dev/null", "not a regular file"]);
    refuses(&["--kernel", "/no/such/kernel"], 1, &["kernel /no/such/kernel", "No such file"]);
    refuses(&["--kernel", folder], 1, &["kernel", folder, "folder"]);
    let text = files.with("text", b"#!/bin/sh\n");
    refuses(&["--kernel", &text], 1, &[&text, "not a kernel"]);
    let empty = files.with("empty", b"");
    refuses(&["--kernel", &empty], 1, &[&empty, "not a kernel"]);
    let cut = files.with("cut", &elf(X86_64)[..0x1008]);
    refuses(&["--kernel", &cut], 1, &[&cut, "truncated"]);
    let arm = files.with("arm", &elf(AARCH64));
    refuses(&["--kernel", &arm], 1, &[&arm, "x86_64"]);
    let mut image = vec![0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    let arm = files.with("Image", &image);
    refuses(&["--kernel", &arm], 1, &[&arm, "AArch64"]);
}

#[test]
fn what_the_kernel_is_given_has_to_fit() {
    let files = Files::new();
    let kernel = files.with("kernel", &elf(X86_64));
    let initrd = files.with("initrd", &vec![1; 20 << 20]);
    let args = ["--kernel", &kernel, "--memory", "16M"];
    refuses(&[&args[..], &["--initrd", &initrd]].concat(), 1, &["initrd", &initrd, "20971520 bytes"]);
    refuses(&[&args[..], &["--initrd", "/no/such/initrd"]].concat(), 1, &["initrd /no/such/initrd"]);
    let long = "x".repeat(5000);
    // With the few bytes that the machine adds.
    refuses(&[&args[..], &["--cmdline", &long]].concat(), 1, &["command line", " 50", "2047"]);
    refuses(&[&args[..], &["--cmdline", "a\nb"]].concat(), 1, &["command line", "0x0a"]);
}

#[test]
fn more_than_the_host_has_is_told_with_the_numbers() {
    refuses(&["--kernel", "k", "--memory", "900000G"], 1, &["memory", "921600000 MiB", "the host has"]);
    let most = "17179869183G";
    refuses(&["--kernel", "k", "--memory", most], 2, &["--memory", "does not fit into the address space"]);
    let nodes = ["--numa", &format!("cpus=1,memory={most}"), "--numa", &format!("cpus=1,memory={most}")];
    refuses(
        &[&["--kernel", "k"][..], &nodes].concat(),
        2,
        &["--numa", "does not fit into the address space"],
    );
    let pages = ["--kernel", "k", "--memory", "63M", "--hugepages", "2M"];
    refuses(&pages, 2, &["--memory", "66060288 bytes", "a multiple of its page size, 2097152 bytes"]);
    refuses(&["--kernel", "k", "--cpus", "100000"], 2, &["--cpus 100000", "at most"]);
}

#[test]
fn c6_disks_that_cannot_be_used_are_named() {
    let files = Files::new();
    let kernel = files.with("kernel", &elf(X86_64));
    let disk = |value: &str, parts: &[&str]| refuses(&["--kernel", &kernel, "--disk", value], 1, parts);
    disk("path=/no/such/disk", &["/no/such/disk", "does not exist"]);
    disk(&format!("path={}", files.0.path().display()), &["is a folder"]);
    disk(
        &format!("path={kernel},format=qcow2"),
        &["--disk path=", &kernel, "magic is not that of a qcow2 image"],
    );
    disk(&format!("path={kernel},overlay=/no/folder/o"), &["--disk overlay=/no/folder/o"]);

    let image = files.with("image", &[0; 4096]);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    disk(&format!("path={image}"), &[&image, "is read-only"]);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();

    // In use by another VMM: this process has the lock.
    let held = RawFile::open(&image, OpenMode::ReadWrite).unwrap();
    held.lock().unwrap();
    disk(&format!("path={image}"), &[&image, "in use"]);
    let two = [&kernel, "--disk", &format!("path={image}"), "--disk", &format!("path={image},readonly")]
        .map(str::to_owned);
    drop(held);
    refuses(
        &["--kernel", &two[0], &two[1], &two[2], &two[3], &two[4]],
        1,
        &[&image, "in use by another disk of this machine"],
    );
}

#[test]
fn taps_that_cannot_be_used_are_named() {
    let tap = |value: &str, parts: &[&str]| refuses(&["--kernel", "k", "--net", value], 1, parts);
    tap("tap=no-such-tap", &["no-such-tap", "does not exist", "ip tuntap add"]);
    tap("tap=a-name-that-is-too-long", &["a-name-that-is-too-long", "15 bytes"]);
    tap("tap=lo", &["lo"]);
    tap("tap=no-such-tap,queues=2", &["no-such-tap", "does not exist"]);
    tap("macvtap=no-such-tap", &["no-such-tap", "type macvtap"]);
    tap("socket=/no/such/socket", &["cannot connect", "/no/such/socket"]);
    tap("fd=999999", &["--net fd=999999"]);
    tap("fd=0", &["--net fd=0", "tap"]);
}

#[test]
fn a_serial_port_that_cannot_be_opened_is_named() {
    refuses(&["--kernel", "k", "--serial", "file=/no/such/log"], 1, &["--serial file=/no/such/log"]);
    refuses(&["--kernel", "k", "--serial", "socket=/no/such/dir/s"], 1, &["--serial socket=/no/such/dir/s"]);
    let files = Files::new();
    let socket = files.0.path().join("socket");
    refuses(&["--kernel", "k", "--serial", &format!("socket={}", socket.display())], 1, &["kernel k"]);
    assert!(!socket.exists(), "what was half made is gone");
}

#[test]
fn sockets_that_cannot_be_used_are_named() {
    let files = Files::new();
    let path = files.0.path().join("socket");
    let vsock = |keys: &str, parts: &[&str]| refuses(&["--kernel", "k", "--vsock", keys], 1, parts);
    let (socket, text) = (format!("cid=3,socket={}", path.display()), path.display().to_string());
    vsock("cid=3,socket=/no/such/dir/s", &["--vsock socket", "/no/such/dir/s", "No such file"]);
    let long = format!("cid=3,socket=/tmp/{}", "x".repeat(100));
    vsock(&long, &["--vsock socket", "longer than 96 bytes"]);
    std::fs::write(&path, "mine").unwrap();
    vsock(&socket, &["--vsock socket", &text, "not a socket"]);
    std::fs::remove_file(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    vsock(&socket, &["--vsock socket", &text, "in use"]);
    drop(listener);
    // It is left behind now, and replaced.
    vsock(&format!("{socket},seqpacket={text}"), &["--vsock seqpacket", &text, "in use"]);
    assert!(!path.exists(), "what was half made is gone");
    vsock(&socket, &["kernel k"]);
    assert!(!path.exists());
}

/// Runs `microvm` as `user` in mount and network namespaces of its own, in which `setup` has been done.
fn in_namespaces(setup: &str, binary: &Path, user: Option<u32>, args: &[&str]) -> (i32, String) {
    let script = format!("{setup} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", &script]);
    if let Some(user) = user {
        command.args(["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
    }
    run(command.arg(binary).args(["--kernel", "k"]).args(args))
}

#[test]
fn a_host_without_kvm_is_told_so() {
    let (code, text) = in_namespaces("mount -t tmpfs none /dev", &microvm(), None, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/dev/kvm: not found"), "{text}");
}

/// An example where any user can reach it, whatever the permissions of the folders above the build's.
fn for_everybody(files: &Files, example: &Path) -> PathBuf {
    fs::set_permissions(files.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = files.0.path().join("example");
    fs::copy(example, &binary).unwrap();
    binary
}

const NOBODY: Option<u32> = Some(65534);

#[test]
fn c4_kvm_without_permission_is_told_with_the_group_by_every_example() {
    let files = Files::new();
    let setup = "mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232";
    for name in ["microvm", "minimal", "embed", "custom_device"] {
        let (code, text) = in_namespaces(setup, &for_everybody(&files, &example(name)), NOBODY, &[]);
        assert_eq!(code, 1, "{text}");
        for part in ["/dev/kvm: permission denied", "group"] {
            assert!(text.contains(part), "{name}: {part:?} is not in {text:?}");
        }
        assert!(!text.contains("Permission {"), "{name} shows the error as its users read it: {text:?}");
    }
}

#[test]
fn a_tap_without_permission_is_told_so() {
    let files = Files::new();
    let setup = "ip tuntap add mode tap name tap0";
    let (code, text) =
        in_namespaces(setup, &for_everybody(&files, &microvm()), NOBODY, &["--net", "tap=tap0"]);
    assert_eq!(code, 1, "{text}");
    for part in ["tap \"tap0\"", "ermission"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_host_without_vhost_is_told_which_module_to_load() {
    let setup = "ip tuntap add mode tap name tap0 && mount -t tmpfs none /dev && mkdir /dev/net \
                 && mknod /dev/net/tun c 10 200 && mknod /dev/kvm c 10 232";
    for (flag, value, module) in
        [("--net", "tap=tap0,vhost", "vhost_net"), ("--vsock", "cid=3,vhost", "vhost_vsock")]
    {
        let (code, text) = in_namespaces(setup, &microvm(), None, &[flag, value]);
        assert_eq!(code, 1, "{text}");
        let said = format!(
            "{flag} vhost: /dev/{} does not exist; load the kernel module {module}",
            module.replace('_', "-")
        );
        assert!(text.contains(&said), "{text}");
    }
}
