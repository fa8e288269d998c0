//! What this process has of the host's.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests may panic

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Open descriptors and threads of this process.
pub fn taken() -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(folder).expect("procfs").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// Waits until this process has as many descriptors as before, and no more threads: the kernel lists one that was joined for a
/// moment, which may have been counted before.
pub fn given_back(before: (usize, usize)) {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let now = taken();
        if now.0 == before.0 && now.1 <= before.1 {
            return;
        }
        assert!(Instant::now() < limit, "descriptors and threads: {now:?}, and it was {before:?}");
        thread::yield_now();
    }
}
