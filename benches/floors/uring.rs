//! Floor: the least that reads a file with io_uring, 32 reads of 4 KiB at a time: `floor_uring FILE BATCHES`. One system
//! call a batch starts the reads and waits for them.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

const BATCH: usize = 32;
const LEN: usize = 4096;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [path, batches] = &args[..] else { panic!("floor_uring FILE BATCHES") };
    let file = File::open(path).expect("the file");
    let batches: u32 = batches.parse().expect("a number");
    let mut buffers = vec![[0u8; LEN]; BATCH];
    let mut ring = IoUring::new(BATCH as u32).expect("io_uring");
    ring.submitter().register_files(&[file.as_raw_fd()]).expect("the file is registered");
    for _ in 0..batches {
        for (at, buffer) in buffers.iter_mut().enumerate() {
            let read = opcode::Read::new(types::Fixed(0), buffer.as_mut_ptr(), LEN as u32)
                .offset((at * LEN) as u64)
                .build()
                .user_data(at as u64);
            // SAFETY: the buffer lives until its completion has been read, below.
            unsafe { ring.submission().push(&read) }.expect("room for a batch");
        }
        ring.submit_and_wait(BATCH).expect("io_uring");
        let done = ring.completion().filter(|entry| entry.result() == LEN as i32).count();
        assert_eq!(done, BATCH, "a read failed");
    }
}
