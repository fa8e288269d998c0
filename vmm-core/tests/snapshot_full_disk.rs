//! A snapshot for which there is no room. Alone in its process, whose limit on the size of files it sets.
#![allow(unsafe_code)]

use std::fs;

use ossature_core::machine::{Machine, SnapshotError};
use ossature_core::program::block_io_signals;
use ossature_core::scripted::{Script, Scripted};
use ossature_memory::RamConfig;
use ossature_memory::vm_memory::GuestAddress;

#[test]
fn d2_a_snapshot_without_room_leaves_no_file_and_the_guest_goes_on() {
    block_io_signals().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let build = |size: u64| {
        let config = RamConfig::new(size);
        Machine::builder("full").memory(config).build(&Scripted::new([Script::new()])).unwrap()
    };
    let (small, large) = (build(64 << 10), build(4 << 20));
    large.ram().dma().write(GuestAddress(0x1000), b"x").unwrap();
    small.snapshot(&path).unwrap();
    let before = fs::read(&path).unwrap();

    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit is valid for the call, which only reads it.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    large.start().unwrap();
    let error = large.snapshot(&path).unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Io { source, .. } if source.raw_os_error() == Some(libc::EFBIG)),
        "{error}"
    );
    assert_eq!(large.state(), ossature_core::machine::LifecycleState::Running);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(fs::read(&path).unwrap() == before, "the snapshot before is as it was");
    small.snapshot(&path).unwrap();
}
