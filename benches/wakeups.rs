//! Batches of requests through a device's I/O thread, for `tests/wakeups.rs`, which counts the system calls of that
//! thread. The first argument is the number of batches; prints the number of requests.

mod support;

use support::rings::{BATCH, ThreadRig};

fn main() {
    let batches: u32 = std::env::args().nth(1).expect("the number of batches").parse().expect("a number");
    let mut rig = ThreadRig::blk("io");
    (0..batches).for_each(|_| rig.batch());
    println!("{}", batches * u32::from(BATCH));
}
