//! A limit on file sizes below the size of guest memory. A process of its own: the limit is the process's.
#![allow(unsafe_code)]

use ossature_memory::{Backing, Ram, RamConfig};

#[test]
fn e5_shared_memory_beyond_the_limit_on_file_sizes_is_an_error_that_says_so() {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is valid for the call. A failure shows in what follows.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
    // SIGXFSZ, which is not ignored here, would end the test.
    let error = Ram::new(&RamConfig::new(2 << 20).backing(Backing::Memfd)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest memory of 2 MiB: ftruncate failed: a file of this process has at most 1048576 bytes (ulimit -f)"
    );
    Ram::new(&RamConfig::new(1 << 20).backing(Backing::Memfd)).unwrap();
    Ram::new(&RamConfig::new(2 << 20)).unwrap();
}
