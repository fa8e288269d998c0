//! Giving up the right to open files and to make connections, for this thread and those that it starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// What opens or makes something that has a name.
const OPENERS: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
];

/// Gives it up, and proves it. Landlock forbids files even to ioctls that open them; kernels without it have the filter
/// of system calls alone.
pub fn enter() {
    assert!(File::open("/proc/self/stat").is_ok(), "nothing is forbidden so far");
    let landlock = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.no_new_privs(true).restrict_self())
        .unwrap();
    println!("Landlock: {:?}", landlock.ruleset);
    if landlock.ruleset != RulesetStatus::NotEnforced {
        // The filter below has not been asked yet.
        let error = File::open("/proc/self/stat").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }

    let rules: BTreeMap<_, _> = OPENERS.iter().map(|number| (*number, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    everything_is_refused();
    std::thread::spawn(everything_is_refused).join().unwrap();
}

pub fn everything_is_refused() {
    let denied = |result: std::io::Result<()>| {
        assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
    };
    denied(File::open("/proc/self/stat").map(drop));
    denied(File::open("/dev/kvm").map(drop));
    denied(File::create("file").map(drop));
    denied(UnixStream::connect("socket").map(drop));
    denied(UnixListener::bind("socket").map(drop));
}
